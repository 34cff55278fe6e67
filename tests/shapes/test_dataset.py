"""The embedded data set on the disk: whole, the same for the same request, kept when it is there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from t2ikit.augment.cutmix import compose, fits
from t2ikit.encoders.text import TextEncoder
from t2ikit.records.manifest import Manifest
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.writing import write_set
from t2ikit.shapes.captions import cutmix_caption, long_caption
from t2ikit.shapes.dataset import Request, build_shapes
from t2ikit.shapes.prompts import geneval_prompts
from t2ikit.shapes.scenes import render, scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_shapes(tmp_path_factory.mktemp("shapes") / "set", 16, "full", 80, 20, "long", ("cmall", "cm4"), seed=3)


def test_sets_hold_the_scenes(root: Path) -> None:
    for split, count in (("train", 80), ("val", 20)):
        records = RecordSet(root / split)
        assert len(records) == count
        for index, scene in enumerate(scenes(3, split, 0, count, "full")):
            record = records[index]
            np.testing.assert_array_equal(record.image, render(scene, 16))
            assert record.captions == (long_caption(scene),)
            facts = record.metadata
            assert facts["key"] == f"{split}/{index:07d}"
            assert (facts["class_id"], facts["class_name"]) == (scene.class_id, scene.main.class_name)
            assert (facts["color"], facts["count"]) == (scene.main.color, scene.count)


def test_manifests_say_what_the_sets_hold(root: Path) -> None:
    names = ["val", "train", "train_cmall", "train_cm4"]
    manifests = [Manifest.read(root / name) for name in names]
    assert [one.setting for one in manifests] == [None, None, "cmall", "cm4"]
    assert [one.count for one in manifests] == [20, 80, 80, 80]
    for one in manifests:
        assert (one.kind, one.image_shape, one.text_dim, one.captions) == ("pixels", (3, 16, 16), 64, "long")
        assert [encoder.name for encoder in one.text_encoders] == ["text_encoder"]
        assert manifests[0].mismatch(one) is None


def test_states_are_those_of_the_stored_encoder(root: Path) -> None:
    encoder = TextEncoder.load(str(root / "text_encoder"))
    manifest = Manifest.read(root / "train")
    assert [stored.sha256 for stored in manifest.text_encoders] == [encoder.reference.sha256]
    records = RecordSet(root / "train")
    for index in (0, 41):
        states = encoder.encode(list(records[index].captions))[0].numpy()
        stored = records[index].texts["t5"][0].tokens.dequantise()
        assert stored.shape == states.shape and np.abs(stored - states).max() < 0.02 * np.abs(states).max()
    assert len(records.empty_prompt["t5"].tokens) == 1
    unknown = encoder.tokenizer.unk_token_id
    for line in geneval_prompts("full", 30):
        assert unknown not in encoder.tokenizer(line["prompt"]).input_ids
    assert all(unknown not in encoder.tokenizer(one.captions[0]).input_ids for one in RecordSet(root / "train_cmall"))


def test_cutmix_images_are_composed_of_two_classes(root: Path) -> None:
    images, mixes = RecordSet(root / "train"), RecordSet(root / "train_cmall")
    block = scenes(3, "train", 0, 80, "full")
    for index, record in enumerate(mixes):
        facts = record.metadata
        other = int(facts["other_key"].split("/")[1])
        assert facts["key"] == f"train/{index:07d}" and facts["class_id"] != facts["other_class_id"]
        assert (facts["other_class_id"], facts["other_class_name"]) == (
            block[other].class_id,
            block[other].main.class_name,
        )
        assert fits(facts["setting"], 16, facts["rectangle"])
        pair = (torch.from_numpy(images[i].image) for i in (index, other))
        mixed = compose(*pair, facts["rectangle"], facts["setting"])
        np.testing.assert_array_equal(record.image, mixed.numpy())
        caption = cutmix_caption(block[index], block[other], facts["rectangle"], 16, facts["setting"])
        assert record.captions == (caption,)
    assert set(Counter(record.metadata["setting"] for record in mixes).values()) == {20}
    assert {record.metadata["setting"] for record in RecordSet(root / "train_cm4")} == {"cm4"}


def inodes(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_ino for path in root.rglob("*") if path.is_file()}


def test_what_is_there_is_kept_and_what_is_missing_is_built(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    build_shapes(again, 16, "full", 80, 20, "long", ("cmall",), seed=3)
    for name in ("val", "train", "train_cmall"):  # the same request gives the same bytes
        ours, theirs = (Manifest.read(folder / name).chunk_sha256 for folder in (again, root))
        assert {file: ours[file] for file in ours if file.endswith(".bin")} == {
            file: theirs[file] for file in theirs if file.endswith(".bin")
        }
    before = inodes(again)
    build_shapes(again, 16, "full", 80, 20, "long", ("cmall",), seed=3)
    assert inodes(again) == before
    (again / "train_cmall" / "manifest.json").unlink()
    build_shapes(again, 16, "full", 80, 20, "long", ("cmall",), seed=3)
    after = inodes(again)
    assert set(after) == set(before)
    kept = [name for name in after if not name.startswith("train_cmall")]
    assert all(after[name] == before[name] for name in kept)
    build_shapes(again, 16, "full", 80, 30, "long", ("cmall",), seed=3)
    assert len(RecordSet(again / "val")) == 30
    assert all(inodes(again)[name] == after[name] for name in after if name.startswith("train/"))
    assert not [path for path in again.iterdir() if path.name.startswith(".")]


def test_aio_captions(tmp_path: Path) -> None:
    build_shapes(tmp_path / "aio", 16, "simple", 6, 2, "aio", ("cm4",), seed=0)
    record, mixed = RecordSet(tmp_path / "aio" / "train")[0], RecordSet(tmp_path / "aio" / "train_cm4")[0]
    assert record.captions[0].split()[:3] == ["An", "image", "of"]
    assert all(mixed.metadata[name] in mixed.captions[0] for name in ("class_name", "other_class_name"))


def test_another_data_set_is_not_replaced(tmp_path: Path) -> None:
    photo = Record(
        {"image": np.zeros((3, 16, 16), np.uint8)}, ("a photo",), {"key": "a.jpg", "class_id": 0, "class_name": "a"}
    )
    write_set(tmp_path / "train", [photo], Manifest(kind="pixels", image_shape=(3, 16, 16), source="photos"))
    with pytest.raises(ValueError, match=r"data\.root"):
        build_shapes(tmp_path, 16, "simple", 4, 2)
    assert RecordSet(tmp_path / "train")[0].captions == ("a photo",)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("size", 8),
        ("difficulty", "hard"),
        ("count", 1),
        ("val_count", 0),
        ("captions", "short"),
        ("settings", ("cm3",)),
    ],
)
def test_bad_options_are_named(option: str, value: object) -> None:
    wanted = {
        "size": 16,
        "difficulty": "simple",
        "count": 4,
        "val_count": 2,
        "captions": "long",
        "settings": (),
        "seed": 0,
    }
    with pytest.raises(ValueError, match=rf"data\.{option} must be"):
        Request(**(wanted | {option: value}))  # type: ignore[arg-type]
