"""What a classifier sees of a picture: all of it, its structure, its texture, its low or its high frequencies.

A view has a fixed part (``prepare``), a random one for training and a fixed one for tests. All are pure functions: the
random numbers of ``train`` come from its ``seed`` alone.

Shapes: H, W pixels of a picture, S of a view, K crops that are looked at in a test.

Source: "When Pretty Isn't Useful", arXiv 2602.19946, and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pixels

ViewName = Literal["rgb", "depth", "texture", "low", "high"]
Augmentation = Literal["paper", "light"]
Compat = Literal["meant", "released"]

SMALLEST = 9
"""Pixels a side that a picture must have: the patch of BagNet-9."""

_MEAN, _STD = torch.tensor((0.485, 0.456, 0.406))[:, None, None], torch.tensor((0.229, 0.224, 0.225))[:, None, None]
_BICUBIC = InterpolationMode.BICUBIC


@dataclass(frozen=True)
class View:
    """One view of pictures.

    Attributes:
        name: which one.
        size: S.
        cutoff: of ``low`` and ``high``, as a share of the Nyquist frequency, in (0, 1).
        filter_size: pictures are brought to this square before they are filtered, so that unlike sizes have the same
            Nyquist frequency; None filters them at their own size, as the released program does.
        clip: of ``low`` and ``high``: to [0, 1] after the filter, as the released program does.
        augmentation: "paper", or "light": a shift by at most S / 8 and a flip.
        crops: crops of a ``texture`` test, whose logits are averaged: 9 fixed ones, or 1 at random, as the released
            program takes it.

    Raises:
        ValueError: a value out of range.
    """

    name: ViewName = "rgb"
    size: int = 224
    cutoff: float = 0.2
    filter_size: int | None = 256
    clip: bool = True
    augmentation: Augmentation = "paper"
    crops: int = 9

    def __post_init__(self) -> None:
        for option, value, known in (
            ("view", self.name, get_args(ViewName)),
            ("augmentation", self.augmentation, get_args(Augmentation)),
        ):
            if value not in known:
                raise ValueError(f"{option} must be one of {', '.join(known)}, got {value!r}")
        if self.size < SMALLEST:
            raise ValueError(f"size must be at least {SMALLEST} pixels, got {self.size}")
        if not 0.0 < self.cutoff < 1.0:
            raise ValueError(f"cutoff is a share of the Nyquist frequency, in (0, 1); got {self.cutoff}")
        if self.crops not in (1, 9):
            raise ValueError(f"crops must be 9 or 1, got {self.crops}")
        if self.filter_size is not None:
            self.check((self.filter_size, self.filter_size))

    @property
    def filters(self) -> bool:
        """Whether it is a view of some frequencies."""
        return self.name in ("low", "high")

    def check(self, shape: tuple[int, int]) -> None:
        """Refuses pictures of which nothing would be left.

        Args:
            shape: (H, W) of the smallest ones.

        Raises:
            ValueError: too few pixels, or a filter without any frequency.
        """
        if min(shape) < SMALLEST:
            raise ValueError(f"{shape[1]} x {shape[0]} pixels; at least {SMALLEST} a side are needed")
        side = min(shape) if self.filter_size is None else self.filter_size
        if self.filters and radius(side, self.cutoff, self.name) < 1:
            raise ValueError(
                f"a cutoff of {self.cutoff} at {side} pixels leaves a radius of 0 frequencies: raise cutoff or the size"
            )

    def prepare(self, picture: np.ndarray) -> Tensor:
        """The fixed part, before any crop.

        Args:
            picture: [3, H, W] uint8; of ``depth`` the depth map.

        Returns:
            [3, H', W'] float32; in [0, 1] but for what bicubic resizing adds.
        """
        image = torch.from_numpy(np.ascontiguousarray(picture)).float() / 255
        if not self.filters:
            return image
        if self.filter_size is not None:
            image = _centre(image, self.filter_size)
        return min_max(frequencies(image, self.cutoff, self.name, self.clip))

    def train(self, image: Tensor, seed: int) -> Tensor:
        """A randomly augmented view, normalised.

        Args:
            image: of :meth:`prepare`.
            seed: of all its random numbers.

        Returns:
            [3, S, S] float32.
        """
        augment = _light if self.augmentation == "light" else _PAPER[self.name]
        with _seeded(seed):
            return _normalized(augment(image, self.size))

    def test(self, image: Tensor, seed: int) -> Tensor:
        """The crops of a test, normalised.

        Args:
            image: of :meth:`prepare`.
            seed: of the random crop, where ``crops`` is 1.

        Returns:
            [K, 3, S, S] float32; K is 1 but for ``texture``.
        """
        if self.name != "texture":
            views = [_centre(image, self.size)]
        elif self.crops == 1:
            with _seeded(seed):
                views = [transforms.RandomCrop(self.size)(_resized(image, 2 * self.size))]
        else:
            views = _nine_crops(_resized(image, 2 * self.size), self.size)
        return torch.stack([_normalized(view) for view in views])


def radius(side: int, cutoff: float, keep: str) -> int:
    """Half the width of the square of frequencies inside, for an axis of ``side`` pixels.

    The products are those of the released program, whose rounding matters: (1 - 0.9) * 10 is a little less than 1 in
    floats, so that r is 0.
    """
    return int(cutoff * (side // 2)) if keep == "low" else int((1 - cutoff) * (side // 2))


def frequencies(image: Tensor, cutoff: float, keep: str, clip: bool = True) -> Tensor:
    """The low or the high frequencies of a picture.

    Inside are the integer frequencies -r <= f < r on both axes, with r of :func:`radius`; the rest is outside. The band
    is not symmetric, so a cosine at f = r keeps half its amplitude in the real part.

    Args:
        image: [C, H, W].
        cutoff: c, as a share of the Nyquist frequency: low keeps what is inside r = c n/2, high what is outside
            r = (1 - c) n/2.
        keep: "low" or "high".
        clip: the result to [0, 1], which cuts off half of the energy of ``high``.

    Returns:
        [C, H, W] float32.
    """
    inside = _inside(image.shape[-2], cutoff, keep)[:, None] & _inside(image.shape[-1], cutoff, keep)
    spectrum = torch.fft.fft2(image.double()) * (inside if keep == "low" else ~inside)
    filtered = torch.fft.ifft2(spectrum).real
    return (filtered.clamp(0.0, 1.0) if clip else filtered).float()


def min_max(image: Tensor) -> Tensor:
    """Every channel of [C, H, W] from its least to its largest value, brought to [0, 1)."""
    low, high = image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True)
    return (image - low) / (high - low + 1e-8)


def _inside(side: int, cutoff: float, keep: str) -> Tensor:
    """[side] bool over the frequencies of an axis, in the order of the FFT."""
    bound = radius(side, cutoff, keep)
    frequency = (torch.arange(side) + side // 2) % side - side // 2
    return (frequency >= -bound) & (frequency < bound)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generator of the CPU is seeded inside the block, and as it was after it."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _normalized(image: Tensor) -> Tensor:
    return (image - _MEAN) / _STD


# ------------------------------------------------------------------ crops and augmentations


def _resized(image: Tensor, size: int) -> Tensor:
    return pixels.resize(image, [size], _BICUBIC, antialias=True)


def _centre(image: Tensor, size: int) -> Tensor:
    """The short side to ``size``, then the centre square."""
    return pixels.center_crop(_resized(image, size), [size])


def _nine_crops(image: Tensor, size: int) -> list[Tensor]:
    """Crops at both ends and in the middle of either axis."""
    rows, columns = ([0, (side - size) // 2, side - size] for side in image.shape[-2:])
    return [image[:, top : top + size, left : left + size] for top in rows for left in columns]


def _random_crop(image: Tensor, size: int) -> Tensor:
    crop = transforms.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=_BICUBIC, antialias=True)
    return transforms.RandomHorizontalFlip()(crop(image))


def _rgb(image: Tensor, size: int) -> Tensor:
    """Every crop is grey, solarized or blurred: the network never sees a clean picture."""
    crop = transforms.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=_BICUBIC, antialias=True)
    changes: list[Callable[[Tensor], Tensor]] = [
        transforms.Grayscale(3),
        transforms.RandomSolarize(threshold=0.5, p=1.0),
        transforms.GaussianBlur(7, sigma=(0.2, 2.0)),
    ]
    changed = changes[int(torch.randint(len(changes), ()))](crop(image))
    return transforms.RandomHorizontalFlip()(transforms.ColorJitter(0.3, 0.3, 0.3)(changed))


def _texture(image: Tensor, size: int) -> Tensor:
    cropped = transforms.RandomCrop(size)(_resized(image, 2 * size))
    return transforms.RandomVerticalFlip()(transforms.RandomHorizontalFlip()(cropped))


def _light(image: Tensor, size: int) -> Tensor:
    shift = max(size // 8, 1)
    padded = torch.nn.functional.pad(_centre(image, size)[None], [shift] * 4, mode="reflect")[0]
    top, left = torch.randint(2 * shift + 1, (2,)).tolist()
    cropped = padded[:, top : top + size, left : left + size]
    return cropped.flip(-1) if int(torch.randint(2, ())) else cropped


_PAPER: dict[str, Callable[[Tensor, int], Tensor]] = {
    "rgb": _rgb,
    "depth": _random_crop,
    "texture": _texture,
    "low": _random_crop,
    "high": _random_crop,
}
