"""UViT: a transformer over a small grid, in a shell of convolutions that leads to pixels and back.

Paper: "Greedy growing enables high-resolution pixel-based diffusion models" (Vasconcelos et al. 2024,
https://arxiv.org/abs/2405.16759): first a shallow model whose core is the transformer, then another shell around the
same core for a higher resolution. Its tables of sizes are not public; the sizes here are fitted to the parameter counts
in its text. The modulation of the MLPs by the noise level is that of "Simple diffusion" (Hoogeboom et al. 2023,
https://arxiv.org/abs/2301.11093), confirmed by the counts in "Multistep consistency models" (Heek et al. 2024,
https://arxiv.org/abs/2403.06807).

Shape legend::

    B  samples       C, H, W  channels, height, width of x     h, w  rows and columns of the core's grid
    N  tokens, h w   D  width of the core                      E     width of e, the embedding of the noise level
    L  text tokens of all encoders
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ikit.batch import Prediction, Text, Texts
from t2ikit.denoisers.base import Denoiser, LevelKind
from t2ikit.denoisers.context import TextContext
from t2ikit.denoisers.embeddings import (
    finite_states,
    grid_of,
    joined_mask,
    sincos,
    sincos_grid,
    text_widths,
    unit_level,
)
from t2ikit.denoisers.layers import (
    CrossAttention,
    LayerNorm,
    Linear,
    SelfAttention,
    check_counts,
    check_divides,
    key_bias,
)
from t2ikit.denoisers.shells import LevelSizes, Shallow, Shell, zero_outputs

WAVES = 256
"""Channels of the sinusoids of the noise level."""


@dataclass(frozen=True)
class Core:
    """Sizes of the core.

    Attributes:
        width: of its tokens (D); a multiple of 4 and of ``heads``.
        blocks: number of blocks.
        heads: of every attention.
        noise_width: width of the embedding of the noise level (E).

    Raises:
        ValueError: sizes that do not divide.
    """

    width: int
    blocks: int
    heads: int
    noise_width: int = 1024

    def __post_init__(self) -> None:
        if min(self.width, self.blocks, self.heads, self.noise_width) < 1:
            raise ValueError(f"core: width, blocks, heads and noise_width must be at least 1; got {self}")
        check_divides("core.width", self.width, 4, "4, a sin-cos pair an axis")
        check_divides("core.width", self.width, self.heads, "core.heads")


SIZES: dict[str, tuple[Core, LevelSizes]] = {
    "Base": (Core(1280, 16, 10), LevelSizes((256, 512, 1024), (3, 3, 4))),
    "Large": (Core(2048, 20, 16), LevelSizes((256, 512, 1536), (3, 3, 3))),
    "Huge": (Core(3584, 20, 28), LevelSizes((256, 512, 2048), (3, 3, 3))),
    "XHuge": (Core(4096, 24, 32), LevelSizes((256, 512, 2048), (3, 3, 3))),
    "Vermeer": (Core(3584, 32, 28), LevelSizes((256, 512, 2048), (3, 3, 3))),
}
"""The sizes by name: the core, and the levels of the shell ``Levels``."""


class CoreBlock(nn.Module):
    """Self-attention, cross-attention to the text, and an MLP whose hidden vector e scales and shifts.

    All three are pre-norm with a residual; attentions have QK-norm.

    Args:
        width: D.
        heads: number of heads.
        noise_width: E.
    """

    def __init__(self, width: int, heads: int, noise_width: int) -> None:
        super().__init__()
        self.self_norm = LayerNorm(width)
        self.self_attention = SelfAttention(width, heads, qk_norm=True)
        self.cross_norm = LayerNorm(width)
        self.cross_attention = CrossAttention(width, width, heads, qk_norm=True)
        self.mlp_norm = LayerNorm(width)
        self.mlp_in = Linear(width, 4 * width)
        self.modulation = Linear(noise_width, 8 * width)
        self.mlp_out = Linear(4 * width, width)

    def zero_outputs(self) -> None:
        """Switches the three branches and the modulation off, as a fresh network has them."""
        for layer in (self.self_attention.out, self.cross_attention.out, self.modulation, self.mlp_out):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, e: Tensor, keys_values: Tensor, bias: Tensor) -> Tensor:
        """One block.

        Args:
            x: [B, N, D].
            e: [B, E].
            keys_values: [B, L, 2 D] of ``cross_attention``.
            bias: [B, 1, 1, L] of ``key_bias``.

        Returns:
            [B, N, D].
        """
        x = x + self.self_attention(self.self_norm(x))
        x = x + self.cross_attention(self.cross_norm(x), keys_values, bias)
        alpha, beta = self.modulation(e)[:, None].chunk(2, dim=2)
        hidden = F.silu(self.mlp_in(self.mlp_norm(x)))
        return x + cast(Tensor, self.mlp_out(hidden * (1 + alpha) + beta))


class NoiseEmbed(nn.Module):
    """log-SNR to e: the sinusoids of its ``unit_level``, and two layers with SiLU behind each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Linear(WAVES, width)
        self.second = Linear(width, width)

    def forward(self, log_snr: Tensor) -> Tensor:
        """[B] -> [B, E]."""
        waves = sincos(unit_level(log_snr, "log_snr"), WAVES)
        return F.silu(self.second(F.silu(self.first(waves.to(self.first.weight.dtype)))))


class TextEmbed(nn.Module):
    """LayerNorm and projection of the states of each encoder; the tokens of all follow each other.

    Args:
        widths: of the states of each encoder.
        width: D.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm(own) for own in widths)
        self.projections = nn.ModuleList(Linear(own, width) for own in widths)

    def forward(self, texts: Sequence[Text]) -> tuple[Tensor, Tensor]:
        """Texts of the encoders -> tokens [B, L, D], mask [B, L]."""
        dtype = cast(Linear, self.projections[0]).weight.dtype
        tokens = [
            projection(norm(finite_states(text).to(dtype)))
            for norm, projection, text in zip(self.norms, self.projections, texts, strict=True)
        ]
        return torch.cat(tokens, dim=1), joined_mask(texts)


class UViT(Denoiser):
    """The pixel model of greedy growing. The defaults are Shallow-UViT Base (662,633,731 parameters).

    The text is read by cross-attention alone and e knows the noise level alone, so that ``text`` and ``core`` can be
    frozen while ``time`` and ``shell`` are trained.

    Args:
        input_size: side of x, or (H, W); a multiple of the pixels a token of ``shell``.
        core: sizes of the transformer, or the name of known ones: Base, Large, Huge, XHuge, Vermeer.
        shell: the layers around it: ``Shallow`` (default) or ``Levels``.
        in_channels: channels of x (C).
        text_dim: width of the text states; for several text encoders, that of each: their tokens follow each other.
        checkpoint_blocks: recompute each block of core and shell in the backward pass; saves memory, costs time.
        other_sizes: (H, W) of further images that it takes, such as those of aspect buckets.

    Raises:
        ValueError: an unknown size, or sizes that do not divide; the message names it.
    """

    level_kind: LevelKind = "log_snr"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (f"{name}.",) for name in ("time", "text", "core", "shell")}

    def __init__(
        self,
        input_size: int | tuple[int, int] = 64,
        core: str | Core = "Base",
        shell: Shell | None = None,
        in_channels: int = 3,
        text_dim: int | Sequence[int] = (4096, 1024),
        checkpoint_blocks: bool = False,
        other_sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels)
        sizes, levels = _sizes(core)
        shell = Shallow() if shell is None else shell
        self.scale = shell.scale
        self.grids = tuple(_grid(size, self.scale) for size in (input_size, *other_sizes))
        self.in_channels, self.width = in_channels, sizes.width
        self.text_dim = text_widths(text_dim)
        self.checkpoint_blocks = checkpoint_blocks

        self.time = NoiseEmbed(sizes.noise_width)
        widths = (self.text_dim,) if isinstance(self.text_dim, int) else self.text_dim
        self.text = TextEmbed(widths, sizes.width)
        self.core = nn.ModuleList(CoreBlock(sizes.width, sizes.heads, sizes.noise_width) for _ in range(sizes.blocks))
        self.shell = shell.build(in_channels, sizes.width, sizes.noise_width, levels)
        # Computed, not learned: outside the state, rebuilt where they are needed, and fp32 whatever the weights are.
        self._positions = self._tables(self._weight.device)
        self._reset_own()

    def _reset_own(self) -> None:
        zero_outputs(self)

    @property
    def _weight(self) -> Tensor:
        """Any weight of the core: its device, and the dtype in which tokens are kept."""
        return self._blocks()[0].mlp_in.weight

    def _tables(self, device: torch.device) -> dict[tuple[int, int], Tensor]:
        """The positions [N, D] of every grid."""
        return {grid: sincos_grid(grid, self.width, device).flatten(0, 1) for grid in self.grids}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> UViT:
        super()._apply(fn, recurse)
        self._place(self._weight.device)
        return self

    def _place(self, device: torch.device) -> dict[tuple[int, int], Tensor]:
        """The positions on ``device``."""
        if self._positions[self.grids[0]].device != device:
            self._positions = self._tables(device)
        return self._positions

    @property
    def supports(self) -> frozenset[str]:
        """Taps, of the core's blocks; the texts of several encoders if it was built for them."""
        return frozenset({"taps", *(["several_texts"] if isinstance(self.text_dim, tuple) else [])})

    @property
    def tapped_blocks(self) -> int:
        """Number of the core's blocks."""
        return len(self.core)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one x."""
        return self.shapes[0]

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Every (C, H, W) that it takes: of ``input_size``, then of ``other_sizes``."""
        return tuple((self.in_channels, rows * self.scale, columns * self.scale) for rows, columns in self.grids)

    def _blocks(self) -> list[CoreBlock]:
        return cast("list[CoreBlock]", list(self.core))

    def encode_text(
        self,
        text: Texts,
        coherence: Tensor | float | None = None,
        window: Tensor | None = None,
    ) -> TextContext:
        """Keys and values of the projected text for every block of the core.

        Args:
            text: embeddings [B, L, text_dim], mask [B, L]; a tuple of such where ``text_dim`` has several widths.
            coherence: must be None.
            window: must be None.

        Raises:
            ValueError: a wrong width or number of texts, or an input that this network does not know.
        """
        if coherence is not None or window is not None:
            raise ValueError("UViT knows neither coherence nor window; CADI(coherence=True, window_tokens=True) does")
        tokens, mask = self._call(self.text, self._check_text(text))
        keys_values = tuple(self._call(block.cross_attention.keys_values, tokens) for block in self._blocks())
        return TextContext(keys_values, mask)

    def forward(
        self, x: Tensor, level: Tensor, context: TextContext, state: Any = None, taps: tuple[int, ...] = ()
    ) -> Prediction:
        """One prediction.

        Args:
            x: [B, C, H, W].
            level: [B], the log-SNR.
            context: of ``encode_text``, B rows.
            state: ignored; UViT carries none.
            taps: blocks of the core, counted from 1, after which its tokens [B, N, D] are returned.

        Returns:
            output in the shape and dtype of x; state None; the features of the taps.

        Raises:
            ValueError: a wrong shape; the message says what was expected.
        """
        self._check_call(x, level, context)
        self.check_taps(taps)
        e = self.time(level)
        hidden, kept = self.shell.enter(x.to(self._weight.dtype), e, self._run)
        grid = (hidden.shape[2], hidden.shape[3])
        tokens, features = self.through_core(hidden.flatten(2).transpose(1, 2), e, context, grid, taps)
        hidden = tokens.transpose(1, 2).unflatten(2, grid)
        return Prediction(self.shell.leave(hidden, kept, e, self._run).to(x.dtype), None, features)

    def through_core(
        self, tokens: Tensor, e: Tensor, context: TextContext, grid: tuple[int, int], taps: tuple[int, ...] = ()
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Positions and blocks: tokens [B, N, D] of ``grid``, e [B, E] -> [B, N, D], and the features of the taps."""
        # In the dtype of the weights: under autocast the residual stream is fp32, as in CAD-I and DiT-I.
        tokens = tokens + self._place(tokens.device)[grid].to(self._weight.dtype)
        bias = key_bias(context.mask, self._weight)
        after = {}
        for number, (block, keys_values) in enumerate(zip(self._blocks(), context.keys_values, strict=True), start=1):
            tokens = self._run(block, tokens, e, keys_values, bias)
            if number in taps:
                after[number] = tokens
        return tokens, tuple(after[tap] for tap in taps)


def _sizes(core: str | Core) -> tuple[Core, LevelSizes | None]:
    """The sizes of a core, and those of the levels where it is a known one.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(core, Core):
        return core, None
    if core not in SIZES:
        raise ValueError(f"core must be one of {', '.join(SIZES)}, or {{width, blocks, heads}}; got {core!r}")
    return SIZES[core]


def _grid(size: int | tuple[int, int], scale: int) -> tuple[int, int]:
    """Rows and columns of the core's grid for an x of side ``size``, or of (H, W)."""
    try:
        return grid_of(size, scale)
    except ValueError:
        shape = size if isinstance(size, int) else " x ".join(map(str, size))
        raise ValueError(f"input_size {shape} must be a multiple of {scale}, the pixels a token of the shell") from None
