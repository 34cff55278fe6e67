"""The views: the filter by its definition, crops by torchvision's, random numbers by their seed alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision import transforms

from t2ikit.classify.views import View, frequencies, min_max, radius

NAMES = ("rgb", "depth", "texture", "low", "high")
BICUBIC = transforms.InterpolationMode.BICUBIC
NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photo(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """[3, H, W] uint8 of noise that has low frequencies too."""
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 9, 1, 4, count_include_pad=False)
    return ((smooth * 2 + noise * 0.3).sigmoid() * 255).byte().numpy()


def by_definition(image: np.ndarray, cutoff: float, keep: str) -> np.ndarray:
    """The filter with the shifted spectrum of NumPy, channel by channel."""
    height, width = image.shape[1:]
    share = cutoff if keep == "low" else 1 - cutoff
    rows, columns = int(share * (height // 2)), int(share * (width // 2))
    inside = np.zeros((height, width), bool)
    top, left = height // 2, width // 2
    inside[top - rows : top + rows, left - columns : left + columns] = True
    mask = inside if keep == "low" else ~inside
    spectra = [np.fft.fftshift(np.fft.fft2(channel)) * mask for channel in image]
    return np.stack([np.fft.ifft2(np.fft.ifftshift(spectrum)).real for spectrum in spectra])


@pytest.mark.parametrize("keep", ["low", "high"])
@pytest.mark.parametrize("shape", [(40, 56), (41, 33)])
@pytest.mark.parametrize("cutoff", [0.1, 0.2, 0.7])
def test_the_filter_keeps_a_square_of_frequencies(keep: str, shape: tuple[int, int], cutoff: float) -> None:
    image = photo(*shape).astype(np.float64) / 255
    expected = by_definition(image, cutoff, keep)
    torch.testing.assert_close(
        frequencies(torch.from_numpy(image), cutoff, keep, clip=False).double(),
        torch.from_numpy(expected),
        rtol=0,
        atol=1e-6,
    )
    clipped = frequencies(torch.from_numpy(image), cutoff, keep)
    torch.testing.assert_close(clipped.double(), torch.from_numpy(expected.clip(0, 1)), rtol=0, atol=1e-6)


def test_radii_are_those_of_the_released_floats() -> None:
    assert (radius(256, 0.2, "low"), radius(256, 0.2, "high")) == (25, 102)
    assert radius(20, 0.9, "high") == 0  # (1 - 0.9) * 10 is 0.9999999999999998
    assert radius(21, 0.1, "high") == 9 and radius(200, 0.29, "low") == 28  # 0.29 * 100 is 28.999999999999996


def test_a_cosine_at_the_edge_keeps_half_its_amplitude() -> None:
    columns = torch.arange(40) * 2 * math.pi / 40
    for frequency, share in ((3, 1.0), (4, 0.5), (5, 0.0)):
        wave = 0.5 + 0.25 * torch.cos(columns * frequency).expand(3, 40, 40)
        kept = frequencies(wave, 0.2, "low") - 0.5
        torch.testing.assert_close(kept, share * (wave - 0.5), rtol=0, atol=1e-6)


def test_low_and_high_use_one_size_unless_they_are_released() -> None:
    meant = View("low", 16, filter_size=32)
    assert meant.prepare(photo()).shape == (3, 32, 32)
    released = View("low", 16, filter_size=None)
    image = torch.from_numpy(photo()).float() / 255
    prepared = released.prepare(photo())
    assert torch.equal(prepared, min_max(frequencies(image, 0.2, "low")))
    assert prepared.amin() == 0 and 0.999 < prepared.amax() <= 1
    assert View("high", 16, filter_size=32, clip=False).prepare(photo()).unique().numel() > 100


@pytest.mark.parametrize("name", NAMES)
def test_a_view_is_a_function_of_its_seed(name: str) -> None:
    view = View(name, 16, filter_size=32)  # type: ignore[arg-type]
    image = view.prepare(photo())
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = view.train(image, 5)
    assert torch.equal(torch.get_rng_state(), before), "the global generator must stay as it is"
    torch.manual_seed(2)
    assert first.shape == (3, 16, 16) and first.dtype == torch.float32
    assert torch.equal(first, view.train(image, 5)) and not torch.equal(first, view.train(image, 6))
    assert view.test(image, 0).shape == (9 if name == "texture" else 1, 3, 16, 16)


def test_the_test_view_is_torchvision_s() -> None:
    image = torch.from_numpy(photo()).float() / 255
    expected = transforms.Compose(
        [transforms.Resize(16, BICUBIC, antialias=True), transforms.CenterCrop(16), NORMALIZE]
    )(image)
    for name in ("rgb", "depth"):
        view = View(name, 16)  # type: ignore[arg-type]
        torch.testing.assert_close(view.test(view.prepare(photo()), 0)[0], expected)


def test_texture_crops_are_nine_fixed_ones_or_a_seeded_one() -> None:
    view = View("texture", 16)
    resized = transforms.Resize(32, BICUBIC, antialias=True)(torch.from_numpy(photo()).float() / 255)
    nine = view.test(view.prepare(photo()), 0)
    assert torch.equal(nine[0], NORMALIZE(resized[:, :16, :16])) and torch.equal(
        nine[8], NORMALIZE(resized[:, -16:, -16:])
    )
    released = View("texture", 16, crops=1)
    crops = [released.test(released.prepare(photo()), seed) for seed in (1, 1, 2)]
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])


def test_rgb_training_never_shows_a_clean_picture() -> None:
    view = View("rgb", 16)
    image = torch.full((3, 32, 32), 0.25)
    image[0] = 0.9
    seen = [view.train(image, seed) for seed in range(40)]
    kinds = {"grey": 0, "solarized": 0, "blurred": 0}
    for crop in seen:
        mean = crop.mean((1, 2)) * torch.tensor((0.229, 0.224, 0.225)) + torch.tensor((0.485, 0.456, 0.406))
        spread = float(mean.max() - mean.min())
        kinds["grey" if spread < 0.02 else "solarized" if mean[0] < mean[1] else "blurred"] += 1
    assert all(count >= 5 for count in kinds.values()), kinds


def test_bad_options_are_refused() -> None:
    for options, message in (
        ({"name": "edges"}, "view must be one of rgb"),
        ({"size": 8}, "at least 9"),
        ({"cutoff": 1.0}, "share of the Nyquist"),
        ({"name": "low", "cutoff": 0.05, "filter_size": 32}, "radius of 0"),
        ({"crops": 2}, "9 or 1"),
        ({"augmentation": "strong"}, "augmentation must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            View(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 9 a side"):
        View().check((8, 300))
    with pytest.raises(ValueError, match="radius of 0"):
        View("high", cutoff=0.9, filter_size=None).check((20, 20))
