"""Saved reference statistics give the scores and the fingerprints of the images, and those of others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from t2ikit.metrics import DistributionMetrics, Metric, Moments, RandomConvFeatures, Samples
from t2ikit.metrics.base import look, reference_of
from t2ikit.metrics.distribution.cmmd import CMMD
from t2ikit.metrics.distribution.kid import KID
from t2ikit.metrics.distribution.reference import ReferenceStatistics
from t2ikit.metrics.fingerprint import Fingerprint, compare

FEATURES = RandomConvFeatures(dim=12)


def pictures(count: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def with_images() -> Samples:
    return Samples(pictures(20, 0), reference=reference_of(pictures(30, 1), "val"))


def write(path: Path, features: RandomConvFeatures, images: Tensor) -> None:
    """Statistics of these images as ``evaluate --write-reference`` writes them."""
    metric = DistributionMetrics(features, batch_size=7)
    reference = reference_of(images, "val")
    reference.rows[metric.rows_key()] = look(metric, reference, range(len(images)))
    metric.write_statistics(path, Samples(images[:0], reference=reference))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "statistics" / "val.npz"
    write(path, FEATURES, pictures(30, 1))
    fingerprint = Moments.load(path).fingerprint
    assert fingerprint["num_reference"] == 30 and "num_images" not in fingerprint
    assert [file.name for file in path.parent.iterdir()] == ["val.npz"]
    return path


@pytest.mark.parametrize("kind", [DistributionMetrics, CMMD, KID])
def test_a_file_gives_what_the_images_give(saved: Path, kind: Any) -> None:
    settings = {"subset_size": 10, "subsets": 3} if kind is KID else {}
    of_images: Metric = kind(FEATURES, **settings)
    of_file: Metric = kind(FEATURES, reference_statistics=str(saved), **settings)
    alone = Samples(pictures(20, 0))
    expected, found = of_images.compute(with_images()).values, of_file.compute(alone).values
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-6)
    # The two are the same score, so they may be compared.
    first, second = (
        Fingerprint.from_dict(metric.fingerprint_of(samples))
        for metric, samples in ((of_images, with_images()), (of_file, alone))
    )
    compare(first, second)
    assert first.hash() == second.hash()
    # The images of the same set beside the file are no contradiction.
    assert of_file.compute(with_images()).values == found


def test_moments_alone_give_the_frechet_distance(saved: Path, tmp_path: Path) -> None:
    metric = DistributionMetrics(FEATURES, k=3)
    ReferenceStatistics(Moments.load(saved), None).save(tmp_path / "val.npz")
    path = str(tmp_path / "val.npz")
    scores = DistributionMetrics(FEATURES, k=3, reference_statistics=path).compute(Samples(pictures(20, 0))).values
    assert list(scores) == ["frechet_distance"]
    assert scores["frechet_distance"] == pytest.approx(
        metric.compute(with_images()).values["frechet_distance"], rel=1e-5
    )
    with pytest.raises(ValueError, match="holds no features, which CMMD needs: write it again with t2ikit"):
        CMMD(FEATURES, reference_statistics=path).compute(Samples(pictures(20, 0)))
    assert Moments.load(path).count == 30


@pytest.mark.parametrize(
    ("features", "reference", "message"),
    [
        (
            RandomConvFeatures(dim=13),
            None,
            "differ in features: 'random_conv_12_seed0' there, 'random_conv_13_seed0' here",
        ),
        (RandomConvFeatures(dim=12, seed=1), None, "differ in features:"),
        (FEATURES, pictures(29, 1), "differ in num_reference: 30 there, 29 here"),
        (FEATURES, pictures(30, 2), "differ in reference_sha256"),
    ],
)
def test_statistics_of_others_are_refused(saved: Path, features: Any, reference: Any, message: str) -> None:
    metric = DistributionMetrics(features, reference_statistics=str(saved))
    with pytest.raises(ValueError, match=message):
        metric.compute(Samples(pictures(20, 0), reference=None if reference is None else reference_of(reference)))


@pytest.mark.parametrize("field", ["features_sha256", "resize"])
def test_other_weights_and_pixels_are_refused(saved: Path, field: str) -> None:
    stored = ReferenceStatistics.load(saved)
    stored.moments.fingerprint[field] = "another"
    stored.save(saved)
    with pytest.raises(ValueError, match=f"differ in {field}: 'another' there"):
        DistributionMetrics(FEATURES, reference_statistics=str(saved)).compute(Samples(pictures(20, 0)))


def test_broken_files_are_named(saved: Path, tmp_path: Path) -> None:
    samples = Samples(pictures(20, 0))

    def compute(path: Path) -> None:
        DistributionMetrics(FEATURES, reference_statistics=str(path)).compute(samples)

    with pytest.raises(FileNotFoundError, match="no reference statistics .*none.npz: set reference_statistics"):
        DistributionMetrics(FEATURES, reference_statistics=str(tmp_path / "none.npz"))
    (tmp_path / "cut.npz").write_bytes(saved.read_bytes()[:500])
    with pytest.raises(ValueError, match="cut.npz holds no feature moments"):
        compute(tmp_path / "cut.npz")
    rows = FEATURES(pictures(30, 1))
    ReferenceStatistics(Moments.of(rows, FEATURES.fingerprint()), None).save(tmp_path / "no_set.npz")
    with pytest.raises(ValueError, match="does not say which set it is of"):
        compute(tmp_path / "no_set.npz")
    stored = ReferenceStatistics.load(saved)
    ReferenceStatistics(stored.moments, rows[:-1]).save(tmp_path / "fewer.npz")
    with pytest.raises(ValueError, match=r"fewer.npz has features \(29, 12\) for moments of 30 images"):
        compute(tmp_path / "fewer.npz")
    ReferenceStatistics(Moments.of(rows[:-1], stored.moments.fingerprint), None).save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="moments of 29 images .* fingerprint says 30"):
        compute(tmp_path / "other.npz")
    arrays = {**stored.moments.arrays(), "mean": np.full(12, np.nan)}
    np.savez(tmp_path / "nan.npz", **arrays)
    with pytest.raises(ValueError, match="nan.npz holds no feature moments .values that are not finite"):
        compute(tmp_path / "nan.npz")
    np.savez(tmp_path / "shape.npz", **{**arrays, "scatter": np.zeros((3, 3))})
    with pytest.raises(ValueError, match="shape.npz holds no feature moments .mean"):
        compute(tmp_path / "shape.npz")


def test_too_few_images_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="6 generated images, but k=5 needs at least 7: raise prompts.limit"):
        DistributionMetrics(FEATURES, reference_statistics=str(saved)).compute(Samples(pictures(6, 0)))
    with pytest.raises(ValueError, match="30 reference images, but k=40 needs at least 42: raise reference_limit"):
        DistributionMetrics(FEATURES, 40, reference_statistics=str(saved)).compute(Samples(pictures(50, 0)))
    with pytest.raises(ValueError, match=r"give the snapshot a reference set \(reference\), or the metric a file"):
        CMMD(FEATURES).compute(Samples(pictures(6, 0)))
    write(tmp_path / "one.npz", FEATURES, pictures(1, 0))
    with pytest.raises(ValueError, match="1 reference images, but k=5 needs at least 7: raise reference_limit"):
        DistributionMetrics(FEATURES, reference_statistics=str(tmp_path / "one.npz")).compute(Samples(pictures(9, 0)))
    with pytest.raises(ValueError, match="uint8"):
        write(tmp_path / "float.npz", FEATURES, torch.zeros(4, 3, 16, 16))


class WrongWidth(RandomConvFeatures):
    """Says one width and gives another."""

    def __call__(self, images: Tensor) -> Tensor:
        return super().__call__(images)[:, 1:]


class BreaksOnImage25(RandomConvFeatures):
    """NaN for images that begin with black."""

    def __call__(self, images: Tensor) -> Tensor:
        black = (images[:, :, 0, 0] == 0).all(dim=1, keepdim=True)
        return torch.where(black, torch.nan, super().__call__(images))


def test_broken_features_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gives features \(7, 11\), not \[B, 12\]"):
        write(tmp_path / "x.npz", WrongWidth(dim=12), pictures(30, 0))
    images = pictures(30, 0)
    images[25, :, 0, 0] = 0
    with pytest.raises(ValueError, match="not finite for reference image 25"):
        write(tmp_path / "x.npz", BreaksOnImage25(dim=12), images)
    assert not (tmp_path / "x.npz").exists()
