"""The CutMix set: pairs, pixels, metadata, captions."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from t2ikit.augment.cutmix import compose, fits
from t2ikit.prepare.captions.caption_file import CaptionSet, caption_file
from t2ikit.prepare.cutmix import prepare_cutmix
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.images import prepare_images
from t2ikit.prepare.steps import identity
from t2ikit.records.record_set import RecordSet


def test_every_image_is_what_its_metadata_say(prepared_once: Path) -> None:
    raw = {record.metadata["key"]: record for record in RecordSet(prepared_once / "images/train")}
    mixed = list(RecordSet(prepared_once / "images/train_cmall"))
    assert [record.metadata["base_key"] for record in mixed] == list(raw)
    assert Counter(record.metadata["setting"] for record in mixed) == dict.fromkeys(("cm2", "cm4", "cm9", "cm16"), 3)
    for record in mixed:
        facts = record.metadata
        base, other = raw[facts["base_key"]], raw[facts["other_key"]]
        assert facts["class_id"] == base.metadata["class_id"] != facts["other_class_id"] == other.metadata["class_id"]
        assert facts["other_class_name"] == other.metadata["class_name"]
        assert fits(facts["setting"], 16, facts["rectangle"])
        expected = compose(
            torch.from_numpy(base.image), torch.from_numpy(other.image), facts["rectangle"], facts["setting"]
        )
        assert np.array_equal(record.image, expected.numpy())
        assert not np.array_equal(record.image, base.image)


def test_captions_follow_the_raw_set(prepared_once: Path) -> None:
    captions = CaptionSet(prepared_once, "train_cmall")
    assert captions.header.kind == "aio"
    for (key, texts), record in zip(captions, RecordSet(prepared_once / "images/train_cmall"), strict=True):
        facts = record.metadata
        assert key == facts["key"]
        assert texts == (f"An image of {facts['class_name']} and {facts['other_class_name']}",)


def test_seed_decides_everything(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a", "b"):
        prepare_images(str(photos), tmp_path / name, 16)
    first = prepare_cutmix(tmp_path / "a", "cm16", launch=Launch("cpu", 1, workers=1))
    assert not caption_file(tmp_path / "a", "train_cm16").exists()  # the raw set has none yet
    assert identity(prepare_cutmix(tmp_path / "b", "cm16")) == identity(first)
    assert identity(prepare_cutmix(tmp_path / "b", "cm16", seed=1, overwrite=True)) != identity(first)
    assert prepare_cutmix(tmp_path / "a", "cm16") == first
    assert "up to date" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match="other inputs: --seed or the images of train differ"):
        prepare_cutmix(tmp_path / "a", "cm16", seed=1)
    with pytest.raises(FileExistsError, match="other inputs: --strict-paper was not given"):
        prepare_cutmix(tmp_path / "a", "cm16", strict_paper=True)
    assert first.setting == "cm16"


def test_refusals(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="prepare images"):
        prepare_cutmix(tmp_path, "cmall")
    source = tmp_path / "one"
    (source / "train").mkdir(parents=True)
    (source / "val").mkdir()
    for split in ("train", "val"):
        (source / split / "n01440764").symlink_to(photos / "train" / "n01440764")
    prepare_images(str(source), tmp_path / "out", 16)
    with pytest.raises(ValueError, match="two.*--source"):
        prepare_cutmix(tmp_path / "out", "cmall")
    with pytest.raises(ValueError, match="choose one of cm2"):
        prepare_cutmix(tmp_path / "out", "cm3")
