"""A source is counted whole: its members are photos, labels of photos, or left out with a reason."""

from __future__ import annotations

import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from t2ikit.cli import main
from t2ikit.prepare.sources import ImageList, find_images

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = "cat\tcat\ndog\tdog\n"
Members = dict[str, bytes | str]


def unpacked(folder: Path, members: Members) -> Path:
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def found(source: Path, tmp_path: Path, **options: Any) -> dict[str, ImageList]:
    names = tmp_path / "names.tsv"
    if not names.exists():
        names.write_text(NAMES)
    return find_images(str(source), str(names), 0.3, **options)


def left_out(lists: dict[str, ImageList]) -> int:
    return sum(len(images.left_out) for images in lists.values())


def keys(images: ImageList) -> list[str]:
    return sorted(images.keys)


CLASS_FOLDERS: Members = {
    f"{split}/{name}/{number}{ending}": f"{split}{name}{number}"
    for split in ("train", "val")
    for name in ("cat", "dog")
    for number, ending in enumerate((".JPEG", ".jfif", ".jp2", ".heic", ""))
}
DEBRIS: Members = {
    ".DS_Store": "1",
    "._train": "1",
    "train/Thumbs.db": "1",
    "train/cat/.DS_Store": "1",
    "train/cat/._0.JPEG": "1",
    "train/cat/@eaDir/0.JPEG/SYNOPHOTO_THUMB_M.jpg": "1",
    "val/dog/Desktop.ini": "1",
    "__MACOSX/train/cat/._0.JPEG": "1",
    "README.md": "1",
    "train/labels.txt": "1",
    "test/cat/0.JPEG": "1",
}


@pytest.mark.parametrize("as_tar", [False, True])
def test_what_systems_leave_behind_is_no_photo(tmp_path: Path, as_tar: bool) -> None:
    members = {**DEBRIS, **CLASS_FOLDERS}
    source = tiny.packed(tmp_path / "all.tar", members) if as_tar else unpacked(tmp_path / "all", members)
    lists = found(source, tmp_path)
    for split in ("train", "val"):
        assert keys(lists[split]) == sorted(name for name in CLASS_FOLDERS if name.startswith(split))
    assert left_out(lists) == len(DEBRIS)


def test_what_is_left_out_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "JPEG")
    photos: Members = {name: buffer.getvalue() for name in CLASS_FOLDERS if name.endswith((".JPEG", ".jfif"))}
    source = tiny.packed(tmp_path / "all.tar", {**DEBRIS, **CLASS_FOLDERS, **photos})
    names = tmp_path / "names.tsv"
    names.write_text(NAMES)
    words = ["prepare", "images", "--source", source, "--out", tmp_path / "o", "--size", "16", "--workers", "0"]
    assert main([*map(str, words), "--class-names", str(names)]) == 0
    printed = capsys.readouterr().out
    assert "8 left out: of the system, not of the source (first .DS_Store)" in printed
    assert printed.count("4 images of 2 classes, 6 files could not be used") == 2


@pytest.mark.parametrize("name", ["validation", "valid", "Val", "VALIDATION", "dev", "Dev"])
@pytest.mark.parametrize("as_tar", [False, True])
def test_every_name_of_val_is_val(tmp_path: Path, name: str, as_tar: bool) -> None:
    members: Members = {f"Train/cat/{k}.jpg": "x" for k in range(4)} | {f"{name}/dog/{k}.jpg": "x" for k in range(3)}
    source = tiny.packed(tmp_path / "all.tar", members) if as_tar else unpacked(tmp_path / "all", members)
    lists = found(source, tmp_path)
    assert keys(lists["val"]) == sorted(key for key in members if key.startswith(name))
    assert (len(lists["train"]), len(lists["val"])) == (4, 3)


def test_two_folders_of_val_are_refused(tmp_path: Path) -> None:
    names = ("train/cat/1.jpg", "val/cat/1.jpg", "validation/cat/1.jpg")
    source = unpacked(tmp_path / "all", dict.fromkeys(names, "x"))
    with pytest.raises(ValueError, match="two folders of val, val and validation"):
        found(source, tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    (tmp_path / "names.tsv").write_text("train\ttrain\nbus\tbus\n")
    names = [f"{name}/{k}.jpg" for name in ("train", "bus") for k in range(9)]
    lists = found(unpacked(tmp_path / "all", dict.fromkeys(names, "x")), tmp_path)
    assert len(lists["train"]) + len(lists["val"]) == 18


def sample(name: str, ending: str = "jpg") -> Members:
    return {f"{name}.{ending}": name, f"{name}.cls": str(int(name.replace(".", "")) % 2)}


PHOTO_ENDINGS = ["jpg", "jfif", "jpe", "JPEG", "jp2", "heic", "tiff", "avif", "webp"]


def total(lists: dict[str, ImageList]) -> dict[str, int]:
    """Content of every photo -> its class."""
    return {images.read(k).decode(): int(images.class_ids[k]) for images in lists.values() for k in range(len(images))}


@pytest.mark.parametrize("order", ["together", "photos first", "labels first", "shuffled"])
@pytest.mark.parametrize("dots", [False, True])
def test_every_sample_of_a_webdataset_is_read(tmp_path: Path, order: str, dots: bool) -> None:
    samples: Members = {}
    for number in range(30):
        name = f"22.{number:02d}" if dots else f"{number:03d}"
        samples |= sample(name, PHOTO_ENDINGS[number % len(PHOTO_ENDINGS)])
    names = list(samples)
    if order == "shuffled":
        np.random.default_rng(0).shuffle(names)
    elif order != "together":
        names.sort(key=lambda name: name.endswith(".cls") == (order == "photos first"))
    lists = found(tiny.packed(tmp_path / "a.tar", {name: samples[name] for name in names}), tmp_path)
    read = total(lists)
    assert len(read) == 30 and left_out(lists) == 0
    assert all(class_id == int(name.replace(".", "")) % 2 for name, class_id in read.items())


def test_the_rest_of_a_webdataset_is_counted(tmp_path: Path) -> None:
    rest: Members = {
        "000.seg.png": "mask",
        "001.txt": "a cat",
        "090.cls": "1",
        "091.txt": "no photo",
        "._000.jpg": "1",
        ".DS_Store": "1",
    }
    members: Members = {"README": "1"}
    for number in range(20):
        members |= sample(f"{number:03d}")
    members["004.cls"] = "\ufeff0\r\n"  # as an editor of Windows writes it
    lists = found(tiny.packed(tmp_path / "a.tar", {**members, **rest}), tmp_path)
    assert len(total(lists)) == 20
    assert left_out(lists) == len(rest) + 1
    assert {reason for images in lists.values() for reason in images.left_out.reasons} == {
        "a further picture of a sample",
        "labels without a photo",
        "neither photo nor label (.txt)",
        "neither photo nor label (no ending)",
        "of the system, not of the source",
    }


def test_the_kept_index_counts_too(tmp_path: Path) -> None:
    source = tiny.packed(tmp_path / "all.tar", {**DEBRIS, **CLASS_FOLDERS})
    counts = [left_out(found(source, tmp_path, index=tmp_path / "index")) for _ in range(2)]
    assert counts == [len(DEBRIS)] * 2


def test_kind_says_what_a_source_is(tmp_path: Path) -> None:
    photos: Members = {f"cat/{k:03d}.jpg": "x" for k in range(30)}
    labels: Members = {f"cat/{k:03d}.cls": str(k % 2) for k in range(30)}
    tar = tiny.packed(tmp_path / "all.tar", {**photos, **labels})
    with pytest.raises(ValueError, match="--kind webdataset"):
        found(tar, tmp_path)
    assert sum(map(len, found(tar, tmp_path, kind="webdataset").values())) == 30
    folder = unpacked(tmp_path / "both", photos)
    tiny.packed(folder / "a.tar", {**photos, **labels})
    with pytest.raises(ValueError, match="holds both a.tar and photos, such as cat/0.*--kind"):
        found(folder, tmp_path)
    assert keys(found(folder, tmp_path, kind="folders")["train"])[0].startswith("cat/")
    assert keys(found(folder, tmp_path, kind="webdataset")["train"])[0].startswith("all/cat/") is False
    with pytest.raises(ValueError, match="no file of --kind parquet"):
        found(folder, tmp_path, kind="parquet")


@pytest.mark.parametrize("form", ["composed", "decomposed"])
@pytest.mark.parametrize("space", ["", " "])
def test_class_folders_match_in_any_unicode_form(tmp_path: Path, form: str, space: str) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    in_file, on_disk = (composed, decomposed) if form == "composed" else (decomposed, composed)
    (tmp_path / "names.tsv").write_bytes(b"\xef\xbb\xbf" + f"{in_file}\tcaf\u00e9\r\ndog\tdog\r\n".encode())
    names = [f"{name}/{k}.jpg" for name in (on_disk + space, "dog") for k in range(9)]
    lists = found(unpacked(tmp_path / "all", dict.fromkeys(names, "x")), tmp_path)
    assert lists["train"].class_names == {0: "caf\u00e9", 1: "dog"}


def test_names_that_differ_too_little_or_too_much_are_shown(tmp_path: Path) -> None:
    both = {"cat/1.jpg": "x", "cat /2.jpg": "x", "dog/1.jpg": "x"}
    with pytest.raises(ValueError, match="differ only in spaces or in their Unicode form, 'cat' and 'cat '"):
        found(unpacked(tmp_path / "both", both), tmp_path)
    with pytest.raises(ValueError, match=r"Cat, which is not in .*\('Cat' is not 'cat'\)"):
        found(unpacked(tmp_path / "case", {"Cat/1.jpg": "x", "dog/1.jpg": "x"}), tmp_path)


@pytest.mark.parametrize("photo_type", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["cat", "dog"] * 10, pa.large_string()),
        pa.array(["cat", "dog"] * 10, pa.string_view()),
        pa.array(["cat", "dog"] * 10).dictionary_encode(),
        pa.array(["cat", "dog"] * 10, pa.large_string()).dictionary_encode(),
        pa.array([0, 1] * 10, pa.uint8()),
        pa.array([0, 1] * 10).dictionary_encode(),
        pa.array(["0", "1"] * 10),
        pa.array(["0", "1"] * 10).dictionary_encode(),
        pa.array([0.0, 1.0] * 10),
        pa.array([0.0, 1.0] * 10, pa.float32()),
        pa.array([Decimal(0), Decimal(1)] * 10, pa.decimal128(4, 1)),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_parquet_of_other_writers(tmp_path: Path, photo_type: Any, labels: Any, nested: bool) -> None:
    photos = pa.array([str(k).encode() for k in range(20)], photo_type)
    if nested:
        photos = pa.StructArray.from_arrays([photos, pa.array([f"{k}.jpg" for k in range(20)])], ["bytes", "path"])
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.table({"image": photos, "label": labels}), folder / "train-00000-of-00001.parquet")
    assert total(found(folder, tmp_path)) == {str(k): k % 2 for k in range(20)}


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 1)])
@pytest.mark.parametrize("nested", [False, True])
def test_parquet_of_lists_of_one_picture(tmp_path: Path, kind: Any, nested: bool) -> None:
    rows = [[{"bytes": str(k).encode(), "path": None} if nested else str(k).encode()] for k in range(20)]
    inner = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if nested else pa.binary()
    table = pa.table({"images": pa.array(rows, kind(inner)), "label": [0, 1] * 10})
    pq.write_table(table, tmp_path / "train.parquet")
    assert total(found(tmp_path / "train.parquet", tmp_path)) == {str(k): k % 2 for k in range(20)}


def test_parquet_rows_of_several_pictures_or_none_are_bad(tmp_path: Path) -> None:
    rows = [[b"0"], [b"1", b"2"], [], [b"3"], [b"4"], None]
    table = pa.table({"images": pa.array(rows, pa.list_(pa.binary())), "label": [0, 1] * 3})
    pq.write_table(table, tmp_path / "train.parquet")
    lists, faults = found(tmp_path / "train.parquet", tmp_path), []
    for images in lists.values():
        for position in range(len(images)):
            try:
                images.read(position)
            except OSError as error:
                faults.append(error.strerror)
    assert sorted(faults) == [
        "the row holds 0 pictures, not one",
        "the row holds 2 pictures, not one",
        "the row holds no bytes",
    ]


@pytest.mark.parametrize("label", [0.5, float("nan"), None])
def test_parquet_rows_without_a_class_are_refused(tmp_path: Path, label: Any) -> None:
    table = pa.table({"image": [b"x"] * 3, "label": pa.array([0.0, 1.0, label])})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"class in row 2 of column label of .*train.parquet.* --label-field"):
        found(tmp_path / "train.parquet", tmp_path)


def test_folders_called_by_numbers_are_imagenets_where_that_is_said(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "all", {f"{k % 2 + 280:04d}/{k}.jpg": "x" for k in range(20)})
    lists = find_images(folder, "imagenet", val_share=0.3)
    assert lists["train"].class_names == {280: "grey fox", 281: "tabby"}
    with pytest.raises(ValueError, match="numbers its classes and does not name them: give --class-names imagenet"):
        find_images(folder)


def test_an_empty_val_says_what_was_not_read(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "all", {"train/cat/1.jpg": "x", "held_out/cat/2.jpg": "x"})
    with pytest.raises(ValueError, match=r"has no photos: .* not read: 1 files beside .* \(first held_out\)"):
        found(folder, tmp_path)


def test_a_folder_of_pictures_is_counted_whole(tmp_path: Path) -> None:
    members: Members = {f"train/{name}/{k}.jpg": "x" for name in ("a", "b") for k in range(3)} | {"val/0.jpg": "x"}
    debris: Members = {
        ".DS_Store": "1",
        "train/.trash/1.jpg": "1",
        "train/.trash/2.jpg": "1",
        "train/a/@eaDir/0.jpg": "1",
        "old/1.jpg": "1",
        "old/deep/2.jpg": "1",
        "README.md": "1",
        "train/notes.txt": "1",
    }
    source = unpacked(tmp_path / "all", {**members, **debris})
    lists = find_images(source, kind="pictures")
    assert keys(lists["train"]) + keys(lists["val"]) == sorted(members)
    assert left_out(lists) == len(debris)


@pytest.mark.parametrize("split", ["", "train/"])
def test_links_to_folders_of_pictures_are_entered_as_class_folders_are(tmp_path: Path, split: str) -> None:
    names = [f"{split}{name}" for name in ("a/1.jpg", "a/2.jpg", "b/deep/1.jpg")]
    source = unpacked(tmp_path / "all", dict.fromkeys([*names, *(["val/1.jpg"] if split else [])], "x"))
    elsewhere = unpacked(tmp_path / "elsewhere", {"1.jpg": "y", "deep/2.jpg": "y"})
    (source / split / "linked").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(source)
    (source / split / "a" / "inner").symlink_to(elsewhere)
    train = find_images(source, kind="pictures", train_only=True)["train"]
    assert keys(train) == sorted([*names, f"{split}linked/1.jpg", f"{split}linked/deep/2.jpg"])
    reasons = train.left_out.reasons
    assert reasons["a link to a folder further down, which is not entered"][0] == 2


def test_two_folders_of_one_split_of_pictures_are_refused(tmp_path: Path) -> None:
    source = unpacked(tmp_path / "all", dict.fromkeys(("train/1.jpg", "training/1.jpg", "val/1.jpg"), "x"))
    with pytest.raises(ValueError, match="two folders of train, train and training: give --source"):
        find_images(source, kind="pictures")
