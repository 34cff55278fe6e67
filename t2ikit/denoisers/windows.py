"""Windows: a network that sees a part of an image is told which, and keeps its tokens at their places in the whole.

Paper: "How far can we go with ImageNet for text-to-image generation?", Appendix F (Crop); the encoding is ours.

Shape legend::

    B  samples     D  token width     N  tokens of the part, row by row
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from t2ikit.denoisers.embeddings import grid_of, sincos
from t2ikit.denoisers.layers import Linear, truncated_normal_

WINDOW_TOKENS = 4


class WindowEmbed(nn.Module):
    """The corners of a window, x0 y0 x1 y1 in [0, 1], to four tokens: sin-cos, a shared MLP, a type vector each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = width // 4
        self.mlp = nn.Sequential(Linear(self.channels, width), nn.SiLU(), Linear(width, width))
        self.types = nn.Parameter(torch.empty(WINDOW_TOKENS, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the type vectors."""
        truncated_normal_(self.types)

    def forward(self, window: Tensor) -> Tensor:
        """[B, 4] -> [B, 4, D]."""
        return cast(Tensor, self.mlp(sincos(window, self.channels).to(self.types.dtype)) + self.types)


def window_rows(window: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """The windows of ``rows`` samples, [rows, 4]; None is the whole image, made on the device.

    Raises:
        ValueError: another shape.
    """
    if window is None:
        return (torch.arange(4, device=device) >= 2).to(torch.float32).expand(rows, -1)  # x0 = y0 = 0 and x1 = y1 = 1
    if window.shape != (rows, 4):
        raise ValueError(f"window [{rows}, 4] was expected, got {list(window.shape)}")
    return window


def grid_of_part(x: Tensor, whole: tuple[int, int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patches of x, a part of an image.

    Args:
        x: [B, C, h, w].
        whole: (C, H, W) of the image.
        patch_size: side of a patch.

    Raises:
        ValueError: x is no part of such an image.
    """
    part = x.shape[1:]
    if part[0] != whole[0] or part[1] > whole[1] or part[2] > whole[2]:
        raise ValueError(
            f"x [B, {', '.join(map(str, whole))}] (options in_channels and input_size), or a window of it, was "
            f"expected, got {list(x.shape)}"
        )
    return grid_of((part[1], part[2]), patch_size)


def window_places(window: Tensor, grid: tuple[int, int], part: tuple[int, int]) -> Tensor:
    """Where the patches of a part lie in the whole grid, counted row by row.

    Args:
        window: [B, 4]; its left upper corner says where the part begins.
        grid: rows and columns of the whole.
        part: rows and columns of the part.

    Returns:
        [B, N] int64.
    """
    left = (window[:, 0] * grid[1]).round().long().clamp(0, grid[1] - part[1])
    top = (window[:, 1] * grid[0]).round().long().clamp(0, grid[0] - part[0])
    rows = top[:, None] + torch.arange(part[0], device=window.device)
    columns = left[:, None] + torch.arange(part[1], device=window.device)
    return (rows[:, :, None] * grid[1] + columns[:, None, :]).flatten(1)
