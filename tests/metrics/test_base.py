"""The distribution metrics on real tensors: values, names, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2ikit.metrics import (
    DistributionMetrics,
    FeatureExtractor,
    Metric,
    Moments,
    RandomConvFeatures,
    Result,
    SampleBatch,
    Samples,
    prdc,
    prdc_preset,
)
from t2ikit.metrics.base import Rows, look, reference_of
from t2ikit.metrics.fingerprint import images_sha256


class MeanColour(FeatureExtractor):
    """Three channel means; NaN for an image whose first value is 255."""

    name, dim = "mean_colour", 3

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        means = images.to(torch.float32).mean(dim=(2, 3))
        return torch.where(images[:, 0, 0, 0, None] == 255, torch.nan, means)

    def fingerprint(self) -> dict[str, Any]:
        return {"features": self.name}


def pictures(count: int, seed: int) -> Tensor:
    return torch.randint(0, 250, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_scores_are_those_of_the_features() -> None:
    samples = Samples(pictures(20, 0), reference=reference_of(pictures(30, 1)))
    scores = DistributionMetrics(MeanColour(), k=3, batch_size=7).compute(samples).values
    real, fake = MeanColour()(pictures(30, 1)), MeanColour()(pictures(20, 0))
    assert list(scores) == ["frechet_distance", "precision", "recall", "density", "coverage"]
    assert scores.pop("frechet_distance") == pytest.approx(Moments.of(real).distance(Moments.of(fake)))
    assert scores == prdc(real, fake, k=3)


def test_the_reference_is_encoded_once_a_network() -> None:
    features, reference = MeanColour(), reference_of(pictures(30, 9))
    for seed, metric in enumerate((DistributionMetrics(features, k=3), DistributionMetrics(features, k=4))):
        metric.compute(Samples(pictures(10, seed), reference=reference))
    assert features.calls == 1 + 2
    metric.compute(Samples(pictures(10, 0), reference=reference_of(pictures(30, 10))))
    assert features.calls == 1 + 2 + 2


def test_fingerprint_names_features_k_and_sets() -> None:
    metric = DistributionMetrics(RandomConvFeatures(dim=8, seed=2), k=4)
    assert metric.fingerprint()["features"] == "random_conv_8_seed2"
    samples = Samples(pictures(10, 0), reference=reference_of(pictures(12, 1), "val"))
    described = metric.fingerprint_of(samples)
    assert (described["k"], described["num_images"], described["num_reference"]) == (4, 10, 12)
    assert described["reference"] == "val"
    other = Samples(pictures(10, 0), reference=reference_of(pictures(12, 2), "val"))
    assert described["reference_sha256"] != metric.fingerprint_of(other)["reference_sha256"]


def test_presets_bring_their_k() -> None:
    metric = DistributionMetrics(MeanColour(), k=9, preset="imagenet_t2i")
    samples = Samples(pictures(30, 0), reference=reference_of(pictures(30, 1)))
    scores = metric.compute(samples).values
    assert scores["density"] == pytest.approx(
        prdc_preset(MeanColour()(pictures(30, 1)), MeanColour()(pictures(30, 0)), "imagenet_t2i")["density"]
    )
    assert metric.fingerprint() == {"features": "mean_colour", "k": 3, "preset": "imagenet_t2i"}
    with pytest.raises(ValueError, match="24 generated images, but k=3 needs at least 25"):
        metric.compute(Samples(pictures(24, 0), reference=reference_of(pictures(29, 1))))
    with pytest.raises(ValueError, match="preset must be one of imagenet_t2i"):
        DistributionMetrics(MeanColour(), preset="dgm")


def test_errors_name_what_to_change() -> None:
    metric = DistributionMetrics(MeanColour(), k=5)
    with pytest.raises(ValueError, match="k=5 needs reference images"):
        metric.compute(Samples(pictures(10, 0)))
    with pytest.raises(ValueError, match="6 generated images, but k=5 needs at least 7: raise prompts.limit"):
        metric.compute(Samples(pictures(6, 0), reference=reference_of(pictures(10, 1))))
    with pytest.raises(ValueError, match="6 reference images"):
        metric.compute(Samples(pictures(7, 0), reference=reference_of(pictures(6, 1))))
    broken = pictures(10, 0)
    broken[8, 0, 0, 0] = 255
    with pytest.raises(ValueError, match="not finite for generated image 8"):
        metric = DistributionMetrics(MeanColour(), batch_size=3)
        look(metric, Samples(broken), range(5, 10))
    with pytest.raises(ValueError, match="uint8"):
        Samples(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
        Samples(pictures(2, 0), prompts=["one"])
    with pytest.raises(ValueError, match="k must be"):
        DistributionMetrics(MeanColour(), k=0)


def test_the_reference_is_hashed_once_for_all_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from t2ikit.metrics import base

    hashed: list[int] = []

    def counted(images: torch.Tensor) -> str:
        hashed.append(len(images))
        return images_sha256(images)

    monkeypatch.setattr(base, "images_sha256", counted)
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = Samples(images, reference=reference_of(images.flip(0), "val"))
    for k in (2, 3):
        metric = DistributionMetrics(MeanColour(), k=k)
        metric.compute(samples)
        assert metric.fingerprint_of(samples)["reference_sha256"] == images_sha256(images.flip(0))
    assert hashed == [12]


def test_a_last_chunk_of_too_few_images_is_refused_before_anything_is_drawn() -> None:
    metric, small = DistributionMetrics(MeanColour(), preset="imagenet_t2i"), set()
    for count in range(25, 60):
        last = len(torch.arange(count).chunk(5)[-1])
        sets = [(count, 30, "generated"), (30, count, "reference")]
        for generated, real, what in sets:
            samples = Samples(pictures(generated, 0), reference=reference_of(pictures(real, 1)))
            if last >= 5:
                metric.check(samples)
                continue
            small.add(count)
            with pytest.raises(ValueError, match=f"^{count} {what} images leave {last} for the last of the 5 parts"):
                metric.check(samples)
    assert small == {26, 27, 28, 31, 32, 36}


def test_any_metric_may_compare_with_the_reference() -> None:
    class Brighter(Metric):
        statistics_file = "brightness.npz"

        def observe(self, batch: SampleBatch) -> Tensor:
            return batch.images.double().mean((1, 2, 3))

        def score(self, samples: Samples, rows: Rows) -> Result:
            assert samples.reference is not None
            reference = samples.reference.rows[self.rows_key()]
            return Result({"brighter": float(torch.as_tensor(rows).mean() - reference.mean())})

        def fingerprint(self) -> dict[str, Any]:
            return {}

    samples = Samples(pictures(4, 0), reference=reference_of(pictures(6, 1)))
    expected = float(pictures(4, 0).double().mean() - pictures(6, 1).double().mean())
    assert Brighter().compute(samples).values["brighter"] == pytest.approx(expected)
    # Without a key of its own, a metric shares its rows with no other, not even with one at the address of a freed one.
    assert all(Brighter().rows_key() not in samples.rows for _ in range(20)) and len(samples.rows) == 1
