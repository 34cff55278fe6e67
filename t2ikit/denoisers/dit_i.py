"""DiT-I: a diffusion transformer with text cross-attention in place of AdaLN-Zero.

Paper: "How far can we go with ImageNet for text-to-image generation?", DiT-I. After DiT (Peebles and Xie 2023,
https://arxiv.org/abs/2212.09748) and PixArt-alpha (Chen et al. 2023, https://arxiv.org/abs/2310.00426). No code was
released; what the paper leaves open (the path of the noise level, LayerScale, positions) is settled here as documented.

Shape legend::

    B  samples       N, D  data tokens (patches) and their width
    L  text tokens   K     keys of the condition: [noise level,] registers, text[, window corners]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from t2ikit.batch import Prediction, Texts
from t2ikit.denoisers.base import Denoiser, LevelKind, check_level_kind
from t2ikit.denoisers.context import TextContext
from t2ikit.denoisers.embeddings import (
    LevelEmbed,
    PatchEmbed,
    canvas_of,
    centre_of,
    grid_of,
    project_texts,
    sincos_grid,
    text_projection,
    text_widths,
    unpatchify,
)
from t2ikit.denoisers.layers import (
    MLP,
    CrossAttention,
    LayerNorm,
    Linear,
    SelfAttention,
    SelfBlock,
    check_counts,
    check_divides,
    key_bias,
    truncated_normal_,
)
from t2ikit.denoisers.windows import (
    WINDOW_TOKENS,
    WindowEmbed,
    check_one_size,
    grid_of_window,
    patch_positions,
    window_rows,
)

REFINE_BLOCKS = 2
REFINE_LAYER_SCALE = 0.1


class DiTBlock(nn.Module):
    """Self-attention, cross-attention to the condition, MLP; each pre-norm, with QK-norm and LayerScale.

    Args:
        width: D.
        heads: number of heads.
        ratio: widening of the MLP.
        layer_scale: initial value of the three branch scales.
        modulated: with a table [6, D] that, added to the shared modulation, shifts, scales and gates self-attention
            and MLP (adaLN-single, PixArt-alpha section 2.3).
    """

    def __init__(self, width: int, heads: int, ratio: int, layer_scale: float, modulated: bool) -> None:
        super().__init__()
        self.layer_scale = layer_scale
        self.self_norm = LayerNorm(width)
        self.self_attention = SelfAttention(width, heads, qk_norm=True)
        self.cross_norm = LayerNorm(width)
        self.cross_attention = CrossAttention(width, width, heads, qk_norm=True)
        self.mlp_norm = LayerNorm(width)
        self.mlp = MLP(width, ratio, approximate="tanh")
        self.scales = nn.Parameter(torch.empty(3, width))
        self.table = nn.Parameter(torch.empty(6, width)) if modulated else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the branch scales to their initial value and initialises the modulation table."""
        nn.init.constant_(self.scales, self.layer_scale)
        if self.table is not None:
            nn.init.normal_(self.table, std=self.table.shape[1] ** -0.5)

    def forward(self, x: Tensor, keys_values: Tensor, bias: Tensor, modulation: Tensor | None = None) -> Tensor:
        """One block.

        Args:
            x: [B, N, D].
            keys_values: [B, K, 2 D] of ``cross_attention``.
            bias: [B, 1, 1, K] of ``key_bias``.
            modulation: [B, 6, D], shared by all blocks; given exactly when the block has a table.

        Returns:
            [B, N, D].
        """
        self_scale, cross, wide = self.scales.unbind(0)
        if self.table is None or modulation is None:
            x = x + self.self_attention(self.self_norm(x)) * self_scale
            x = x + self.cross_attention(self.cross_norm(x), keys_values, bias) * cross
            return x + self.mlp(self.mlp_norm(x)) * wide
        shift_a, scale_a, gate_a, shift_b, scale_b, gate_b = (self.table + modulation).split(1, dim=1)
        x = x + self.self_attention(self.self_norm(x) * (1 + scale_a) + shift_a) * (gate_a * self_scale)
        x = x + self.cross_attention(self.cross_norm(x), keys_values, bias) * cross
        return x + self.mlp(self.mlp_norm(x) * (1 + scale_b) + shift_b) * (gate_b * wide)


class DiTI(Denoiser):
    """The diffusion transformer of the paper. The defaults are its 0.4 B parameters (431,859,984).

    Args:
        input_size: side of x, or (H, W); a multiple of ``patch_size``.
        in_channels: channels of x (C).
        patch_size: side of a patch.
        hidden_size: width of the tokens (D); a multiple of 8 and of ``num_heads``.
        depth: number of blocks.
        num_heads: heads of every attention.
        mlp_ratio: widening of the MLPs of the blocks.
        text_dim: width of the text states; for several text encoders, that of each: their tokens follow each other.
        num_registers: learned tokens in front of the text.
        layer_scale_init: initial value of the branch scales of the blocks.
        time_conditioning: "token" puts the noise level in front of the text, for the cross-attentions to read;
            "adaln_single" modulates self-attention and MLP (6.4 M parameters more).
        window_tokens: with four tokens that say which part of the image is seen; x may then be a part of it.
        checkpoint_blocks: recompute each block in the backward pass; saves memory, costs about a third more time.
        level_kind: scalar that the network receives: "gamma" for Gaussian diffusion, "t" for flows, or "log_snr".
        other_sizes: (H, W) of further images that it takes, such as those of aspect buckets. There is one table of
            positions, as high and as wide as the largest of all; an image has those in the middle. The positions of
            ``input_size`` are those without other sizes; they go on to both sides in the same steps.
        pooled_dim: width of the pooled vectors of all text encoders together, whose projection, zero at first, is added
            to the embedding of the noise level; 0 ignores them.

    Raises:
        ValueError: sizes that do not divide, or a value out of range; the message names the option.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "time": ("level_embed.", "modulation."),
        "text": ("text_proj.", "pooled_proj.", "registers", "window_embed.", "refine_blocks."),
        "core": ("blocks.",),
        "shell": ("patch_embed.", "final_norm.", "final."),
    }

    def __init__(
        self,
        input_size: int | tuple[int, int] = 32,
        in_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: int = 4,
        text_dim: int | Sequence[int] = 2048,
        num_registers: int = 16,
        layer_scale_init: float = 0.1,
        time_conditioning: Literal["token", "adaln_single"] = "token",
        window_tokens: bool = False,
        checkpoint_blocks: bool = False,
        level_kind: LevelKind = "gamma",
        other_sizes: Sequence[tuple[int, int]] = (),
        pooled_dim: int = 0,
    ) -> None:
        super().__init__()
        if time_conditioning not in ("token", "adaln_single"):
            raise ValueError(f"time_conditioning must be token or adaln_single, got {time_conditioning!r}")
        check_counts(in_channels=in_channels, patch_size=patch_size, hidden_size=hidden_size, depth=depth)
        check_counts(num_heads=num_heads, mlp_ratio=mlp_ratio)
        check_counts(least=0, num_registers=num_registers, pooled_dim=pooled_dim)
        if not math.isfinite(layer_scale_init):
            raise ValueError(f"layer_scale_init must be finite, got {layer_scale_init}")
        self.grids = tuple(grid_of(size, patch_size) for size in (input_size, *other_sizes))
        self.grid = canvas_of(self.grids)
        check_one_size(window_tokens, other_sizes)
        check_divides("hidden_size", hidden_size, num_heads, "num_heads")
        check_divides("hidden_size", hidden_size, 8, "8, two sin-cos pairs an axis")
        self.in_channels, self.patch_size = in_channels, patch_size
        self.text_dim, self.pooled_dim = text_widths(text_dim), pooled_dim
        self.hidden_size, self.num_registers = hidden_size, num_registers
        self.checkpoint_blocks, self.level_kind = checkpoint_blocks, check_level_kind(level_kind)

        modulated = time_conditioning == "adaln_single"
        self.patch_embed = PatchEmbed(in_channels, hidden_size, patch_size)
        self.level_embed = LevelEmbed(hidden_size, self.level_kind)
        self.modulation = nn.Sequential(nn.SiLU(), Linear(hidden_size, 6 * hidden_size, parts=6)) if modulated else None
        self.text_proj = text_projection(self.text_dim, hidden_size)
        self.pooled_proj = Linear(pooled_dim, hidden_size) if pooled_dim else None
        self.registers = nn.Parameter(torch.empty(num_registers, hidden_size))
        self.window_embed = WindowEmbed(hidden_size) if window_tokens else None
        self.refine_blocks = nn.ModuleList(
            SelfBlock(hidden_size, num_heads, layer_scale=REFINE_LAYER_SCALE, qk_norm=True, approximate="tanh")
            for _ in range(REFINE_BLOCKS)
        )
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, mlp_ratio, layer_scale_init, modulated) for _ in range(depth)
        )
        self.final_norm = LayerNorm(hidden_size)
        self.final = Linear(hidden_size, patch_size * patch_size * in_channels)
        # Computed, not learned: outside the state, rebuilt where it is needed, and fp32 whatever the weights are.
        self._positions = self._sincos(self.registers.device)
        self._reset_own()

    def _reset_own(self) -> None:
        truncated_normal_(self.registers)
        nn.init.zeros_(self.final.weight)
        if self.pooled_proj is not None:
            nn.init.zeros_(self.pooled_proj.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiTI:
        super()._apply(fn, recurse)
        self._place(self.registers.device)
        return self

    def _place(self, device: torch.device) -> Tensor:
        """The positions [h, w, D] on ``device``."""
        if self._positions.device != device:
            self._positions = self._sincos(device)
        return self._positions

    def _sincos(self, device: torch.device) -> Tensor:
        return sincos_grid(self.grid, self.hidden_size, device, whole=self.grids[0])

    @property
    def supports(self) -> frozenset[str]:
        """Taps; windows and the texts of several encoders if it was built for them."""
        options = {"window": self.window_embed is not None, "several_texts": isinstance(self.text_dim, tuple)}
        return frozenset({"taps", *(name for name, built in options.items() if built)})

    @property
    def tapped_blocks(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one whole x."""
        return self.shapes[0]

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Every (C, H, W) of a whole x: of ``input_size``, then of ``other_sizes``."""
        return tuple(
            (self.in_channels, rows * self.patch_size, columns * self.patch_size) for rows, columns in self.grids
        )

    def encode_text(
        self,
        text: Texts,
        coherence: Tensor | float | None = None,
        window: Tensor | None = None,
    ) -> TextContext:
        """Projection, registers, window tokens, refine blocks, and each block's keys and values of the result.

        Args:
            text: embeddings [B, L, text_dim], mask [B, L]; a tuple of such where ``text_dim`` has several widths.
            coherence: must be None.
            window: [B, 4] x0 y0 x1 y1 in [0, 1], the part of the image that is seen; None = all of it. Only with
                ``window_tokens=True``.

        Raises:
            ValueError: a wrong width or number of texts, or an input that this network was not built for.
        """
        if coherence is not None:
            raise ValueError("DiTI knows no coherence; CADI(coherence=True) does")
        if window is not None and self.window_embed is None:
            raise ValueError("this DiTI knows no window; build it with window_tokens=True")
        texts = self._check_text(text)
        rows = len(texts[0])
        tokens, mask = project_texts(self.text_proj, texts)
        sequences = [self.registers.expand(rows, -1, -1), *tokens]
        lead = 1 if self.modulation is None else 0
        mask = nn.functional.pad(mask, (lead + self.num_registers, 0), value=True)
        if self.window_embed is not None:
            window = window_rows(window, rows, mask.device)
            sequences.append(self.window_embed(window))
            mask = nn.functional.pad(mask, (0, WINDOW_TOKENS), value=True)
        sequence = torch.cat(sequences, dim=1)
        bias = key_bias(mask[:, lead:], self.registers)
        for block in self.refine_blocks:
            sequence = self._run(block, sequence, bias)
        keys_values = tuple(self._call(block.cross_attention.keys_values, sequence) for block in self._blocks())
        return TextContext(keys_values, mask, window, self._pooled(texts, self.pooled_proj))

    def _blocks(self) -> list[DiTBlock]:
        return cast("list[DiTBlock]", list(self.blocks))

    def forward(
        self, x: Tensor, level: Tensor, context: TextContext, state: Any = None, taps: tuple[int, ...] = ()
    ) -> Prediction:
        """One prediction.

        Args:
            x: [B, C, H, W]; with ``window_tokens`` also a part [B, C, h, w] of it, whose position the context's window
                says.
            level: [B], of kind ``level_kind``.
            context: of ``encode_text``, B rows.
            state: ignored; DiT-I carries none.
            taps: blocks, counted from 1, after which the image tokens [B, N, D] are returned.

        Returns:
            output in the shape and dtype of x; state None; the features of the taps.

        Raises:
            ValueError: a wrong shape; the message says what was expected.
        """
        positions, grid = self._positions_of(x, level, context)
        x_tokens = self.patch_embed(x) + positions.to(self.registers.dtype)
        token = self.level_embed(level)
        if context.pooled is not None:
            token = token + context.pooled
        bias = key_bias(context.mask, self.registers)
        modulation = None if self.modulation is None else self.modulation(token).unflatten(-1, (6, -1))
        self.check_taps(taps)
        after = {}
        for number, (block, keys_values) in enumerate(zip(self._blocks(), context.keys_values, strict=True), start=1):
            x_tokens = self._run(self._block, block, x_tokens, token, keys_values, bias, modulation)
            if number in taps:
                after[number] = x_tokens
        output = unpatchify(self.final(self.final_norm(x_tokens)), self.patch_size, grid)
        return Prediction(output.to(x.dtype), None, tuple(after[tap] for tap in taps))

    @staticmethod
    def _block(
        block: DiTBlock, x: Tensor, token: Tensor, keys_values: Tensor, bias: Tensor, modulation: Tensor | None
    ) -> Tensor:
        if modulation is None:
            keys_values = torch.cat([block.cross_attention.keys_values(token[:, None]), keys_values], dim=1)
        return cast(Tensor, block(x, keys_values, bias, modulation))

    def _positions_of(self, x: Tensor, level: Tensor, context: TextContext) -> tuple[Tensor, tuple[int, int]]:
        """Positions [1 or B, N, D] of the tokens of x, and its grid."""
        table = self._place(x.device)
        if self.window_embed is None or x.dim() != 4 or x.shape[1:] == self.input_shape:
            self._check_call(x, level, context)
            grid = grid_of((x.shape[2], x.shape[3]), self.patch_size)
            return centre_of(table, grid), grid
        self._check_rows(x, level, context)
        grid = grid_of_window(x, self.input_shape, self.patch_size)
        return table.flatten(0, 1)[patch_positions(cast(Tensor, context.window), self.grid, grid)], grid
