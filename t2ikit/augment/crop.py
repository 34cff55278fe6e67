"""Windows of the Crop augmentation: how large, where, and the part of an image that they show.

Paper: "How far can we go with ImageNet for Text-to-Image generation?", Appendix F: with p = 0.5 the model sees only the
tokens of a crop of more than half of the side of the image, gets its coordinates, and keeps the caption. Tokens
outside take no part in attention or loss; here they are left out, which gives the same result for less work.

Shapes::

    G  side of the grid of tokens (patches): (rows, columns)      P  side of a patch, in elements of x_0
    B  samples      h, w  rows and columns of a window, in tokens

All windows of a batch have one size, so that it stays a dense tensor.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Aspect = Literal["square", "free"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)


def sides(tokens: int) -> range:
    """Sides that a window may have along ``tokens``: more than half of them, but not all.

    Raises:
        ValueError: there is none, below 3 tokens.

    Example:
        >>> sides(16)
        range(9, 16)
    """
    lengths = range(tokens // 2 + 1, tokens)
    if not lengths:
        raise ValueError(f"a grid of {tokens} tokens a side has no window of more than half of it: use a finer grid")
    return lengths


def window_size(grid: tuple[int, int], uniforms: np.ndarray, aspect: Aspect = "square") -> tuple[int, int]:
    """The size of a window, from uniform numbers.

    Args:
        grid: G, (rows, columns).
        uniforms: [2] uniform in [0, 1).
        aspect: "square" keeps the shape of the grid (on a square one h = w); "free" takes h and w independently.

    Returns:
        (h, w), in tokens: uniform over :func:`sides`.

    Raises:
        ValueError: an unknown aspect, or a grid without windows.
    """
    if aspect not in ASPECTS:
        raise ValueError(f"aspect must be one of {', '.join(ASPECTS)}, not {aspect!r}")
    rows, columns = (sides(tokens) for tokens in grid)
    first, second = uniforms[0], uniforms[0 if aspect == "square" else 1]
    return rows[int(first * len(rows))], columns[int(second * len(columns))]


def typical_sizes(grid: tuple[int, int], aspect: Aspect = "square") -> list[tuple[int, int]]:
    """Few sizes whose mean cost is nearly that of all, with the largest: up to four sides, evenly apart.

    Of "free" windows also each side with its opposite: h and w are unrelated among these, too.

    Args:
        grid: G, (rows, columns).
        aspect: as in :func:`window_size`.

    Returns:
        (h, w), in tokens, from the smallest to the largest, then the opposites.

    Example:
        >>> typical_sizes((16, 16))
        [(9, 9), (11, 11), (13, 13), (15, 15)]
    """
    rows, columns = (sides(tokens) for tokens in grid)
    count = min(max(len(rows), len(columns)), 4)
    shares = [index / max(count - 1, 1) for index in range(count)]

    def size(row_share: float, column_share: float) -> tuple[int, int]:
        return rows[round(row_share * (len(rows) - 1))], columns[round(column_share * (len(columns) - 1))]

    opposites = [size(share, 1 - share) for share in shares] if aspect == "free" else []
    return [size(share, share) for share in shares] + opposites


def window_corners(grid: tuple[int, int], size: tuple[int, int], uniforms: np.ndarray) -> np.ndarray:
    """The corners of windows: uniform over all that lie inside the grid.

    Args:
        grid: G, (rows, columns).
        size: (h, w).
        uniforms: [B, 2] uniform in [0, 1).

    Returns:
        [B, 2] int64, first row and first column, in tokens.
    """
    counts = np.array([tokens - side + 1 for tokens, side in zip(grid, size, strict=True)])
    return np.floor(uniforms * counts).astype(np.int64)


def coordinates(grid: tuple[int, int], size: tuple[int, int], corners: Tensor) -> Tensor:
    """Windows as the denoiser takes them.

    Args:
        grid: G, (rows, columns).
        size: (h, w).
        corners: [B, 2] int64, first row and first column.

    Returns:
        [B, 4] float32, x0 y0 x1 y1 in [0, 1] of the whole image.

    Example:
        >>> coordinates((16, 16), (12, 12), torch.tensor([[4, 0]]))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])
    """
    top, left = corners.to(torch.float32).unbind(1)
    (rows, columns), (height, width) = grid, size
    return torch.stack([left / columns, top / rows, (left + width) / columns, (top + height) / rows], dim=1)


def cut(x: Tensor, corners: Tensor, size: tuple[int, int], patch_size: int) -> Tensor:
    """The windows of images, latents or pixels.

    Args:
        x: [B, C, H, W].
        corners: [B, 2] int64 on the device of x, first row and first column, in tokens.
        size: (h, w).
        patch_size: P.

    Returns:
        [B, C, h P, w P], a new tensor.
    """
    top, left = (corners * patch_size).unbind(1)
    rows = top[:, None] + torch.arange(size[0] * patch_size, device=x.device)
    columns = left[:, None] + torch.arange(size[1] * patch_size, device=x.device)
    batch = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return x[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]


def cropped(slots: np.ndarray, p: float) -> np.ndarray:
    """Which slots are cropped: slot s where floor((s + 1) p) > floor(s p), so every second one at p = 0.5.

    Their share is p, exact in the long run. Of B consecutive slots as many are cropped wherever they begin, if p B is
    whole: then shapes are static.

    Args:
        slots: [B] int64.
        p: in [0, 1]; taken as the nearest fraction with a denominator of at most a million.

    Returns:
        [B] bool.
    """
    ratio = Fraction(p).limit_denominator(10**6)
    return slots * ratio.numerator % ratio.denominator + ratio.numerator >= ratio.denominator
