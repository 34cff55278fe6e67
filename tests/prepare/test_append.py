"""Photos that come later: they go behind the others in every set, and what was there is not made again."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2ikit.data.streams import TrainingStream
from t2ikit.encoders import TextEncoder
from t2ikit.prepare import images as images_module
from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.check.check import prepare_check
from t2ikit.prepare.cutmix import prepare_cutmix
from t2ikit.prepare.encode import encode as encode_module
from t2ikit.prepare.encode.encode import prepare_encode
from t2ikit.prepare.engine.shards import Results
from t2ikit.prepare.images import prepare_images
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet

NEW = 5


def add_photos(photos: Path, source: Path, count: int = NEW, name: str = "new") -> None:
    """New photos of a class of train: those of another class under other names."""
    for k in range(count):
        shutil.copy(photos / "train/n02012849/n02012849_0.JPEG", source / f"train/n01440764/{name}_{k}.JPEG")


def encode(out: Path) -> dict[str, Manifest]:
    return prepare_encode(out, autoencoder="pixels", text_encoder="small", text_dim=32)


@pytest.fixture
def source(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def states_of(out: Path) -> dict[str, list[bytes]]:
    return {
        name: [bytes(RecordSet(out / name).raw(index)) for index in range(len(RecordSet(out / name)))]
        for name in ("images/train", "images/val", "images/train_cmall", "train", "val", "train_cmall")
    }


def test_new_photos_go_behind_the_others(
    photos: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    prepare_images(str(source), out, 16, shard_size=4)
    prepare_captions(out)
    prepare_cutmix(out, "cmall", shard_size=4)
    encode(out)
    before = states_of(out)
    nodes = {path: path.stat().st_ino for path in out.rglob("chunk-*.bin")}
    add_photos(photos, source)
    (source / "train/n01440764/broken.JPEG").write_bytes(b"no image")
    with pytest.raises(FileExistsError, match="the photos or their classes differ.*--append"):
        prepare_images(str(source), out, 16)
    manifests = prepare_images(str(source), out, 16, append=True, shard_size=4)
    assert [part.count for part in manifests["train"].parts] == [12, NEW] and len(manifests["val"].parts) == 1
    assert (out / "images/bad_train.tsv").read_text() == "train/n01440764/broken.JPEG\tnot an image\n"
    capsys.readouterr()
    prepare_images(str(source), out, 16, append=True)
    prepare_images(str(source), out, 16)
    assert capsys.readouterr().out.count("up to date") == 4
    with pytest.raises(ValueError, match="run t2ikit prepare captions"):
        encode(out)
    prepare_captions(out)
    prepare_cutmix(out, "cmall")
    encoded: list[str] = []
    encode_texts = TextEncoder.encode_pooled
    monkeypatch.setattr(
        TextEncoder, "encode_pooled", lambda self, texts: encoded.extend(texts) or encode_texts(self, texts)
    )
    encode(out)
    assert 2 <= len([text for text in encoded if text]) <= 1 + NEW  # the new captions, once a set
    after = states_of(out)
    for name, records in before.items():
        new = 0 if name.endswith("val") else NEW
        assert after[name][: len(records)] == records and len(after[name]) == len(records) + new, name
    assert {path: path.stat().st_ino for path in nodes} == nodes
    assert prepare_check(out) == [] and not list(out.rglob(".*.work")) and not list(out.rglob("*.partial"))
    stream = TrainingStream(RecordSet(out / "train"), global_batch=17)
    assert sorted(stream[0].index.tolist()) == list(range(12 + NEW))
    for mixed in list(RecordSet(out / "images/train_cmall"))[12:]:
        assert "new_" in mixed.metadata["base_key"] and mixed.metadata["other_class_id"] != mixed.metadata["class_id"]


def test_steps_after_two_appends_catch_up_part_by_part(photos: Path, source: Path, tmp_path: Path) -> None:
    """Whether encode runs between the appends or after them, the sets are the same bytes."""
    for out, late in ((tmp_path / "each", False), (tmp_path / "late", True)):
        shutil.rmtree(source)
        shutil.copytree(photos, source)
        for turn in range(3):
            prepare_images(str(source), out, 16, append=turn > 0)
            if turn == 2 or not late:
                prepare_captions(out)
                prepare_cutmix(out, "cm4")
                prepare_encode(out, autoencoder="pixels", text_encoder=str(small(tmp_path)))
            add_photos(photos, source, 2, f"turn{turn}")
    for name in ("train", "train_cm4", "val"):
        one, other = (Manifest.read(tmp_path / which / name) for which in ("each", "late"))
        assert one.chunk_sha256 == other.chunk_sha256 and len(one.parts) == (1 if name == "val" else 3)
        assert one.parts == other.parts


def test_encode_goes_on_in_the_second_of_two_parts(
    photos: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The captions of the parts are unlike, and so are the sizes of their shards."""
    out, names = tmp_path / "out", tmp_path / "names.tsv"
    rows = [(wnid, wnid) for wnid in ("n02012849", "n03126707", "n03710637", "n03710721")]
    names.write_text("".join(f"{wnid}\t{name}\n" for wnid, name in [*rows, ("n01440764", "fish " * 40)]))
    monkeypatch.setattr("t2ikit.prepare.sets.CHUNK_BYTES", 2**14)
    for turn in range(2):
        prepare_images(str(source), out, 16, class_names=str(names), append=turn > 0)
        prepare_captions(out)
        add_photos(photos, source)

    class Killed(Exception): ...

    add_part = encode_module.add_part

    def add_first(results: Results, folder: Path, part: int, *rest: Any) -> Manifest:
        if part == 1:
            raise Killed
        return add_part(results, folder, part, *rest)

    monkeypatch.setattr(encode_module, "add_part", add_first)
    with pytest.raises(Killed):
        encode(out)
    monkeypatch.setattr(encode_module, "add_part", add_part)
    shards = {path.name: path.stat().st_ino for path in (out / ".train.part-1.work").glob("*.bin")}
    manifest = encode(out)["train"]
    assert len(shards) == manifest.parts[1].chunks and manifest.count == 12 + NEW
    assert set(shards.values()) <= {path.stat().st_ino for path in (out / "train").glob("*.bin")}


def test_a_part_is_added_once(photos: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another call has added it after this one saw that it was missing."""
    out = tmp_path / "out"
    prepare_images(str(source), out, 16)
    add_photos(photos, source)
    run_part = images_module.run_part

    def run_late(*arguments: Any) -> Results:
        monkeypatch.undo()
        prepare_images(str(source), out, 16, append=True)
        return run_part(*arguments)

    monkeypatch.setattr(images_module, "run_part", run_late)
    with pytest.raises(FileExistsError, match="another call has added to .*images/train meanwhile"):
        prepare_images(str(source), out, 16, append=True)
    assert Manifest.read(out / "images/train").count == 12 + NEW and not list(out.rglob(".*.work"))


def test_unfinished_shards_of_other_parts_stay(photos: Path, source: Path, tmp_path: Path) -> None:
    """Those of part 10 beside part 1, which is done."""
    out = tmp_path / "out"
    for turn in range(2):
        prepare_images(str(source), out, 16, append=turn > 0)
        add_photos(photos, source)
    left = {part: out / "images" / f".train.part-{part}.work" for part in ("0", "1", "1.clip-2", "10", "10.clip-2")}
    for folder in left.values():
        folder.mkdir()
    prepare_images(str(source), out, 16)
    assert [part for part, folder in left.items() if folder.exists()] == ["10", "10.clip-2"]


def small(folder: Path) -> Path:
    from t2ikit.encoders import build_small_t5

    return build_small_t5(folder / "t5", ["An image of crane maillot tench and"], dim=32, layers=1)


@pytest.mark.parametrize("change", ["gone", "other size"])
def test_photos_that_are_gone_or_changed_are_named(source: Path, tmp_path: Path, change: str) -> None:
    out = tmp_path / "out"
    prepare_images(str(source), out, 16)
    photo = source / "train/n01440764/n01440764_1.JPEG"
    if change == "gone":
        photo.unlink()
    else:
        photo.write_bytes(photo.read_bytes() + b"\0")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 photos.*n01440764_1.JPEG.*--append only adds.*--overwrite"):
            prepare_images(str(source), out, 16, append=True)
    assert Manifest.read(out / "images/train").count == 12
    with pytest.raises(ValueError, match="--append.*--overwrite"):
        prepare_images(str(source), out, 16, append=True, overwrite=True)


def test_pixels_of_new_photos_are_right(photos: Path, source: Path, tmp_path: Path) -> None:
    from t2ikit.photos import decode

    prepare_images(str(source), tmp_path / "out", 16)
    add_photos(photos, source)
    prepare_images(str(source), tmp_path / "out", 16, append=True)
    for record in RecordSet(tmp_path / "out/images/train"):
        assert np.array_equal(record.image, decode((source / record.metadata["key"]).read_bytes(), 16))
