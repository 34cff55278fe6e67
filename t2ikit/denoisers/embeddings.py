"""Patches, positions, noise levels and texts as tokens.

Shape legend::

    B  samples       C, H, W  channels, height, width of x     p  patch side     h, w  rows and columns of patches
    D  token width   L  text tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ikit.batch import Text
from t2ikit.denoisers.base import LevelKind
from t2ikit.denoisers.layers import Linear


def grid_of(input_size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of the patch grid of an x of side ``input_size``, or of (H, W).

    Raises:
        ValueError: when the patch does not divide the size.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if height < patch or width < patch or height % patch or width % patch:
        raise ValueError(f"input_size {height} x {width} must be a multiple of patch_size {patch}")
    return height // patch, width // patch


def canvas_of(grids: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Rows and columns of the smallest grid that holds each of these."""
    return max(grid[0] for grid in grids), max(grid[1] for grid in grids)


def centre_of(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """[h, w, D] -> [h' w', D], the positions of the h' x w' patches in the middle, row by row."""
    top, left = (table.shape[0] - grid[0]) // 2, (table.shape[1] - grid[1]) // 2
    return table[top : top + grid[0], left : left + grid[1]].flatten(0, 1)


def patchify(x: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, h w, C p p]: patches in row-major order, (channel, row, column) inside a patch."""
    rows, channels, height, width = x.shape
    x = x.view(rows, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * patch * patch)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """[B, h w, p p C] with (row, column, channel) inside a patch -> [B, C, h p, w p]."""
    rows = tokens.shape[0]
    tokens = tokens.view(rows, grid[0], grid[1], patch, patch, -1)
    return tokens.permute(0, 5, 1, 3, 2, 4).reshape(rows, -1, grid[0] * patch, grid[1] * patch)


def frequencies(count: int, device: torch.device) -> Tensor:
    """[count] float32, 10000^(-i / count) for i = 0 ... count - 1."""
    powers = torch.arange(count, dtype=torch.float32, device=device) / count
    return torch.pow(10000.0, -powers)


def sincos(values: Tensor, channels: int) -> Tensor:
    """[...] -> [..., channels] float32: cosines, then sines, of 1000 * value * frequency."""
    angles = (values.to(torch.float32) * 1000.0).unsqueeze(-1) * frequencies(channels // 2, values.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_grid(
    grid: tuple[int, int],
    channels: int,
    device: torch.device,
    base: int = 16,
    whole: tuple[int, int] | None = None,
) -> Tensor:
    """Fixed 2-D positions [h, w, channels] float32 (PixArt): half from the column index, half from the row index.

    Each half is [sin, cos] with frequencies 10000^(-i / (channels / 4)); an index is divided by (whole / base), so that
    another resolution spans the same range.

    Args:
        grid: rows and columns (h, w).
        channels: width of a position, a multiple of 4.
        device: of the result.
        base: range that ``whole`` spans.
        whole: rows and columns of the grid in the middle that begins at 0 and spans ``base``; by default all.
    """
    omega = frequencies(channels // 4, device)

    def axis(count: int, inner: int) -> Tensor:
        index = torch.arange(count, dtype=torch.float32, device=device) - (count - inner) // 2
        angles = index[:, None] * (base / inner) * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    whole = whole or grid
    columns = axis(grid[1], whole[1])[None].expand(grid[0], -1, -1)
    rows = axis(grid[0], whole[0])[:, None].expand(-1, grid[1], -1)
    return torch.cat([columns, rows], dim=2)


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: a convolution with kernel = stride = patch, computed as one matrix product."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, channels, patch, patch))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform on the stored tensor [D, C, p, p], fans as for a convolution."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, h w, D]."""
        return F.linear(patchify(x.to(self.weight.dtype), self.patch), self.weight.flatten(1), self.bias)


def unit_level(level: Tensor, kind: LevelKind) -> Tensor:
    """A noise level as a number in [0, 1], which the sinusoids are made for.

    gamma and t are as they are. Of a log-SNR it is 1/2 - log-SNR / 40, clipped to [0, 1] ("Greedy growing", Vasconcelos
    et al. 2024, https://arxiv.org/abs/2405.16759).

    Args:
        level: [B].
        kind: which scalar it is.
    """
    return (0.5 - level.float() / 40.0).clamp(0.0, 1.0) if kind == "log_snr" else level


class LevelEmbed(nn.Module):
    """A scalar to a token: sin-cos, z-normalisation over channels (n - 1, no epsilon), 2-layer SiLU MLP.

    The MLP alone has parameters; frequencies are recomputed, so that neither a cast nor a checkpoint can change them.

    Args:
        width: D, a multiple of 8.
        kind: which scalar it is: a number in [0, 1], or a log-SNR, which :func:`unit_level` makes one.
    """

    def __init__(self, width: int, kind: LevelKind = "gamma") -> None:
        super().__init__()
        self.channels, self.kind = width // 4, kind
        self.map_time = nn.Sequential(Linear(self.channels, width), nn.SiLU(), Linear(width, width))

    def features(self, level: Tensor) -> Tensor:
        """level [B] -> [B, D / 4] float32 with zero mean and unit (n - 1) standard deviation."""
        waves = sincos(unit_level(level, self.kind), self.channels)
        std, mean = torch.std_mean(waves, dim=-1, keepdim=True)
        return (waves - mean) / std

    def forward(self, level: Tensor) -> Tensor:
        """level [B] -> [B, D]."""
        dtype = cast(Linear, self.map_time[0]).weight.dtype
        return cast(Tensor, self.map_time(self.features(level).to(dtype)))


def text_widths(text_dim: int | Sequence[int]) -> int | tuple[int, ...]:
    """Width of the text states of the only text encoder, or a tuple with that of each.

    Raises:
        ValueError: no width, or one below 1.
    """
    widths = (text_dim,) if isinstance(text_dim, int) else tuple(text_dim)
    if not widths or min(widths) < 1:
        raise ValueError(f"text_dim must be a positive width, or one for each text encoder; got {text_dim}")
    return widths[0] if len(widths) == 1 else widths


def text_projection(text_dim: int | tuple[int, ...], width: int) -> Linear | nn.ModuleList:
    """What projects the states of the only text encoder to ``width``, or a list with one for each."""
    if isinstance(text_dim, int):
        return Linear(text_dim, width)
    return nn.ModuleList(Linear(dim, width) for dim in text_dim)


def project_texts(projection: Linear | nn.ModuleList, texts: Sequence[Text]) -> tuple[list[Tensor], Tensor]:
    """Tokens of every text by ``text_projection``, [B, L_i, D] each, and the mask [B, sum L_i] of all of them."""
    layers = cast("list[Linear]", [projection] if isinstance(projection, Linear) else list(projection))
    tokens = [layer(finite_states(text).to(layer.weight.dtype)) for layer, text in zip(layers, texts, strict=True)]
    return tokens, joined_mask(texts)


def finite_states(text: Text) -> Tensor:
    """The states [B, L, D]; those of padding that are not finite count as 0, since 0 times NaN is NaN."""
    return torch.where(text.mask[..., None], text.embeddings, text.embeddings.nan_to_num(0.0, 0.0, 0.0))


def joined_mask(texts: Sequence[Text]) -> Tensor:
    """[B, sum L_i], the masks of all texts, one after the other."""
    return texts[0].mask if len(texts) == 1 else torch.cat([text.mask for text in texts], dim=1)
