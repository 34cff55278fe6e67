"""Tars that are not unpacked: ImageNet as it is downloaded, a folder in a tar, damaged ones."""

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from t2ikit.cli import main
from t2ikit.prepare.images import prepare_images
from t2ikit.prepare.sources import ImageList, find_images
from t2ikit.prepare.sources.files import LocalFiles, SourceLost
from t2ikit.prepare.sources.paths import split_of
from t2ikit.prepare.sources.tars.tar import OpenTar
from t2ikit.records.manifest import Manifest


def call(*words: str | Path) -> int:
    return main(["prepare", *map(str, words)])


IDS = {1: "n03710721", 2: "n01440764", 1001: "n00001740"}
"""ILSVRC2012_ID of synsets: not in alphabetical order, and inner nodes behind the classes."""


def tar_of(path: Path, members: dict[str, bytes], **options: Any) -> Path:
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    return path


def train_tar(photos: Path, path: Path, folder: Path) -> Path:
    """A tar of class tars, in no order."""
    folder.mkdir(exist_ok=True)
    inner = {}
    for wnid in sorted((photos / "train").iterdir(), reverse=True):
        members = {file.name: file.read_bytes() for file in sorted(wnid.iterdir(), reverse=True)}
        inner[f"{wnid.name}.tar"] = tar_of(folder / f"{wnid.name}.tar", members).read_bytes()
    return tar_of(path, inner)


def meta_mat() -> bytes:
    rows = np.zeros((len(IDS), 1), [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)])
    for row, (number, wnid) in zip(rows[:, 0], IDS.items(), strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = float(number), wnid, "something, anything"
    content = io.BytesIO()
    savemat(content, {"synsets": rows})
    return content.getvalue()


@pytest.fixture
def download(photos: Path, tmp_path: Path) -> Path:
    """What image-net.org gives: train tar, val tar, development kit; the photos of the folder ``photos``."""
    folder = tmp_path / "download"
    folder.mkdir()
    train_tar(photos, folder / "ILSVRC2012_img_train.tar", tmp_path / "classes")
    files = sorted((photos / "val").glob("*/*"), key=lambda file: file.stem[-1])  # classes take turns
    tar_of(
        folder / "ILSVRC2012_img_val.tar",
        {f"ILSVRC2012_val_{k + 1:08d}.JPEG": file.read_bytes() for k, file in enumerate(files)},
    )
    number_of = {wnid: number for number, wnid in IDS.items()}
    truth = "".join(f"{number_of[file.parent.name]}\n" for file in files).encode()
    kit = "ILSVRC2012_devkit_t12"
    with tarfile.open(folder / f"{kit}.tar.gz", "w:gz") as tar:
        for name, content in {
            f"{kit}/readme.txt": b"read me",
            f"{kit}/data/ILSVRC2012_validation_ground_truth.txt": truth,
            f"{kit}/data/meta.mat": meta_mat(),
        }.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    return folder


def contents(images: ImageList) -> list[tuple[int, bytes]]:
    return [(int(images.class_ids[k]), images.read(k)) for k in range(len(images))]


def test_tars_and_their_unpacked_folder_are_the_same_list(download: Path, photos: Path) -> None:
    tars, folder = find_images(download), find_images(photos)
    assert tars["train"].keys == folder["train"].keys and tars["train"].sha256 == folder["train"].sha256
    assert tars["train"].class_names == folder["train"].class_names
    assert contents(tars["train"]) == contents(folder["train"])
    assert sorted(contents(tars["val"])) == sorted(contents(folder["val"]))
    assert {key.split("/")[1] for key in tars["val"].keys} == {"n03710721", "n01440764"}


def test_sets_from_tars_and_from_a_folder_are_equal(download: Path, photos: Path, tmp_path: Path) -> None:
    for source, out in ((download, "a"), (photos, "b")):
        assert call("images", "--source", source, "--out", tmp_path / out, "--size", "8", "--workers", "0") == 0
    tars, folder = (Manifest.read(tmp_path / out / "images/train") for out in "ab")
    assert tars.count == folder.count == 12
    chunks = [{k: v for k, v in one.chunk_sha256.items() if k.endswith(".bin")} for one in (tars, folder)]
    assert chunks[0] == chunks[1] and chunks[0]


def test_tars_given_one_by_one(download: Path, photos: Path) -> None:
    train, val = download / "ILSVRC2012_img_train.tar", download / "ILSVRC2012_img_val.tar"
    both = find_images(train, val_source=val)
    assert contents(both["train"]) == contents(find_images(photos)["train"])
    assert contents(both["val"]) == contents(find_images(download)["val"])
    alone = find_images(train, val_share=0.3)
    assert len(alone["train"]) + len(alone["val"]) == 12 and len(alone["val"]) > 0
    with pytest.raises(ValueError, match="holds val only.*--source.*--val-source"):
        find_images(val)
    mixed = find_images(photos, val_source=val)
    assert mixed["train"].sha256 == both["train"].sha256 and mixed["val"].sha256 == both["val"].sha256


def test_class_tars(photos: Path, tmp_path: Path) -> None:
    """The tar of tars, unpacked once."""
    (tmp_path / "source").mkdir()
    train_tar(photos, tmp_path / "all.tar", tmp_path / "source" / "train")
    lists, folder = find_images(tmp_path / "source", val_source=photos), find_images(photos)
    for split in ("train", "val"):
        assert lists[split].keys == folder[split].keys and contents(lists[split]) == contents(folder[split])


@pytest.mark.parametrize("prefix", ["", "./", "data/imagenet/"])
def test_a_folder_in_a_tar(photos: Path, tmp_path: Path, prefix: str) -> None:
    members = {
        f"{prefix}{file.relative_to(photos).as_posix()}": file.read_bytes() for file in sorted(photos.glob("*/*/*"))
    }
    tar = tar_of(tmp_path / "imagenet.tar", members)
    lists, folder = find_images(tar), find_images(photos)
    for split in ("train", "val"):
        assert lists[split].keys == folder[split].keys and lists[split].sha256 == folder[split].sha256
        assert contents(lists[split]) == contents(folder[split])


def test_lists_go_to_other_processes(download: Path) -> None:
    images = find_images(download)["train"]
    before = contents(images)  # opens the file
    assert contents(pickle.loads(pickle.dumps(images))) == before


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_finds_them(tmp_path: Path, format: int) -> None:
    rng = np.random.default_rng(0)
    members = {f"{'d' * (90 if k % 3 else 3)}/{'n' * (k * 3 + 1)}{k}.jpg": rng.bytes(k * 397) for k in range(30)}
    if format != tarfile.USTAR_FORMAT:
        members |= {"lång väg/" * 30 + "ö.jpg": b"ok", "e" * 300: b""}
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            facts = tarfile.TarInfo(name)
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            facts = tarfile.TarInfo(name)
            facts.type, facts.linkname = kind, "x" * (5 if format == tarfile.USTAR_FORMAT else 200)
            tar.addfile(facts)
        facts = tarfile.TarInfo("last")
        facts.size = 3
        tar.addfile(facts, io.BytesIO(b"end"))
    with tarfile.open(path) as tar:
        expected = [(one.name, one.offset_data, one.size) for one in tar if one.isreg()]
    with OpenTar(LocalFiles(), str(path)) as ours:
        members_and_links = list(ours.members())
        found = [member for member in members_and_links if member.offset >= 0]
        assert [member.name for member in members_and_links if member not in found] == ["link", "hard"]
        assert [tuple(member) for member in found] == expected and len(found) == len(members) + 1
        assert {member.name: ours.content(member) for member in found} == {**members, "last": b"end"}


def test_sizes_in_a_pax_header_count(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        facts = tarfile.TarInfo("a")
        facts.size, facts.pax_headers = 700, {"comment": "x = y\nz", "size": "700"}
        tar.addfile(facts, io.BytesIO(bytes(700)))
        tar.addfile(tarfile.TarInfo("b"))
    with OpenTar(LocalFiles(), str(path)) as tar_file:
        assert [(member.name, member.size) for member in tar_file.members()] == [("a", 700), ("b", 0)]


def spoil_header(content: bytearray) -> None:
    content[len(content) // 2 // 512 * 512 :] = b"\xff" * (len(content) - len(content) // 2 // 512 * 512)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: content.__delitem__(slice(len(content) // 2, None)), "not complete"),
        (lambda content: content.__delitem__(slice(-10240, None)), "not complete"),
        (spoil_header, "damaged|not complete"),
        (lambda content: content.__setitem__(slice(0, 600), b"<html>" * 100), "no tar"),
        (lambda content: content.clear(), "not complete"),
    ],
    ids=["half", "no end mark", "damaged", "html", "empty"],
)
def test_damaged_tars_are_named_before_any_work(
    download: Path, spoil: Callable[[bytearray], None], message: str
) -> None:
    path = download / "ILSVRC2012_img_train.tar"
    content = bytearray(path.read_bytes())
    spoil(content)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"ILSVRC2012_img_train.tar.*({message}).*byte.*--source"):
        find_images(path)


def test_a_damaged_member_header_is_no_end(tmp_path: Path) -> None:
    """``tarfile`` stops there without a word."""
    path = tar_of(tmp_path / "a.tar", {f"n01440764/{k}.jpg": bytes(100) for k in range(10)})
    content = bytearray(path.read_bytes())
    content[5 * 1024 + 148] ^= 1  # its check sum
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 5
    with pytest.raises(ValueError, match="damaged.*at byte 5,120"):
        find_images(path)


@pytest.mark.parametrize("fault", ["one zeroed header", "two zeroed blocks", "a second tar behind the end"])
def test_what_follows_an_empty_header_is_not_lost(tmp_path: Path, fault: str) -> None:
    path = tar_of(tmp_path / "a.tar", {f"n01440764/{k}.jpg": b"x" * 100 for k in range(6)})
    content = bytearray(path.read_bytes())
    place = 1024
    if fault == "a second tar behind the end":
        place = 6 * 1024
        content += bytes(content)
    else:
        size = 512 if fault == "one zeroed header" else 1024
        content[place : place + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"a.tar is damaged: a header is empty, but more follows.*at byte {place:,} of"
    ):
        find_images(path)


def test_one_empty_block_ends_a_tar(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {f"n01440764/{k}.jpg": bytes(100) for k in range(6)})
    path.write_bytes(path.read_bytes()[: 6 * 1024 + 512])
    assert sum(map(len, find_images(path, val_share=0.3).values())) == 6


def linked_folder(photos: Path, folder: Path) -> Path:
    """The photos with hard links, symbolic links, links to links, and links that lead nowhere."""
    shutil.copytree(photos, folder)
    one, other = folder / "train/n01440764", folder / "train/n02012849"
    os.link(one / "n01440764_0.JPEG", other / "hard.JPEG")
    (one / "a_link.JPEG").symlink_to("n01440764_1.JPEG")
    (one / "to_another_folder.JPEG").symlink_to("../n02012849/n02012849_2.JPEG")
    (one / "to_a_link.JPEG").symlink_to("./a_link.JPEG")
    (other / "missing.JPEG").symlink_to("../gone.JPEG")
    (other / "outside.JPEG").symlink_to("../../../elsewhere.JPEG")
    (other / "circle.JPEG").symlink_to("circle.JPEG")
    return folder


def test_links_in_a_tar_are_the_files_that_they_name(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = linked_folder(photos, tmp_path / "folder")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, "./imagenet")
        assert {header.type for header in tar.getmembers()} >= {tarfile.LNKTYPE, tarfile.SYMTYPE}
    for split, images in find_images(folder).items():
        from_tar = find_images(tmp_path / "a.tar")[split]
        assert from_tar.keys == images.keys and from_tar.sha256 == images.sha256
    sets = [prepare_images(str(source), tmp_path / "out" / source.stem, 16) for source in (folder, tmp_path / "a.tar")]
    chunks = [made["train"].chunk_sha256["chunk-0-0.bin"] for made in sets]
    assert chunks[0] == chunks[1] and sets[0]["train"].count == 16
    assert capsys.readouterr().out.count(", 3 files could not be used") == 2
    bad = (tmp_path / "out/a/images/bad_train.tsv").read_text().splitlines()
    assert sorted(bad) == [
        f"train/n02012849/{name}.JPEG\tcannot be read: a link to a file that is not in the tar"
        for name in ("circle", "missing", "outside")
    ]
    with pytest.raises(ValueError, match=r"a.tar from byte \d.*cannot be read: a link to a file"):
        prepare_images(str(tmp_path / "a.tar"), tmp_path / "strict", 16, strict=True)


def test_links_that_cannot_be_taken_are_refused(photos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "folder"))
    (folder / "train/n07753592").symlink_to("n01440764")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(folder, "imagenet")
    with pytest.raises(ValueError, match=r"a link to a folder, imagenet/train/n07753592, which is not"):
        find_images(tmp_path / "a.tar")
    header = tarfile.TarInfo("n01440764.tar")
    header.type, header.linkname = tarfile.SYMTYPE, "gone.tar"
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as tar:
        tar.addfile(header)
    with pytest.raises(ValueError, match="n01440764.tar is a link to a file that is not in the tar.*--source"):
        find_images(tmp_path / "ILSVRC2012_img_train.tar")


def test_a_tar_that_has_gone_or_shrunk(download: Path) -> None:
    path = download / "ILSVRC2012_img_train.tar"
    images = find_images(path, val_share=0.1)["train"]
    content = path.read_bytes()
    path.write_bytes(content[:3000])
    with pytest.raises(OSError, match="ends after"):
        for k in range(len(images)):
            images.read(k)
    path.unlink()
    with pytest.raises(SourceLost, match="ILSVRC2012_img_train.tar"):
        pickle.loads(pickle.dumps(images)).read(0)


def test_index_is_kept_while_the_tar_is_the_same(
    download: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    first = find_images(download, index=index)
    assert len(list(index.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(OpenTar, "members", lambda *args: pytest.fail("read again"))
        with pytest.raises(pytest.fail.Exception):
            find_images(download)
        patch.setattr(
            "t2ikit.prepare.sources.tars.listing._kind",
            lambda files, path, groups, asked: "tar of tars" if "train" in path else "validation",
        )
        again = find_images(download, index=index)
    for split in ("train", "val"):
        assert again[split].keys == first[split].keys and again[split].sha256 == first[split].sha256
        assert contents(again[split]) == contents(first[split])
    path = download / "ILSVRC2012_img_train.tar"
    tar_of(path, {"n01440764.tar": tar_of(tmp_path / "one.tar", {"a.JPEG": b"a", "b.JPEG": b"bb"}).read_bytes()})
    changed = find_images(download, index=index)["train"]
    assert sorted(contents(changed)) == [(0, b"a"), (0, b"bb")]


@pytest.mark.parametrize("form", ["folder", "files", "wnids", "named", "kaggle"])
def test_every_form_of_ground_truth(download: Path, photos: Path, tmp_path: Path, form: str) -> None:
    expected = contents(find_images(download)["val"])
    kit = download / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(kit) as tar:
        tar.extractall(tmp_path, filter="data")
    kit.unlink()
    with pytest.raises(FileNotFoundError, match="--val-labels.*ILSVRC2012_devkit_t12.tar.gz.*wnid"):
        find_images(download)
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    ids = (data / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
    wnids = [IDS[int(number)] for number in ids]
    names = [f"ILSVRC2012_val_{k + 1:08d}" for k in range(len(ids))]
    labels = {
        "folder": tmp_path / "ILSVRC2012_devkit_t12",
        "files": data / "ILSVRC2012_validation_ground_truth.txt",
        "wnids": tmp_path / "val.txt",
        "named": tmp_path / "named.txt",
        "kaggle": tmp_path / "LOC_val_solution.csv",
    }[form]
    if form == "wnids":
        labels.write_text("\n".join(wnids))
    elif form == "named":
        labels.write_text("".join(f"val/{n}.JPEG\t{w}\n" for n, w in reversed([*zip(names, wnids, strict=True)])))
    elif form == "kaggle":
        rows = (f"{n},{w} 10 20 30 40 {w} 1 2 3 4 \n" for n, w in zip(names, wnids, strict=True))
        labels.write_text("ImageId,PredictionString\n" + "".join(rows))
    assert contents(find_images(download, val_labels=str(labels))["val"]) == expected


def test_flat_val_folder_beside_class_folders(download: Path, photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "CLS-LOC"
    (source / "val").mkdir(parents=True)
    (source / "train").symlink_to(photos / "train")
    with tarfile.open(download / "ILSVRC2012_img_val.tar") as tar:
        tar.extractall(source / "val", filter="data")
    with pytest.raises(FileNotFoundError, match="--val-labels"):
        find_images(source)
    (download / "ILSVRC2012_devkit_t12.tar.gz").rename(source / "ILSVRC2012_devkit_t12.tar.gz")
    lists = find_images(source)
    assert sorted(contents(lists["val"])) == sorted(contents(find_images(photos)["val"]))
    assert lists["train"].sha256 == find_images(photos)["train"].sha256


def test_ground_truth_that_does_not_fit(download: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    for text, message in {
        "n01440764\n": "tells no class of .*ILSVRC2012_val_0000000.*--val-labels",
        "1\n2\n": "no .*meta.mat",
        "tench\n": "no ground truth that can be read.*--val-labels",
        "": "no ground truth|tells no class",
    }.items():
        labels.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            find_images(download, val_labels=str(labels))
    (tmp_path / "meta.mat").write_bytes(meta_mat())
    labels.write_text("1\n2\n7\n")
    with pytest.raises(ValueError, match="names 7, which meta.mat does not have"):
        find_images(download, val_labels=str(labels))
    (tmp_path / "meta.mat").write_bytes(b"not a matrix")
    with pytest.raises(ValueError, match="meta.mat or the ground truth cannot be read"):
        find_images(download, val_labels=str(labels))
    with pytest.raises(FileNotFoundError, match="there is no file .*none.txt.*--val-labels"):
        find_images(download, val_labels=str(tmp_path / "none.txt"))
    kit = download / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(kit.read_bytes()[:200])
    with pytest.raises(ValueError, match="devkit_t12.tar.gz cannot be read"):
        find_images(download)


def test_refused_tars(tmp_path: Path) -> None:
    test = tar_of(tmp_path / "ILSVRC2012_img_test.tar", {"ILSVRC2012_test_00000001.JPEG": b"x"})
    with pytest.raises(ValueError, match="classes are not public"):
        find_images(test)
    packed = tmp_path / "train.tar.gz"
    packed.write_bytes(b"x")
    with pytest.raises(ValueError, match="is compressed.*gunzip.*--source"):
        find_images(packed)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="has no form that.*WebDataset.*Parquet|Parquet.*WebDataset"):
        find_images(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="cats, which is no wnid.*--class-names"):
        find_images(tar_of(tmp_path / "own.tar", {"train/cats/1.jpg": b"x"}))


def test_splits_are_told_by_names() -> None:
    for path, split in {
        "a/train-00000-of-00294.parquet": "train",
        "a/validation-00001-of-00014.parquet": "val",
        "imagenet1k-train-0001.tar": "train",
        "x/val_03.tar": "val",
        "x/test-0.tar": "test",
        "default/train/0000.parquet": "train",
        "val/0.tar": "val",
        "test_data/0.tar": "",
        "x/trained-0.tar": "",
        "x/shard-0.tar": "",
    }.items():
        assert split_of(path) == split, path
