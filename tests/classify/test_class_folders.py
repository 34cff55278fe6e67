"""ClassFolders: labels by folder, batches as pure functions of the seed, and a message for every bad input."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from class_pictures import WNIDS, fill
from PIL import Image

from t2ikit.classify import ClassFolders
from tiny import assert_same

Options = Callable[..., dict[str, object]]


def data(options: dict[str, object]) -> ClassFolders:
    """With its pictures checked."""
    built = ClassFolders(**options)  # type: ignore[arg-type]
    built.find_data()
    return built


def test_labels_go_by_the_folder_not_by_its_place(options: Options, folders: Path) -> None:
    fill(folders / "train", 4, 5, ("n09999999",))  # another class of ImageNet: left out, and shifts nothing
    found = data(options(held_out=0.0)).sets
    assert len(found.train) == 24 and len(found.tests["real"]) == 12 and found.val is None
    for pictures in (found.train, found.tests["real"]):
        for row, (key, label) in enumerate(zip(pictures.keys, pictures.labels, strict=True)):
            assert WNIDS[label] == Path(key).parent.name
            assert pictures.read(row).mean((1, 2)).argmax() == label


def test_a_tenth_of_every_class_is_held_out_and_subsets_are_nested(options: Options) -> None:
    sets = data(options(held_out=0.25)).sets
    assert sets.val is not None
    assert sets.val.counts(3) == [2, 2, 2] and sets.train.counts(3) == [6, 6, 6]
    assert not {*sets.val.keys} & {*sets.train.keys}
    taken = [{*data(options(held_out=0.0, per_class=count)).sets.train.keys} for count in (2, 4, 8)]
    assert [len(keys) for keys in taken] == [6, 12, 24] and taken[0] < taken[1] < taken[2]
    other = data(options(held_out=0.0, per_class=2, seed=1)).sets.train
    assert {*other.keys} != taken[0]


def everything(built: ClassFolders, epochs: int = 1) -> dict[tuple[int, int], torch.Tensor]:
    """Every training picture by (epoch, its key)."""
    stream = built.training_stream()
    seen = {}
    for position in range(epochs * len(stream)):
        batch = stream[position]
        for row, index in enumerate(batch.index.tolist()):
            seen[position // len(stream), index] = batch.images[row]
    return seen


def test_batches_are_functions_of_seed_epoch_and_picture(options: Options) -> None:
    built = data(options(held_out=0.0))
    first = everything(built, 2)
    assert len(first) == 48  # every picture once an epoch
    assert not torch.equal(first[0, 3], first[1, 3])
    again = everything(data(options(held_out=0.0, batch_size=5)), 2)
    assert all(torch.equal(image, again[key]) for key, image in first.items())
    stream = built.training_stream()
    assert len(stream) == 4 and len(stream[3].labels) == 3  # the last step of an epoch is smaller
    assert stream[0].index.tolist() != stream[4].index.tolist()


def test_ranks_and_micro_batches_share_a_step(options: Options) -> None:
    built = data(options(held_out=0.0, batch_size=8))
    whole = built.training_stream()[1].index.tolist()
    parts = []
    for rank in range(2):
        stream = built.training_stream()
        stream.accumulate, stream.world_size, stream.rank = 2, 2, rank
        parts += [stream[position].index.tolist() for position in (2, 3)]
    assert sorted(index for part in parts for index in part) == sorted(whole) and all(len(part) == 2 for part in parts)


def test_names_of_files_decide_nothing(options: Options, folders: Path) -> None:
    before = data(options())
    batch = before.training_stream()[1]
    for file in (folders / "train" / WNIDS[0]).iterdir():
        file.rename(file.with_name(f"z{9 - int(file.stem)}.png"))
    after = data(options())
    assert after.description() == before.description()
    assert_same(after.training_stream()[1], batch)


def test_grey_transparent_and_cmyk_pictures_are_converted(options: Options, folders: Path) -> None:
    for mode in ("L", "RGBA", "CMYK", "P"):
        name = f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new("RGB", (20, 18), (9, 90, 200)).convert(mode).save(folders / "train" / WNIDS[0] / name)
    with pytest.warns(UserWarning, match=r"unequal numbers.*from 8 .*to 12"):
        sets = data(options(held_out=0.0)).sets
    assert sets.train.counts(3) == [12, 8, 8]
    assert sets.train.description["formats"] == {"jpeg": 1, "png": 27}


def test_prepared_sets_are_labelled_by_class_id(options: Options, tmp_path: Path, write: Callable[..., Path]) -> None:
    root = write(tmp_path / "images" / "train", [1, 27, 25, 28, 1, 25, 25, 1], with_class=True)
    (tmp_path / "amphibians.tsv").write_text("n01443537\tfish\nn01629819\tsalamander\n")  # numbers 1 and 25 of ImageNet
    sets = data(options(train=str(root), held_out=0.0, classes=str(tmp_path / "amphibians.tsv"), tests={})).sets
    assert sets.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(sets.train.keys) == ["0", "2", "4", "5", "6", "7"] and sets.train.read(0).shape == (3, 20, 18)
    without = write(tmp_path / "images" / "val", [1, 25], with_class=False)
    with pytest.raises(ValueError, match="has no class_id"):
        data(options(train=str(without), tests={}))


# ------------------------------------------------------------------ bad input


def remove(folders: Path) -> None:
    shutil.rmtree(folders / "train" / WNIDS[1])


def add_unknown(folders: Path) -> None:
    (folders / "test" / "n0144353").mkdir()


def leave_one(folders: Path) -> None:
    for file in sorted((folders / "train" / WNIDS[2]).iterdir())[1:]:
        file.unlink()


def cut(folders: Path) -> None:
    file = folders / "test" / WNIDS[0] / "2.png"
    file.write_bytes(file.read_bytes()[:200])


def shrink(folders: Path) -> None:
    Image.new("RGB", (8, 30)).save(folders / "train" / WNIDS[0] / "3.png")


def share(folders: Path) -> None:
    shutil.copy(folders / "train" / WNIDS[0] / "3.png", folders / "test" / WNIDS[1] / "other.png")


def nothing(folders: Path) -> None:
    """The options are bad."""


@pytest.mark.filterwarnings("ignore:.*unequal numbers")
@pytest.mark.parametrize(
    ("change", "others", "message"),
    [
        (nothing, {"train": "nowhere"}, r"data\.train: there is no folder nowhere"),
        (remove, {}, r"data\.train: .* has no picture of 1 of the 3 classes, the first one n01629819 \(class 1\)"),
        (add_unknown, {}, r"data\.tests\.real: .*n0144353 is no folder of the classes.*nearest known: 'n01443537'"),
        (leave_one, {}, r"data\.train: class n01641577 \(class 2\) has 1 picture; at least 2"),
        (cut, {}, r"data\.tests\.real: .*n01443537/2\.png cannot be read"),
        (shrink, {}, r"data\.train: .*3\.png: 8 x 30 pixels; at least 9"),
        (share, {}, r"data\.tests\.real: 1 of 13 pictures .* are in data\.train too, .*other\.png"),
        (nothing, {"per_class": 9}, r"class n01443537 has 8 pictures, fewer than data\.per_class 9"),
        (nothing, {"view": "low", "cutoff": 0.05}, "radius of 0"),
        (nothing, {"view": "low", "cutoff": 0.1, "compat": "released"}, r"data\.t\w+.*leaves a radius of 0"),
        (nothing, {"view": "edges"}, "view must be one of"),
        (nothing, {"compat": "old"}, "meant or released"),
        (nothing, {"batch_size": 0}, "batch_size must be at least 1"),
        (nothing, {"held_out": 1.0}, r"share of the training set"),
        (nothing, {"view": "depth", "depth_model": "./nowhere"}, r"data\.depth_model"),
    ],
)
def test_bad_input_gets_its_message_before_any_training(
    options: Options, folders: Path, change: Callable[[Path], None], others: dict[str, object], message: str
) -> None:
    change(folders)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data(options(**others))


def test_pictures_are_looked_at_once(options: Options, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IKIT_CACHE", str(folders / "cache"))
    first = data(options()).description()
    from t2ikit.classify import pictures

    seen: list[Path] = []
    looked_at = pictures._looked_at
    monkeypatch.setattr(pictures, "_looked_at", lambda file, option: (seen.append(file), looked_at(file, option))[1])
    assert data(options()).description() == first and not seen
    changed = folders / "train" / WNIDS[0] / "0.png"
    Image.fromarray(np.zeros((20, 18, 3), np.uint8)).save(changed)
    assert data(options()).description() != first and seen == [changed]
