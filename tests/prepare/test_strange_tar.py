"""A tar of a stranger whose header would be read for ever."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from t2ikit.prepare.sources.files import LocalFiles
from t2ikit.prepare.sources.tars.tar import OpenTar


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", ["-1536", "-512", "-1"])
def test_a_negative_size_ends(size: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        facts = tarfile.TarInfo("a.jpg")
        facts.pax_headers = {"size": size}
        tar.addfile(facts)
    path = tmp_path / "strange.tar"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="is damaged|is not complete"), OpenTar(LocalFiles(), str(path)) as opened:
        list(opened.members())
