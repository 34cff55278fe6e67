"""Steps: which parts of a set are there, disk, files of lines."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from t2ikit.prepare.sets import parts_done, shard_size_of, work_folder
from t2ikit.prepare.steps import identity, known_parts, part_ranges, require_disk, write_lines
from t2ikit.pretrained import EncoderReference, sha256_of
from t2ikit.records.manifest import Manifest, Part, TextSource

ENCODER = EncoderReference("x", None, "1")
MANIFEST = Manifest(kind="pixels", image_shape=(3, 8, 8), texts={"t5": TextSource(8, ENCODER)})
OPTIONS = {"text_encoders": "--text-encoder", "token_limit": "--max-tokens"}


def stored(folder: Path, manifest: Manifest, *hashes: str) -> None:
    """A folder that looks like a set of some parts."""
    folder.mkdir(exist_ok=True)
    parts = tuple(Part(3, 1, digest) for digest in hashes)
    (folder / "manifest.json").write_text(replace(manifest, parts=parts, count=3 * len(parts)).to_json())


def test_parts_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    assert parts_done(folder, MANIFEST, ["a"], False, OPTIONS, lambda: "--seed differs") == 0
    folder.mkdir()
    assert parts_done(folder, MANIFEST, ["a"], False, OPTIONS, lambda: "--seed differs") == 0
    stored(folder, MANIFEST, "a")
    assert parts_done(folder, MANIFEST, ["a"], False, OPTIONS, lambda: "--seed differs") == 1
    assert parts_done(folder, MANIFEST, ["a", "b", "c"], False, OPTIONS, lambda: "--seed differs") == 1
    moved = replace(
        MANIFEST, texts={"t5": TextSource(8, EncoderReference("elsewhere", None, "1"))}, versions={"torch": "0"}
    )
    assert parts_done(folder, moved, ["a"], False, OPTIONS, lambda: "--seed differs") == 1
    other_weights = {"t5": TextSource(8, replace(ENCODER, sha256="2"))}
    for other, hashes, named in (
        (replace(MANIFEST, texts=other_weights), ["a"], "--text-encoder differs"),
        (replace(MANIFEST, texts={"t5": TextSource(8, replace(ENCODER, sha256=""))}), ["a"], "--text-encoder differs"),
        (replace(MANIFEST, token_limit=9), ["a"], "--max-tokens was 0 and is 9 now"),
        (MANIFEST, ["b"], "--seed differs"),
        (MANIFEST, [], "--seed differs"),
    ):
        with pytest.raises(FileExistsError, match=f"other inputs: {named}.*--out.*--overwrite"):
            parts_done(folder, other, hashes, False, OPTIONS, lambda: "--seed differs")
        assert parts_done(folder, other, hashes, True, OPTIONS, lambda: "--seed differs") == 0
    stored(folder, MANIFEST, "a", "b")
    work_folder(folder, 1).mkdir()
    work_folder(folder, 2).mkdir()
    assert parts_done(folder, MANIFEST, ["a", "b", "c"], False, OPTIONS, lambda: "--seed differs") == 2
    assert not work_folder(folder, 1).exists() and work_folder(folder, 2).exists()  # that of the third part goes on


def test_encoders_of_unknown_weights_are_told_apart_by_their_names(tmp_path: Path) -> None:
    one, other = (
        replace(MANIFEST, texts={"t5": TextSource(8, EncoderReference(name, None, ""))}) for name in ("one", "other")
    )
    stored(tmp_path / "set", one, "a")
    assert parts_done(tmp_path / "set", one, ["a"], False, OPTIONS, lambda: "") == 1
    with pytest.raises(FileExistsError, match="other inputs: --text-encoder differs"):
        parts_done(tmp_path / "set", other, ["a"], False, OPTIONS, lambda: "")


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="no prepared set: choose another --out"):
            parts_done(tmp_path / "letters", MANIFEST, ["a"], overwrite, OPTIONS, lambda: "--seed differs")


def test_an_identity_stands_for_some_parts() -> None:
    hashes = {f"chunk-0-{k}.bin": str(k) for k in range(3)} | {"index.json": "x"}
    whole = replace(MANIFEST, chunk_sha256=hashes, count=9, parts=(Part(6, 2, "a"), Part(3, 1, "b")))
    first = replace(whole, chunk_sha256={name: hashes[name] for name in list(hashes)[:2]}, parts=whole.parts[:1])
    assert identity(whole, 1) == identity(first) != identity(whole) == identity(whole, 2)
    assert [known_parts(whole, identity(one)) for one in (first, whole)] == [1, 2]
    assert known_parts(whole, "other") == 0 == known_parts(first, identity(whole))
    assert part_ranges(whole) == [range(6), range(6, 9)]


def test_size_of_a_shard() -> None:
    assert shard_size_of(256 * 256 * 3, None) == 341 and shard_size_of(10, None) == 4096
    assert shard_size_of(2**30, None) == 1 and shard_size_of(10, 7) == 7
    with pytest.raises(ValueError, match="--shard-size"):
        shard_size_of(10, 0)


def test_disk(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    require_disk(tmp_path, 1000, 2500, "photos")
    assert "photos: 1,000 images, about 2.5 MB on disk" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1000.0 TB.*--out"):
        require_disk(tmp_path, 10**9, 10**6, "photos")


def test_disk_that_earlier_sets_will_take_is_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000_000))
    promised = require_disk(tmp_path, 1000, 7000, "train")
    assert promised == 7_000_000
    with pytest.raises(ValueError, match=r"needs about 4\.0 MB, but .* has 10\.0 MB free, 7\.0 MB of it for the sets"):
        require_disk(tmp_path, 1000, 4000, "train_cmall", promised=promised)
    assert "train_cmall: 1,000 images, about 4.0 MB on disk (3.0 MB free)" in capsys.readouterr().out


def test_lines_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lines.txt"
    digest = write_lines(path, ["one", "zwei ö"])
    assert path.read_text(encoding="utf-8") == "one\nzwei ö\n" and digest == sha256_of(path)

    def broken() -> object:
        yield "three"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_lines(path, broken())  # type: ignore[arg-type]
    assert sha256_of(path) == digest and list(path.parent.iterdir()) == [path]
