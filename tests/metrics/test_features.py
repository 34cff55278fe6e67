"""The random convolutional features, and the pixel pipelines of the published feature networks."""

from __future__ import annotations

import pytest
import torch

from t2ikit.metrics import DistributionMetrics, RandomConvFeatures, Samples
from t2ikit.metrics.base import reference_of


def noise(count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_random_features_are_seeded_and_named() -> None:
    images = noise(3, (16, 16))
    first, again, other = RandomConvFeatures(), RandomConvFeatures(), RandomConvFeatures(seed=1)
    assert first.name == "random_conv_64_seed0"
    assert torch.equal(first(images), again(images))
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint()["features_sha256"] != other.fingerprint()["features_sha256"]
    # The weights are whole multiples of 2^-24 times a constant, so this hash holds on every machine.
    assert first.fingerprint()["features_sha256"].startswith("c1f16aeca1198379")


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (64, 64)])
def test_random_features_take_any_size(size: tuple[int, int]) -> None:
    features = RandomConvFeatures(dim=10)(noise(4, size))
    assert features.shape == (4, 10)
    assert features.dtype == torch.float32
    assert features.isfinite().all()


def test_a_row_depends_on_its_own_image() -> None:
    images, features = noise(6, (16, 16)), RandomConvFeatures()
    together = features(images)
    alone = torch.cat([features(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_random_features_tell_colours_and_places_apart() -> None:
    red, blue = torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.zeros(20, 3, 32, 32, dtype=torch.uint8)
    left, right = red.clone(), red.clone()
    jitter = noise(20, (32, 32)) // 16
    red[:, 0], blue[:, 2] = 200, 200
    left[:, :, 8:24, :12], right[:, :, 8:24, 20:] = 200, 200
    metric = DistributionMetrics(RandomConvFeatures())

    def distance(one: torch.Tensor, two: torch.Tensor) -> float:
        return metric.compute(Samples(one + jitter, reference=reference_of(two + jitter.flip(0)))).values[
            "frechet_distance"
        ]

    same = distance(red, red)
    assert distance(red, blue) > 100 * same
    assert distance(left, right) > 100 * distance(left, left)


def test_small_or_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels"):
        RandomConvFeatures()(noise(1, (15, 20)))
    with pytest.raises(ValueError, match="uint8"):
        RandomConvFeatures()(torch.zeros(1, 3, 16, 16))
