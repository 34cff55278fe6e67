"""CutMix: where the insert goes, which image it comes from, and how the two become one.

Paper: "How far can we go with ImageNet for Text-to-Image generation?" (CutMix placements; the coordinates follow the
program its authors released). A base image of side S receives an insert of side s from an image of another class::

    setting  s      where
    cm2      S      the right or the bottom half; the insert is the same half of the other image
    cm4      S/2    one of the four corners
    cm9      S/3    along one of the four borders
    cm16     S/4    anywhere in the inner 90 %, except where it would touch the central zone
    cmall    -      one of the four above

Rectangles are half-open pixels ``(x0, y0, x1, y1)``: columns x0 .. x1 - 1, rows y0 .. y1 - 1. All divisions are integer
divisions.

Shapes: images [3, S, S] uint8, channels first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import overload

import numpy as np
import torch
from torch import Tensor

from t2ikit.rng import derived_seed, uniforms

Rectangle = tuple[int, int, int, int]

SINGLE_SETTINGS = ("cm2", "cm4", "cm9", "cm16")
SETTINGS = (*SINGLE_SETTINGS, "cmall")
SMALLEST_SIZE = 4
_DIVISOR = {"cm2": 1, "cm4": 2, "cm9": 3, "cm16": 4}


def place(setting: str, size: int, generator: torch.Generator, strict_paper: bool = False) -> Rectangle:
    """Draws the rectangle of an insert.

    Args:
        setting: "cm2", "cm4", "cm9", "cm16", or "cmall" for one of the four with equal chances.
        size: S, side of the square base image in pixels, at least 4.
        generator: source of the random numbers, on the CPU.
        strict_paper: for "cm9" only: keep the insert off the corners, as the text of the paper says. The released
            program allows them (about 1.2 % of the inserts at 256 touch two borders), so that is the default.

    Returns:
        Half-open ``(x0, y0, x1, y1)`` in pixels, inside ``[0, size]``.

    Raises:
        ValueError: unknown setting, or a size below 4.
    """
    _check(setting, size)
    if setting == "cmall":
        setting = SINGLE_SETTINGS[_integer(len(SINGLE_SETTINGS), generator)]
    side = size // _DIVISOR[setting]
    far = size - side
    if setting == "cm2":
        if _integer(2, generator):
            return size // 2, 0, size, size
        return 0, size // 2, size, size
    if setting == "cm4":
        corner = _integer(4, generator)
        x0, y0 = far * (corner % 2), far * (corner // 2)
    elif setting == "cm9":
        border = _integer(4, generator)
        inset = 1 if strict_paper else 0
        along = inset + _integer(far + 1 - 2 * inset, generator)
        x0, y0 = ((0, along), (far, along), (along, 0), (along, far))[border]
    else:
        x0, y0 = _away_from_centre(size, side, generator)
    return x0, y0, x0 + side, y0 + side


def fits(setting: str, size: int, rectangle: Sequence[int], strict_paper: bool = False) -> bool:
    """Whether ``place(setting, size, ...)`` can return ``rectangle``.

    Args:
        setting: one of the five settings.
        size: S in pixels.
        rectangle: half-open ``(x0, y0, x1, y1)`` in pixels.
        strict_paper: as in ``place``.

    Raises:
        ValueError: unknown setting, or a size below 4.
    """
    _check(setting, size)
    if setting == "cmall":
        return any(fits(one, size, rectangle, strict_paper) for one in SINGLE_SETTINGS)
    x0, y0, x1, y1 = rectangle
    if setting == "cm2":
        return (x0, y0, x1, y1) in ((size // 2, 0, size, size), (0, size // 2, size, size))
    side = size // _DIVISOR[setting]
    far = size - side
    if (x1 - x0, y1 - y0) != (side, side) or not (0 <= x0 <= far and 0 <= y0 <= far):
        return False
    if setting == "cm4":
        return x0 in (0, far) and y0 in (0, far)
    if setting == "cm9":
        touched = (x0 in (0, far)) + (y0 in (0, far))
        return touched == 1 if strict_paper else touched >= 1
    positions, free, _ = _axis(size, side)
    return x0 in positions and y0 in positions and (x0 in free or y0 in free)


def compose(base: Tensor, other: Tensor, rectangle: Sequence[int], setting: str) -> Tensor:
    """Puts the insert into the base image.

    For "cm2" the insert is the part of ``other`` that lies under the rectangle. Otherwise all of ``other`` is shown:
    its short side is resized to the side of the rectangle (bilinear, antialiased) and its centre is kept.

    Args:
        base: [3, S, S] uint8.
        other: [3, H, W] uint8; for "cm2" it is first resized and cropped to S x S where it is not.
        rectangle: half-open ``(x0, y0, x1, y1)`` in pixels.
        setting: one of the four single settings.

    Returns:
        [3, S, S] uint8, a new tensor.

    Raises:
        ValueError: images that are not uint8 [3, ., .], a base that is not square, or a rectangle that the setting
            cannot give at this size.
    """
    for name, image in (("base", base), ("other", other)):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"CutMix needs uint8 images [3, H, W]; {name} is {image.dtype} {tuple(image.shape)}")
    size = base.shape[1]
    if base.shape[2] != size:
        raise ValueError(f"CutMix needs a square base image; got {tuple(base.shape)}")
    if setting not in SINGLE_SETTINGS:
        raise ValueError(f"compose needs one of {', '.join(SINGLE_SETTINGS)}; got {setting!r}")
    if not fits(setting, size, rectangle):
        raise ValueError(f"rectangle {tuple(rectangle)} is not one of setting {setting!r} at {size} pixels")
    x0, y0, x1, y1 = rectangle
    mixed = base.clone()
    if setting == "cm2":
        mixed[:, y0:y1, x0:x1] = _cover(other, size)[:, y0:y1, x0:x1]
    else:
        mixed[:, y0:y1, x0:x1] = _cover(other, x1 - x0)
    return mixed


@dataclass(frozen=True)
class Mix:
    """One image to compose.

    Attributes:
        base: index of the base image.
        other: index of the image the insert comes from; its class is another one.
        setting: one of the four single settings.
        rectangle: half-open ``(x0, y0, x1, y1)`` in pixels.
    """

    base: int
    other: int
    setting: str
    rectangle: Rectangle


def stratified_settings(count: int, seed: int) -> list[str]:
    """The settings of a CMall set: every four images in a row get the four settings, in a random order of their own.

    So each setting has its exact quarter (to within the last, incomplete four), and the setting of an image depends on
    the seed and its index alone: appending images changes none.
    """
    fours = -(-count // 4)
    order = uniforms(seed, "cutmix-setting", 0, fours, len(SINGLE_SETTINGS)).argsort(axis=1, kind="stable")
    return [SINGLE_SETTINGS[k] for k in order.reshape(-1)[:count]]


class MixPlan(Sequence[Mix]):
    """Every image of a CutMix set: one mix a base image, its partner uniform among the images of other classes.

    Setting, rectangle and the number behind the partner depend on the seed and the index of the base image.
    """

    def __init__(
        self, class_ids: Sequence[int] | np.ndarray, setting: str, size: int, seed: int, strict_paper: bool = False
    ) -> None:
        """Args:
            class_ids: [N] class of every image of the raw set.
            setting: one of the five settings; "cmall" is stratified.
            size: S in pixels.
            seed: decides everything.
            strict_paper: as in ``place``.

        Raises:
            ValueError: unknown setting, a size below 4, or fewer than two classes.
        """
        _check(setting, size)
        count = len(class_ids)
        self.size = size
        self.seed = seed
        self.strict_paper = strict_paper
        self._settings = stratified_settings(count, seed) if setting == "cmall" else [setting] * count
        self._others = _partners(np.asarray(class_ids, dtype=np.int64), seed)

    def __len__(self) -> int:
        return len(self._settings)

    @overload
    def __getitem__(self, index: int) -> Mix: ...

    @overload
    def __getitem__(self, index: slice) -> list[Mix]: ...

    def __getitem__(self, index: int | slice) -> Mix | list[Mix]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        base = range(len(self))[index]
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "cutmix-place", base))
        rectangle = place(self._settings[base], self.size, generator, self.strict_paper)
        return Mix(base, int(self._others[base]), self._settings[base], rectangle)


def _partners(class_ids: np.ndarray, seed: int) -> np.ndarray:
    """[N] int64: for each image another one, uniform among those of other classes."""
    classes, which, counts = np.unique(class_ids, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(
            "CutMix pairs images of unlike classes, but the set has "
            f"{len(classes)} class(es): prepare images of at least two (option --source)"
        )
    by_class = np.argsort(class_ids, kind="stable")
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    own_first, own_count = first[which], counts[which]
    draws = uniforms(seed, "cutmix-pair", 0, len(class_ids))[:, 0]
    chosen = np.floor(draws * (len(class_ids) - own_count)).astype(np.int64)
    chosen += np.where(chosen >= own_first, own_count, 0)
    return by_class[chosen]


def _check(setting: str, size: int) -> None:
    if setting not in SETTINGS:
        raise ValueError(f"unknown CutMix setting {setting!r}; choose one of {', '.join(SETTINGS)}")
    if size < SMALLEST_SIZE:
        raise ValueError(f"CutMix needs images of at least {SMALLEST_SIZE} pixels a side; got {size}")


def _integer(count: int, generator: torch.Generator) -> int:
    """Uniform in 0 .. count - 1."""
    return int(torch.randint(count, (), generator=generator))


@cache
def _axis(size: int, side: int) -> tuple[range, tuple[int, ...], tuple[int, ...]]:
    """cm16 along one axis: all positions, those clear of the central zone (its ends count as inside), the others."""
    margin, reach, centre = size // 20, size // 10, size // 2
    positions = range(margin, size - side - margin + 1)
    free = tuple(p for p in positions if p + side < centre - reach or p > centre + reach)
    return positions, free, tuple(p for p in positions if p not in free)


def _away_from_centre(size: int, side: int, generator: torch.Generator) -> tuple[int, int]:
    """Uniform over the cm16 positions that are free along at least one axis, without rejection."""
    positions, free, blocked = _axis(size, side)
    number = _integer(len(free) * (len(positions) + len(blocked)), generator)
    if number < len(free) * len(positions):
        return free[number // len(positions)], positions[number % len(positions)]
    number -= len(free) * len(positions)
    return blocked[number // len(free)], free[number % len(free)]


def _cover(image: Tensor, side: int) -> Tensor:
    """Short side to ``side`` (bilinear, antialiased), centre crop: [3, H, W] uint8 -> [3, side, side] uint8."""
    height, width = image.shape[1:]
    if (height, width) == (side, side):
        return image
    short = min(height, width)
    resized = (max(side, round(height * side / short)), max(side, round(width * side / short)))
    values = torch.nn.functional.interpolate(
        image[None].to(torch.float32), resized, mode="bilinear", antialias=True, align_corners=False
    )
    top, left = (resized[0] - side) // 2, (resized[1] - side) // 2
    return values[0, :, top : top + side, left : left + side].round().clamp(0, 255).to(torch.uint8)
