"""Listing photos: classes by wnid, held-out parts, and what is refused."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from t2ikit.prepare.sources import find_images


def folder_of(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for k in range(count):
            (root / name / f"{k}.jpg").write_bytes(bytes(k))
    return root


def test_classes_come_from_the_wnid(photos: Path) -> None:
    lists = find_images(photos)
    train, val = lists["train"], lists["val"]
    assert train.class_names == {134: "crane", 517: "crane", 0: "tench", 638: "maillot"}
    assert val.class_names == {639: "maillot", 0: "tench"}
    assert len(train) == 12 and len(val) == 6
    for images in (train, val):
        for key, number in zip(images.keys, images.class_ids, strict=True):
            wnid = key.split("/")[1]
            assert {"n02012849": 134, "n03126707": 517, "n01440764": 0, "n03710637": 638, "n03710721": 639}[
                wnid
            ] == number
            assert (photos / key).is_file()


def test_order_is_shuffled_by_the_seed(tmp_path: Path) -> None:
    source = folder_of(tmp_path, n01440764=200, n02012849=200)
    first = find_images(source)["train"]
    again, other = find_images(source)["train"], find_images(source, seed=1)["train"]
    assert first.keys == again.keys != other.keys
    assert 60 < int((first.class_ids[:200] == 0).sum()) < 140
    assert sorted(first.keys) != first.keys


def test_hash_follows_names_and_sizes_not_the_order(tmp_path: Path) -> None:
    source = folder_of(tmp_path, n01440764=40, n02012849=40)
    before = find_images(source, val_share=0.3)["train"]
    assert find_images(source, val_share=0.3)["train"].sha256 == before.sha256
    (source / before.keys[0]).write_bytes(b"more bytes than before, so the size is another")
    assert find_images(source, val_share=0.3)["train"].sha256 != before.sha256


def test_held_out_photos_stay_held_out_when_others_are_added(tmp_path: Path) -> None:
    source = folder_of(tmp_path, n01440764=300)
    before = find_images(source, val_share=0.1)
    assert 10 < len(before["val"]) < 60
    assert not set(before["train"].keys) & set(before["val"].keys)
    (source / "n02012849").mkdir()
    for k in range(100):
        (source / "n02012849" / f"{k}.jpg").write_bytes(b"")
    after = find_images(source, val_share=0.1)
    assert set(before["val"].keys) <= set(after["val"].keys)
    assert set(before["train"].keys) <= set(after["train"].keys)


def test_own_classes(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "photos", cats=30, dogs=30)
    names = tmp_path / "names.tsv"
    names.write_text("dogs\ta good dog\ncats\ttabby cat\nbirds\tbird\n")
    lists = find_images(source, str(names), val_share=0.2)
    assert lists["train"].class_names == {0: "a good dog", 1: "tabby cat"}
    assert Counter(key.split("/")[0] for key in [*lists["train"].keys, *lists["val"].keys]) == {"cats": 30, "dogs": 30}
    assert all(
        (number == 1) == key.startswith("cats")
        for key, number in zip(lists["val"].keys, lists["val"].class_ids, strict=True)
    )


def test_subfolders_hidden_files_and_links(tmp_path: Path) -> None:
    source = folder_of(tmp_path, n01440764=50)
    (source / ".cache").mkdir()
    (source / "n01440764" / ".DS_Store").write_bytes(b"x")
    (source / "n01440764" / "deep").mkdir()
    (source / "n01440764" / "deep" / "a.jpg").write_bytes(b"x")
    (source / "n01440764" / "loop").symlink_to(source / "n01440764")
    (source / "n01440764" / "lost.jpg").symlink_to(source / "nowhere")
    lists = find_images(source, val_share=0.5)
    keys = [*lists["train"].keys, *lists["val"].keys]
    assert len(keys) == 53 and {"n01440764/deep/a.jpg", "n01440764/lost.jpg"} <= set(keys)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--source"):
        find_images(tmp_path / "missing")
    with pytest.raises(ValueError, match="train has no photos.*--source"):
        find_images(tmp_path)
    source = folder_of(tmp_path / "photos", n01440764=2, cats=2)
    with pytest.raises(ValueError, match="1 of 2 class folders.*cats.*no wnid.*--class-names"):
        find_images(source)
    names = tmp_path / "names.tsv"
    names.write_text("cats\tcat\n")
    with pytest.raises(ValueError, match="n01440764, which is not in .*names.tsv"):
        find_images(source, str(names))
    names.write_text("cats\tcat\ndogs dog\n")
    with pytest.raises(ValueError, match="line 2 of .*--class-names"):
        find_images(source, str(names))
    names.write_text("cats\tcat\ncats\tdog\n")
    with pytest.raises(ValueError, match="a second time"):
        find_images(source, str(names))
    with pytest.raises(FileNotFoundError, match="--class-names"):
        find_images(source, str(tmp_path / "none.tsv"))
    one = folder_of(tmp_path / "one", n01440764=1)
    with pytest.raises(ValueError, match="--val-share"):
        find_images(one)
    with pytest.raises(ValueError, match="--val-share must lie"):
        find_images(one, val_share=1.0)


def test_class_ids_are_whole_numbers(photos: Path) -> None:
    assert find_images(photos)["train"].class_ids.dtype == np.int64
