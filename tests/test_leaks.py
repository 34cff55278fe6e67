"""A leak of a run is seen, and nothing else is: ``nox -s leaks`` looks for one in 5,000 steps."""

from __future__ import annotations

from pathlib import Path

import leaks
import pytest

LEAK = """
kept = []


def leak():
    kept.append(open(tempfile.mkstemp()[1]))
    kept.append(bytearray(b"x") * 8_000_000)
"""


@pytest.mark.long
def test_a_run_that_leaks_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "PLUGIN", leaks.PLUGIN.replace("        gc.collect()", "        leak()") + LEAK)
    rows = leaks.measure(tmp_path / "run", 0, 20, snapshots=5)
    assert [row["step"] for row in rows] == list(range(2, 21, 2)) and rows[-1]["snapshots"] == 5
    assert [line.partition(":")[0] for line in leaks.grown(rows)] == ["handles", "temporary files", "MB"]
