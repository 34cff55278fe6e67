"""Windows: a network that sees a part of an image receives its window and keeps the tokens' positions.

Paper: "How far can we go with ImageNet for text-to-image generation?", Appendix F (Crop); the encoding is ours.

Shape legend::

    B  samples     D  token width     N  tokens of the part, row by row
"""

from __future__ import annotations

from collections.abc import Sequence
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


def check_one_size(window_tokens: bool, other_sizes: Sequence[tuple[int, int]]) -> None:
    """Refuses a network that would see parts of images of several shapes: a part does not say which of them it is of.

    Raises:
        ValueError: both options are set.
    """
    if window_tokens and other_sizes:
        raise ValueError("other_sizes and window_tokens do not go together: a window is a part of images of one size")


def grid_of_window(x: Tensor, image_shape: tuple[int, int, int], patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patches of x, a window of an image.

    Args:
        x: [B, C, h, w].
        image_shape: (C, H, W) of the image.
        patch_size: side of a patch.

    Raises:
        ValueError: x is no window of such an image.
    """
    channels, height, width = x.shape[1:]
    if channels != image_shape[0] or height > image_shape[1] or width > image_shape[2]:
        raise ValueError(
            f"x [B, {', '.join(map(str, image_shape))}] (options in_channels and input_size), or a window of it, was "
            f"expected, got {list(x.shape)}"
        )
    return grid_of((height, width), patch_size)


def patch_positions(window: Tensor, grid: tuple[int, int], window_grid: tuple[int, int]) -> Tensor:
    """Positions of the patches of a window in the grid of the image, counted row by row.

    Args:
        window: [B, 4] x0 y0 x1 y1 in [0, 1]; only x0 and y0 are used.
        grid: rows and columns of patches of the image.
        window_grid: rows and columns of patches of the window.

    Returns:
        [B, N] int64.
    """
    left = (window[:, 0] * grid[1]).round().long().clamp(0, grid[1] - window_grid[1])
    top = (window[:, 1] * grid[0]).round().long().clamp(0, grid[0] - window_grid[0])
    rows = top[:, None] + torch.arange(window_grid[0], device=window.device)
    columns = left[:, None] + torch.arange(window_grid[1], device=window.device)
    return (rows[:, :, None] * grid[1] + columns[:, None, :]).flatten(1)
