"""Parquet folders of the Hub, WebDataset shards, and sources behind a URL."""

import errno
import json
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import tiny
from t2ikit.cli import main
from t2ikit.prepare.sources import ImageList, SourceLost, find_images
from t2ikit.prepare.sources.classes import imagenet_classes
from t2ikit.prepare.sources.paths import expand, files_of
from t2ikit.prepare.sources.remote import RemoteFiles
from t2ikit.records.record_set import RecordSet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = [name for _, name in imagenet_classes().values()]


def contents(images: ImageList) -> list[tuple[int, bytes]]:
    return [(int(images.class_ids[k]), images.read(k)) for k in range(len(images))]


def parquet(
    path: Path,
    photos: list[tuple[str | None, bytes | None, Any]],
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    group: int = 4,
    **more: list[Any],
) -> Path:
    """A file as `datasets` writes it."""
    image, label = columns
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if names is not None:
        features[label] = {"names": names, "_type": "ClassLabel"}
    table = pa.table(
        {
            image: pa.array(
                [{"bytes": content, "path": name} for name, content, _ in photos],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            label: [number for _, _, number in photos],
            **more,
        }
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def photo(number: int) -> bytes:
    return f"photo {number} ".encode() * (number % 7 + 1)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The layout of `imagenet-1k`: 3 shards of train with 20 photos each in groups of 4, one of val, one of test."""
    folder = tmp_path / "imagenet-1k"
    for shard in range(3):
        rows = [(f"n0_{k}.JPEG", photo(k), 7 * k % 1000) for k in range(20 * shard, 20 * shard + 20)]
        parquet(folder / f"data/train-0000{shard}-of-00003.parquet", rows, NAMES)  # type: ignore[arg-type]
    parquet(folder / "data/validation-00000-of-00001.parquet", [(f"v{k}.JPEG", photo(k), k) for k in range(9)], NAMES)
    parquet(folder / "data/test-00000-of-00001.parquet", [(f"t{k}.JPEG", photo(k), -1) for k in range(9)], NAMES)
    return folder


def test_parquet_folder(hub: Path) -> None:
    lists = find_images(hub)
    train, val = lists["train"], lists["val"]
    assert len(train) == 60 and len(val) == 9
    assert sorted(contents(train)) == sorted((7 * k % 1000, photo(k)) for k in range(60))
    assert sorted(contents(val)) == sorted((k, photo(k)) for k in range(9))
    assert set(train.keys) == {f"train/n0_{k}.JPEG" for k in range(60)}
    for images in (train, val):
        for k, key in enumerate(images.keys):
            number = int("".join(filter(str.isdigit, Path(key).stem.removeprefix("n0_"))))
            assert images.read(k) == photo(number)
            assert images.class_names[int(images.class_ids[k])] == NAMES[int(images.class_ids[k])]
    assert contents(pickle.loads(pickle.dumps(train))) == contents(train)
    assert find_images(hub / "data")["train"].sha256 == train.sha256
    assert "row group" in train.where(0) and ".parquet" in train.where(0)


def test_row_groups_stay_together_and_are_shuffled(hub: Path) -> None:
    """A photo costs its whole group, so neighbours in the list share one."""
    order = [int(key.removeprefix("train/n0_").removesuffix(".JPEG")) for key in find_images(hub)["train"].keys]
    groups = [number // 4 for number in order]
    assert sum(a != b for a, b in zip(groups, groups[1:], strict=False)) == 14
    assert groups[::4] != sorted(groups[::4]) and [k % 4 for k in order] != [0, 1, 2, 3] * 15
    other = [int(key[9:-5]) for key in find_images(hub, seed=1)["train"].keys]
    assert other != order and sorted(other) == sorted(order)


def test_sorted_parquet_is_mixed(tmp_path: Path) -> None:
    rows = [(f"{k}.jpg", photo(k), k // 40) for k in range(200)]
    source = parquet(tmp_path / "train.parquet", rows, list("abcde"), group=100)
    labels = find_images(source, val_share=0.01)["train"].class_ids
    changes = np.count_nonzero(labels[1:] != labels[:-1])
    assert 12 <= changes <= 30  # runs of 8, not of 100 and not of 1


def test_parquet_without_paths_or_with_the_same_ones(tmp_path: Path) -> None:
    for name, path in {"none": None, "same": "image.jpg"}.items():
        source = parquet(tmp_path / name / "train.parquet", [(path, photo(k), k % 2) for k in range(10)], ["a", "b"])
        lists = find_images(source, val_share=0.3)
        assert {*lists["train"].keys, *lists["val"].keys} == {f"train/train/{k:06d}" for k in range(10)}
        assert sorted(contents(lists["train"]) + contents(lists["val"])) == sorted((k % 2, photo(k)) for k in range(10))


def test_parquet_files_of_one_name_have_keys_of_their_own(tmp_path: Path) -> None:
    for number, name in enumerate(("a/0.parquet", "b/0.parquet", "b/1.parquet")):
        parquet(tmp_path / "all" / name, [(None, photo(4 * number + k), k % 2) for k in range(4)], ["a", "b"])
    lists = find_images(tmp_path / "all", val_share=0.3)
    by_key = {key: images.read(k) for images in lists.values() for k, key in enumerate(images.keys)}
    shards = ("a/0", "b/0", "1")
    assert by_key == {f"train/{shards[k // 4]}/{k % 4:06d}": photo(k) for k in range(12)}


def test_parquet_columns_and_class_names(tmp_path: Path) -> None:
    rows = [(f"{k}.jpg", photo(k), k % 2) for k in range(40)]
    source = parquet(tmp_path / "a.parquet", rows, None, ("img", "fine"), coarse=[k % 3 for k in range(40)])
    with pytest.raises(ValueError, match="fine, coarse with --label-field"):
        find_images(source)
    with pytest.raises(ValueError, match="no column colour.*--label-field"):
        find_images(source, label_field="colour")
    with pytest.raises(ValueError, match="does not name them.*--class-names imagenet"):
        find_images(source, label_field="fine")
    names = tmp_path / "names.tsv"
    names.write_text("x\tfirst\ny\tsecond\nz\tthird\n")
    lists = find_images(source, str(names), val_share=0.3, label_field="coarse")
    assert lists["train"].class_names == {0: "first", 1: "second", 2: "third"}
    assert find_images(source, "imagenet", 0.3, label_field="fine")["train"].class_names == {
        0: "tench",
        1: "goldfish",
    }
    names.write_text("x\tfirst\n")
    with pytest.raises(ValueError, match="photos of class 1, but .* 0 .. 0.*--class-names"):
        find_images(source, str(names), label_field="fine")
    by_wnid = parquet(tmp_path / "b.parquet", rows, ["n02012849", "n01440764"])
    assert find_images(by_wnid, val_share=0.3)["train"].class_names == {134: "crane", 0: "tench"}
    words = parquet(
        tmp_path / "c.parquet", [(f"{k}.jpg", photo(k), ["n02012849", "n01440764"][k % 2]) for k in range(10)]
    )
    assert find_images(words, val_share=0.3)["train"].class_names == {134: "crane", 0: "tench"}


def test_bad_rows_and_damaged_groups(hub: Path) -> None:
    path = hub / "data/train-00001-of-00003.parquet"
    parquet(path, [(f"n0_{k}.JPEG", None if k == 25 else photo(k), k) for k in range(20, 40)], NAMES)
    train = find_images(hub)["train"]
    bad = list(train.keys).index("train/n0_25.JPEG")
    with pytest.raises(OSError, match="holds no bytes"):
        train.read(bad)
    group = pq.ParquetFile(path).metadata.row_group(2).column(0)
    content = bytearray(path.read_bytes())
    start = group.dictionary_page_offset or group.data_page_offset
    content[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(content)
    failed = set()
    for k in range(len(train)):
        try:
            train.read(k)
        except OSError as error:
            assert error.errno in (errno.EIO, errno.ENODATA) and error.strerror
            failed.add(train.keys[k])
    assert failed == {f"train/n0_{k}.JPEG" for k in (25, 28, 29, 30, 31)}
    path.write_bytes(bytes(content[:-20]))
    with pytest.raises(ValueError, match="train-00001.*not complete.*download it again"):
        find_images(hub)
    path.unlink()
    with pytest.raises(SourceLost):
        for k in range(len(train)):
            pickle.loads(pickle.dumps(train)).read(k)


def test_too_many_open_files_are_no_bad_photos(hub: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    lists = [find_images(source)["train"] for source in (hub, photos)]
    monkeypatch.setattr(pq, "ParquetFile", full)
    monkeypatch.setattr("os.open", full)
    for images in lists:
        with pytest.raises(SourceLost, match="Too many open files"):
            images.read(0)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "wds"
    for number in range(12):
        members: dict[str, bytes | str] = {}
        for k in range(3 * number, 3 * number + 3):
            members |= {f"{k:05d}.cls": str(k % 5), f"{k:05d}.jpg": photo(k), f"{k:05d}.txt": "no caption of ours"}
        tiny.packed(folder / f"set-train-{number:03d}.tar", members)
    tiny.packed(
        folder / "set-val-000.tar", {"a.png": photo(3), "a.json": '{"label": 2}', "b.webp": b"b", "b.cls": "4\n"}
    )
    return folder


def test_shards_of_one_name_have_keys_of_their_own(tmp_path: Path) -> None:
    names, index = ("2024/a/00000.tar", "2024/b/00000.tar", "2024/b/00001.tar"), tmp_path / "index"
    for number, name in enumerate(names):
        members: dict[str, bytes | str] = {}
        for k in range(6):
            members |= {f"{k}.jpg": photo(6 * number + k), f"{k}.cls": str(k % 2)}
        tiny.packed(tmp_path / "all" / name, members)
    before = find_images(f"{tmp_path}/all/2024/b/*.tar", "imagenet", 0.3, index=index)
    assert {key.split("/")[0] for images in before.values() for key in images.keys} == {"00000", "00001"}
    for _ in range(2):  # the second time out of the kept index
        lists = find_images(tmp_path / "all", "imagenet", 0.3, index=index)
        by_key = {key: images.read(k) for images in lists.values() for k, key in enumerate(images.keys)}
        folders = ("a/00000", "b/00000", "00001")
        assert by_key == {f"{folders[k // 6]}/{k % 6}.jpg": photo(k) for k in range(18)}


def test_photos_of_one_key_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        members: dict[str, bytes | str] = {f"n01440764/{k}.jpg": photo(k) for k in range(6)}
        tiny.packed(tmp_path / "all" / f"{name}.tar", members)
    with pytest.raises(
        ValueError, match=r"two photos are called n01440764/\d.jpg \(.*a.tar from byte .* and .*b.tar.*--source without"
    ):
        find_images(tmp_path / "all", val_share=0.3)
    single = tmp_path / "all" / "a.tar"
    assert len(find_images(single, val_share=0.3)["train"]) < 6
    tiny.packed(tmp_path / "val" / "val.tar", {"x/n01440764/1.jpg": b"1", "y/n01440764/1.jpg": b"2"})
    with pytest.raises(ValueError, match="two photos are called val/n01440764/1.jpg .* give --val-source without"):
        find_images(single, val_source=tmp_path / "val" / "val.tar")


def test_webdataset(shards: Path) -> None:
    lists = find_images(shards, "imagenet")
    assert sorted(contents(lists["train"])) == sorted((k % 5, photo(k)) for k in range(36))
    assert sorted(contents(lists["val"])) == [(2, photo(3)), (4, b"b")]
    assert "train/set-train-003/00010.jpg" in lists["train"].keys
    assert lists["train"].class_names[1] == "goldfish"
    pattern = find_images(f"{shards}/set-train-{{000..003}}.tar", "imagenet", val_source=f"{shards}/set-val-*.tar")
    assert sorted(contents(pattern["train"])) == sorted((k % 5, photo(k)) for k in range(12))
    assert sorted(contents(pattern["val"])) == sorted(contents(lists["val"]))
    with pytest.raises(ValueError, match="--class-names imagenet"):
        find_images(shards)
    with pytest.raises(FileNotFoundError, match="set-train-012.tar.*--source"):
        find_images(f"{shards}/set-train-{{010..012}}.tar", "imagenet")


def test_webdataset_named_by_wnid_is_imagenet(tmp_path: Path) -> None:
    tar = tiny.packed(
        tmp_path / "imagenet-train-0.tar",
        {f"n02012849_{k}.{e}": c for k in range(9) for e, c in (("jpg", photo(k)), ("cls", "134"))},
    )
    assert find_images(tar, val_share=0.3)["train"].class_names == {134: "crane"}
    words = tiny.packed(
        tmp_path / "words.tar", {f"{k}.{e}": c for k in range(9) for e, c in (("jpg", photo(k)), ("cls", "n02012849"))}
    )
    assert find_images(words, val_share=0.3)["train"].class_names == {134: "crane"}


@pytest.mark.parametrize(
    ("members", "field", "message"),
    [
        ({"a.jpg": b"x"}, None, "a has no label.*a.cls.*--label-field"),
        ({"a.jpg": b"x", "a.json": '{"kind": 1}'}, None, r"a has no label.*--label-field \(it has \['kind'\]\)"),
        ({"a.jpg": b"x", "a.cls": "1"}, "kind", "field kind in a.json"),
        ({"a.jpg": b"x", "a.json": "{"}, None, "label of a cannot be read"),
        ({"a.jpg": b"x", "a.cls": "1", "b.jpg": b"x", "b.cls": "cat"}, None, "all by words or by numbers"),
        ({"a.txt": "x"}, None, "no photos"),
    ],
)
def test_webdataset_refusals(tmp_path: Path, members: dict[str, bytes | str], field: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_images(tiny.packed(tmp_path / "a.tar", members), "imagenet", label_field=field)


def test_webdataset_fields_and_odd_names(tmp_path: Path) -> None:
    tar = tiny.packed(
        tmp_path / "a.tar",
        {
            "./x/1.seg.png": b"mask", "./x/1.jpg": b"one", "./x/1.json": '{"kind": "3", "label": 9}',
            "x/2.JPEG": b"two", "x/2.json": '{"kind": [4]}',
            "x/3.json": '{"kind": 5}', "x/3.txt": "its photo could not be downloaded",
        },
    )  # fmt: skip
    lists = find_images(tar, "imagenet", val_source=tar, label_field="kind")
    assert sorted(contents(lists["train"])) == sorted(contents(lists["val"])) == [(3, b"one"), (4, b"two")]


@pytest.fixture
def memory() -> str:
    system = fsspec.filesystem("memory")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def upload(folder: Path, url: str) -> None:
    fsspec.filesystem("memory").put(f"{folder}/", f"{url}/", recursive=True)


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_a_url_gives_the_same_list(kind: str, photos: Path, hub: Path, shards: Path, memory: str) -> None:
    local = {"folder": photos, "parquet": hub, "webdataset": shards}[kind]
    upload(local, memory)
    here, there = find_images(local, "imagenet"), find_images(memory, "imagenet")
    for split in ("train", "val"):
        assert there[split].keys == here[split].keys and there[split].sha256 == here[split].sha256
        assert contents(pickle.loads(pickle.dumps(there[split]))) == contents(here[split])
    if kind == "webdataset":
        few = find_images(f"{memory}/set-train-{{000..001}}.tar", "imagenet", val_source=f"{memory}/set-val-*.tar")
        assert len(few["train"]) == 6 and len(few["val"]) == 2
    assert there["train"].where(0).startswith("memory://bucket/")


def test_file_urls(photos: Path) -> None:
    assert find_images(f"file://{photos}")["train"].sha256 == find_images(photos)["train"].sha256


def test_a_missing_object_is_a_bad_photo_and_a_lost_network_stops(
    photos: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(photos, memory)
    images = find_images(memory)["train"]
    first = images.read(1)
    fsspec.filesystem("memory").rm(images.where(0))
    with pytest.raises(FileNotFoundError):
        images.read(0)
    system = type(fsspec.filesystem("memory"))
    whole, calls = system.cat_file, []

    def flaky(self: Any, path: str, **options: Any) -> bytes:
        calls.append(path)
        if len(calls) < 3:
            raise TimeoutError("no answer")
        return whole(self, path, **options)

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(system, "cat_file", flaky)
    assert images.read(1) == first and len(calls) == 3
    monkeypatch.setattr(system, "cat_file", lambda *args, **options: (_ for _ in ()).throw(ConnectionError("down")))
    with pytest.raises(SourceLost, match="ConnectionError: down"):
        images.read(1)


def test_a_lost_network_ends_the_command_and_spoils_nothing(
    photos: Path, memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    upload(photos, memory)
    words = ["prepare", "images", "--source", memory, "--out", str(tmp_path), "--size", "8", "--workers", "0"]
    system = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with monkeypatch.context() as patch:
        patch.setattr(system, "cat_file", lambda *args, **options: (_ for _ in ()).throw(ConnectionError("down")))
        assert main(words) == 2
    error = capsys.readouterr().err
    assert "ConnectionError: down. What is done is kept: give the same command again" in error
    assert main(words) == 0
    assert RecordSet(tmp_path / "images/train").manifest.count == 12 and not list(tmp_path.glob("images/bad_*"))


def test_a_folder_that_has_gone_is_no_pile_of_bad_photos(photos: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(photos, tmp_path / "copy"))
    images = find_images(copy)["train"]
    (copy / images.keys[0]).unlink()
    with pytest.raises(FileNotFoundError):
        images.read(0)
    copy.rename(tmp_path / "unplugged")
    with pytest.raises(SourceLost, match="there is no folder"):
        images.read(1)


def test_urls_that_need_a_package_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install it")

    with pytest.raises(ValueError, match="--source nope://bucket/x cannot be opened.*nope.*s3://"):
        find_images("nope://bucket/x")
    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    for protocol, package in {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub", "abfs": "adlfs"}.items():
        with pytest.raises(ValueError, match=f"--source.*{protocol}://.*pip install {package}"):
            files_of(f"{protocol}://bucket/x")


def test_parquet_without_pyarrow_names_the_extra(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pyarrow.*pip install t2ikit\[parquet\]"):
        find_images(hub)


def test_hub_urls_are_known() -> None:
    assert isinstance(files_of("hf://datasets/a/b"), RemoteFiles)


def test_patterns(tmp_path: Path) -> None:
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    for name in ("x1.tar", "x2.tar", "y1.tar"):
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/x*.tar") == [f"{tmp_path}/x1.tar", f"{tmp_path}/x2.tar"]
    with pytest.raises(FileNotFoundError, match="z.*--source"):
        expand(f"{tmp_path}/z*.tar")
