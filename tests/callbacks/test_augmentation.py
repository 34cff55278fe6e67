"""Augmentation callbacks: what they register, and what they refuse before training."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from t2ikit.callbacks import AugmentationCallback, CutMix
from t2ikit.data.datamodule import DataModule
from t2ikit.diffusion import GaussianDiffusion, RectifiedFlow
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set

PIXELS = Manifest("pixels", (3, 4, 4), texts={"t5": TextSource(8, EncoderReference("t5", None, "ab" * 32))})
EMPTY = quantise_tokens(np.ones((1, 8), np.float32))


def write(folder: Path, count: int, manifest: Manifest = PIXELS, photos: str = "photos", mixed: bool = False) -> None:
    image = np.zeros((3, 4, 4), np.uint8)
    records = []
    for index in range(count):
        metadata = {"key": f"{photos}/{index}"}
        if mixed:
            metadata = {"key": f"train_cm4/{metadata['key']}", "base_key": metadata["key"]}
        records.append(Record({"image": image, "text.t5.0": EMPTY}, ("a",), metadata))
    write_set(folder, records, manifest, {"t5": States(EMPTY)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "train", 12)
    write(tmp_path / "val", 4)
    write(tmp_path / "train_cm4", 10, replace(PIXELS, setting="cm4"), mixed=True)  # train has grown since
    return tmp_path


def register(root: Path, process: Any = None, **options: Any) -> DataModule:
    data = DataModule(str(root), 4, num_workers=0)
    data.setup("fit")
    CutMix(**options).register(data, SimpleNamespace(process=process or GaussianDiffusion()))  # type: ignore[arg-type]
    return data


def test_the_gate_means_the_same_noise_under_another_process(root: Path) -> None:
    [vp] = register(root, setting="cm4", tau=0.4, p=0.25).gates
    assert vp.quantile == pytest.approx(0.4) and vp.probability == 0.25 and vp.name == "cm4"
    [flow] = register(root, RectifiedFlow(), setting="cm4", tau=0.4).gates
    assert flow.quantile == pytest.approx(0.4495, abs=1e-4)


def test_images_mixed_otherwise_than_the_experiment_says_are_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"train_cm4 holds CutMix setting cm4, callbacks\.cutmix says cm9"):
        register(root, setting="cm9", folder="train_cm4")
    with pytest.raises(FileNotFoundError, match="prepare cutmix --setting cm9"):
        register(root, setting="cm9")


@pytest.mark.parametrize(
    ("count", "photos", "named"),
    [
        (10, "others", "image 0 of .* was made from others/0, but that of .* is photos/0"),
        (13, "photos", "holds 13 mixed images, but .* only 12"),
    ],
)
def test_images_mixed_from_other_photos_are_refused(root: Path, count: int, photos: str, named: str) -> None:
    write(root / "train_cm2", count, replace(PIXELS, setting="cm2"), photos, mixed=True)
    with pytest.raises(ValueError, match=f"{named}.*other images.*prepare cutmix"):
        register(root, setting="cm2")


def test_a_callback_that_overrides_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must override `augment` or `register`"):
        AugmentationCallback().register(None, None)  # type: ignore[arg-type]
