"""Captions: from class names, from a table, and what is said about a bad table."""

from pathlib import Path

import pytest

from t2ikit.prepare.captions.caption_file import CaptionSet, aio_caption, caption_file
from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.encode.encode import prepare_encode
from t2ikit.prepare.images import image_sets, prepare_images
from t2ikit.records.record_set import RecordSet


@pytest.fixture
def images(photos: Path, tmp_path: Path) -> Path:
    prepare_images(str(photos), tmp_path / "data", 16)
    return tmp_path / "data"


def keys(root: Path, name: str) -> list[str]:
    return [record.metadata["key"] for record in RecordSet(root / "images" / name)]


def table(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("".join(f"{key}\t{caption}\n" for key, caption in rows), encoding="utf-8")
    return str(path)


def test_aio_names_the_class_and_for_cutmix_both() -> None:
    assert aio_caption({"class_name": "crane"}) == "An image of crane"
    both = {"class_name": "crane", "other_class_name": "tench"}
    assert aio_caption(both) == "An image of crane and tench"


def test_aio_captions_are_in_the_order_of_the_images(images: Path) -> None:
    assert prepare_captions(images) == ["train", "val"] == image_sets(images)
    for name in ("train", "val"):
        captions = CaptionSet(images, name)
        assert captions.header.kind == "aio" and captions.header.count == len(list(captions))
        for (key, texts), record in zip(captions, RecordSet(images / "images" / name), strict=True):
            assert key == record.metadata["key"] and texts == (f"An image of {record.metadata['class_name']}",)


def test_second_run_does_nothing(images: Path, capsys: pytest.CaptureFixture) -> None:
    prepare_captions(images)
    before = caption_file(images, "train").stat().st_mtime_ns
    prepare_captions(images)
    assert caption_file(images, "train").stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("up to date") == 2
    assert [path.name for path in (images / "captions").iterdir() if path.name.startswith(".")] == []


def test_own_captions(images: Path, tmp_path: Path) -> None:
    rows = [(key, f"Photo of {key}, très net") for name in ("train", "val") for key in sorted(keys(images, name))]
    path = tmp_path / "captions.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + "".join(f"{key}\t{text}\r\n" for key, text in rows).encode())
    assert prepare_captions(images, file=str(path)) == ["train", "val"]
    assert dict(CaptionSet(images, "train")) == {k: (t,) for k, t in rows if k.startswith("train")}
    assert [key for key, _ in CaptionSet(images, "val")] == keys(images, "val")
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare_captions(images)
    prepare_captions(images, overwrite=True)
    assert CaptionSet(images, "val").header.kind == "aio"


def test_table_of_one_set_leaves_the_others(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [(key, "a photo") for key in keys(images, "train")]
    assert prepare_captions(images, file=table(tmp_path / "t.tsv", rows)) == ["train"]
    assert "val: no captions yet" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="images of val have no captions.*prepare captions"):
        prepare_encode(images, autoencoder="pixels", text_encoder="small")
    prepare_captions(images, sets=["val"])
    assert CaptionSet(images, "train").header.kind == "own" and CaptionSet(images, "val").header.kind == "aio"


def test_cutmix_takes_own_captions_by_its_keys(prepared: Path, tmp_path: Path) -> None:
    rows = [(key, "two things") for key in keys(prepared, "train_cmall")]
    assert all(key.startswith("train_cmall/train/") for key, _ in rows)
    assert prepare_captions(prepared, file=table(tmp_path / "t.tsv", rows), overwrite=True) == ["train_cmall"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{0}\tone", "{1}\ttwo", "{0}\tthree"], "line 3 of .*a second one for {0}, after line 1"),
        (["{0}\tone", "train/n0/none.JPEG\ttwo"], "1 keys of .*line 2: train/n0/none.JPEG .*such as train/"),
        (["{0}\tone", "{1}\ttwo"], "10 images of train have no caption"),
        (["{0}\tone", "{1} two"], "line 2 of .*path<TAB>caption"),
        (["{0}\t  "], "line 1 of .*path<TAB>caption"),
        (["{0}\tone\tmore"], "line 1 of .*path<TAB>caption"),
        (["/abs/{0}\tone"], "1 keys of .*are no image of train, val"),
        ([""], "line 1 of .*path<TAB>caption"),
    ],
    ids=["duplicate", "unknown", "missing", "no tab", "empty", "two tabs", "absolute", "blank"],
)
def test_bad_tables(images: Path, tmp_path: Path, lines: list[str], message: str) -> None:
    own = keys(images, "train")
    path = tmp_path / "t.tsv"
    path.write_text("".join(line.format(*own) + "\n" for line in lines))
    with pytest.raises(ValueError, match=message.replace("{0}", own[0])):
        prepare_captions(images, file=str(path))
    assert not caption_file(images, "train").exists()


def test_refusals(images: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="prepare images --source"):
        prepare_captions(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="--captions"):
        prepare_captions(images, file=str(tmp_path / "none.tsv"))
    with pytest.raises(ValueError, match="no image set test.*train, val"):
        prepare_captions(images, sets=["test"])
    bad = tmp_path / "latin.tsv"
    bad.write_bytes(b"train/x\tcaf\xe9\n")
    with pytest.raises(ValueError, match="line 1 of .* is not UTF-8"):
        prepare_captions(images, file=str(bad))
