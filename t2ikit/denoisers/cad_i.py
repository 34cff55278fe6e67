"""CAD-I: a text-conditioned Recurrent Interface Network (Jabri et al. 2023, https://arxiv.org/abs/2212.11972).

A few latent tokens read from the data tokens, think, and write back; the latents of one call seed the next one
(latent self-conditioning). Sizes and details: "How far can we go with ImageNet for text-to-image generation?" and CAD
(Dufour et al. 2024, https://arxiv.org/abs/2405.20324). Parameters carry the names of the released weights.

Longer than other files, since one architecture is one file.

Shape legend::

    B  samples       N, Dd  data tokens (patches) and their width     M, D  latents and their width
    L  text tokens   K      keys of the condition: noise level, [coherence,] registers, text[, window corners]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from t2ikit.batch import Prediction, Texts
from t2ikit.denoisers.autocast import kept_rows, without_graph
from t2ikit.denoisers.base import Denoiser, LevelKind, check_level_kind
from t2ikit.denoisers.context import TextContext
from t2ikit.denoisers.embeddings import (
    LevelEmbed,
    PatchEmbed,
    canvas_of,
    centre_of,
    grid_of,
    project_texts,
    text_projection,
    text_widths,
    unpatchify,
)
from t2ikit.denoisers.layers import (
    MLP,
    CrossBlock,
    LayerNorm,
    Linear,
    SelfBlock,
    check_counts,
    check_divides,
    check_rates,
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
LAYER_SCALE = 0.1


class RINBlock(nn.Module):
    """Latents attend to the condition and to the data, then to themselves; then the data attends to the latents."""

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        num_layers: int,
        read_write_heads: int,
        compute_heads: int,
        latent_mlp_ratio: int,
        data_mlp_ratio: int,
        dropout: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.random = dropout > 0 or drop_path > 0
        self.retrieve_cond = CrossBlock(latent_dim, latent_dim, read_write_heads, latent_mlp_ratio)
        self.retriever_ca = CrossBlock(latent_dim, data_dim, read_write_heads, latent_mlp_ratio)
        self.processer_sa = nn.ModuleList(
            SelfBlock(latent_dim, compute_heads, latent_mlp_ratio, dropout, drop_path) for _ in range(num_layers)
        )
        self.writer_ca = CrossBlock(data_dim, latent_dim, read_write_heads, data_mlp_ratio)

    def forward(
        self, data: Tensor, latents: Tensor, level: Tensor, text: Tensor, bias: Tensor, write: bool = True
    ) -> tuple[Tensor, Tensor]:
        """One block.

        Args:
            data: [B, N, Dd].
            latents: [B, M, D].
            level: [B, 1, D], the noise-level token.
            text: [B, K - 1, 2 D], keys and values of the rest of the condition.
            bias: [B, 1, 1, K] of ``key_bias``.
            write: False leaves the data as it is.

        Returns:
            data and latents, shaped as given.
        """
        condition = torch.cat([self.retrieve_cond.ca.keys_values(level), text], dim=1)
        latents = self.retrieve_cond(latents, condition, bias)
        latents = self.retriever_ca(latents, self.retriever_ca.ca.keys_values(data))
        for layer in self.processer_sa:
            latents = layer(latents)
        if write:
            data = self.writer_ca(data, self.writer_ca.ca.keys_values(latents))
        return data, latents


class CADI(Denoiser):
    """The text-conditioned RIN. The defaults are the paper's model (L, 330 M parameters).

    Args:
        input_size: side of x, or (H, W); a multiple of ``patch_size``.
        in_channels: channels of x (C).
        patch_size: side of a patch.
        data_dim: width of the data tokens, one a patch (Dd).
        num_latents: number of latent tokens (M).
        latent_dim: their width (D); a multiple of 8 and of all three numbers of heads.
        num_blocks: number of RIN blocks.
        num_layers: self-attention layers over the latents in each block.
        read_write_heads: heads of the attentions to condition and data, and of the write; divides ``data_dim`` too.
        compute_heads: heads of the self-attention over the latents.
        latent_mlp_ratio: widening of the MLPs on the latents.
        data_mlp_ratio: widening of the MLP on the data tokens.
        text_dim: width of the text states; for several text encoders, that of each: their tokens follow each other.
        num_registers: learned tokens in front of the text.
        coherence: with a token for image-text coherence (CAD). Training takes it from an array of every record
            (``Denoising(coherence=...)``), sampling gives 1 to the text and 0 to the unconditional text.
        dropout: inside the MLPs of the self-attention layers over the latents.
        drop_path: stochastic depth of the same layers.
        checkpoint_blocks: recompute each block in the backward pass; saves memory, costs about a third more time.
        level_kind: scalar that the network receives: "gamma" for Gaussian diffusion, "t" for flows, or "log_snr".
        refine_heads: heads of the text refine blocks; 16 in all released sizes. Small widths want fewer.
        window_tokens: with four tokens that say which part of the image is seen; x may then be a part of it.
        other_sizes: (H, W) of further images that it takes, such as those of aspect buckets. There is one table of
            positions, as high and as wide as the largest of all; an image has those in the middle. A start with
            ``fit: resize`` stretches the table of a network of one size over all of it: images of that size begin
            with other positions than they had.
        pooled_dim: width of the pooled vectors of all text encoders together, whose projection, zero at first, is added
            to the embedding of the noise level; 0 ignores them.
        spread_start: start latents and positions at standard deviation 1 and the bias of the patch embedding at 0.35,
            in place of the paper's 0.02, 0.02 and 0, at which tokens are nearly the same for hundreds of steps: the
            latents beside one token of the noise level, the positions beside data tokens of unit variance, whose
            LayerNorm without that bias also takes away the length of a patch. 2.8 M parameters on latents of simple
            shapes, 600 steps: loss 0.66 for 0.86 at step 500, GenEval's single object 0.60 for 0.00, colors 0.73 for
            0.19 or 0.23. Unknown for the paper's sizes.

    Raises:
        ValueError: sizes that do not divide, or a value out of range; the message names the option.
    """

    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "time": ("time_embedder.",),
        "text": (
            "map_text_tokens.",
            "map_pooled.",
            "text_registers",
            "coherence_",
            "window_embed.",
            "transformers_blocks.",
        ),
        "core": ("latents", "linear_previous.", "ln_previous.", "rin_blocks."),
        "shell": ("patch_extractor.", "data_ln.", "data_pos_embedding", "map_tokens_to_patches."),
    }
    positions = ("data_pos_embedding",)
    _deaf_to_state = False  # not in the state: set by fixed_weights, for a while

    def __init__(
        self,
        input_size: int | tuple[int, int] = 32,
        in_channels: int = 4,
        patch_size: int = 2,
        data_dim: int = 256,
        num_latents: int = 256,
        latent_dim: int = 1024,
        num_blocks: int = 4,
        num_layers: int = 4,
        read_write_heads: int = 16,
        compute_heads: int = 16,
        latent_mlp_ratio: int = 4,
        data_mlp_ratio: int = 4,
        text_dim: int | Sequence[int] = 2048,
        num_registers: int = 16,
        coherence: bool = False,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        checkpoint_blocks: bool = False,
        level_kind: LevelKind = "gamma",
        refine_heads: int = 16,
        window_tokens: bool = False,
        other_sizes: Sequence[tuple[int, int]] = (),
        pooled_dim: int = 0,
        spread_start: bool = False,
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, patch_size=patch_size, data_dim=data_dim, num_latents=num_latents)
        check_counts(latent_dim=latent_dim, num_blocks=num_blocks, refine_heads=refine_heads)
        check_counts(read_write_heads=read_write_heads, compute_heads=compute_heads)
        check_counts(latent_mlp_ratio=latent_mlp_ratio, data_mlp_ratio=data_mlp_ratio)
        check_counts(least=0, num_layers=num_layers, num_registers=num_registers, pooled_dim=pooled_dim)
        check_rates(dropout=dropout, drop_path=drop_path)
        self.grids = tuple(grid_of(size, patch_size) for size in (input_size, *other_sizes))
        self.grid = canvas_of(self.grids)
        check_one_size(window_tokens, other_sizes)
        check_divides("latent_dim", latent_dim, 8, "8, a sin-cos pair of the noise level in a quarter of it")
        check_divides("latent_dim", latent_dim, refine_heads, "refine_heads")
        check_divides("latent_dim", latent_dim, read_write_heads, "read_write_heads")
        check_divides("min(data_dim, latent_dim)", min(data_dim, latent_dim), read_write_heads, "read_write_heads")
        check_divides("latent_dim", latent_dim, compute_heads, "compute_heads")
        self.in_channels, self.patch_size = in_channels, patch_size
        self.text_dim, self.pooled_dim = text_widths(text_dim), pooled_dim
        self.num_registers, self.coherence = num_registers, coherence
        self.checkpoint_blocks, self.level_kind = checkpoint_blocks, check_level_kind(level_kind)
        self.spread_start = spread_start

        self.patch_extractor = PatchEmbed(in_channels, data_dim, patch_size)
        self.data_ln = LayerNorm(data_dim)
        self.data_pos_embedding = nn.Parameter(torch.empty(self.grid[0] * self.grid[1], data_dim))
        self.time_embedder = LevelEmbed(latent_dim, self.level_kind)
        self.latents = nn.Parameter(torch.empty(num_latents, latent_dim))
        self.map_text_tokens = text_projection(self.text_dim, latent_dim)
        self.map_pooled = Linear(pooled_dim, latent_dim) if pooled_dim else None
        self.text_registers = nn.Parameter(torch.empty(num_registers, latent_dim))
        self.coherence_embedder = LevelEmbed(latent_dim) if coherence else None
        self.coherence_positional_embedding = nn.Parameter(torch.empty(latent_dim)) if coherence else None
        self.window_embed = WindowEmbed(latent_dim) if window_tokens else None
        self.transformers_blocks = nn.ModuleList(
            SelfBlock(latent_dim, refine_heads, layer_scale=LAYER_SCALE) for _ in range(REFINE_BLOCKS)
        )
        self.linear_previous = nn.Sequential(LayerNorm(latent_dim), MLP(latent_dim, 4))
        self.ln_previous = LayerNorm(latent_dim)
        self.rin_blocks = nn.ModuleList(
            RINBlock(
                data_dim,
                latent_dim,
                num_layers,
                read_write_heads,
                compute_heads,
                latent_mlp_ratio,
                data_mlp_ratio,
                dropout,
                drop_path,
            )
            for _ in range(num_blocks)
        )
        self.map_tokens_to_patches = nn.Sequential(
            LayerNorm(data_dim), Linear(data_dim, patch_size * patch_size * in_channels)
        )
        self._reset_own()

    def _reset_own(self) -> None:
        for table in (self.data_pos_embedding, self.latents, self.text_registers, self.coherence_positional_embedding):
            if table is not None:
                truncated_normal_(table)
        if self.spread_start:
            nn.init.normal_(self.data_pos_embedding)
            nn.init.normal_(self.latents)
            nn.init.normal_(self.patch_extractor.bias, std=0.35)
        # Zero weight and bias: the network starts without self-conditioning.
        nn.init.zeros_(self.ln_previous.weight)
        nn.init.zeros_(self.ln_previous.bias)
        if self.map_pooled is not None:
            nn.init.zeros_(self.map_pooled.weight)

    @property
    def supports(self) -> frozenset[str]:
        """Taps; windows, the texts of several encoders and coherence if it was built for them."""
        several = isinstance(self.text_dim, tuple)
        options = {"window": self.window_embed is not None, "several_texts": several, "coherence": self.coherence}
        return frozenset({"taps", *(name for name, built in options.items() if built)})

    @property
    def tapped_blocks(self) -> int:
        """Number of RIN blocks."""
        return len(self.rin_blocks)

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
            coherence: [B] or one number in [0, 1]; None = 1, full coherence. Only with ``coherence=True``.
            window: [B, 4] x0 y0 x1 y1 in [0, 1], the part of the image that is seen; None = all of it. Only with
                ``window_tokens=True``.

        Raises:
            ValueError: a wrong width or number of texts, or a window or coherence that this network was not built for.
        """
        if window is not None and self.window_embed is None:
            raise ValueError("this CADI knows no window; build it with window_tokens=True")
        if coherence is not None and not self.coherence:
            raise ValueError("this CADI knows no coherence; build it with coherence=True")
        texts = self._check_text(text)
        rows = len(texts[0])
        tokens, mask = project_texts(self.map_text_tokens, texts)
        sequences = [self.text_registers.expand(rows, -1, -1)]
        if self.coherence_embedder is not None and self.coherence_positional_embedding is not None:
            value = self._coherence_rows(coherence, rows, mask.device)
            sequences.insert(0, (self.coherence_embedder(value) + self.coherence_positional_embedding)[:, None])
        lead = sum(leading.shape[1] for leading in sequences)
        sequences += tokens
        # One more key in front of the refined sequence: the noise level, which is not known here.
        mask = nn.functional.pad(mask, (1 + lead, 0), value=True)
        if self.window_embed is not None:
            window = window_rows(window, rows, mask.device)
            sequences.append(self.window_embed(window))
            mask = nn.functional.pad(mask, (0, WINDOW_TOKENS), value=True)
        sequence = torch.cat(sequences, dim=1)
        bias = key_bias(mask[:, 1:], self.latents)
        for block in self.transformers_blocks:
            sequence = self._run(block, sequence, bias)
        keys_values = tuple(self._call(block.retrieve_cond.ca.keys_values, sequence) for block in self._blocks())
        return TextContext(keys_values, mask, window, self._pooled(texts, self.map_pooled))

    def _blocks(self) -> list[RINBlock]:
        return cast("list[RINBlock]", list(self.rin_blocks))

    @staticmethod
    def _coherence_rows(coherence: Tensor | float | None, rows: int, device: torch.device) -> Tensor:
        if not isinstance(coherence, Tensor):
            return torch.full((rows,), 1.0 if coherence is None else float(coherence), device=device)
        if coherence.shape != (rows,):
            raise ValueError(f"coherence [{rows}] was expected, got {list(coherence.shape)}")
        return coherence

    def forward(
        self, x: Tensor, level: Tensor, context: TextContext, state: Tensor | None = None, taps: tuple[int, ...] = ()
    ) -> Prediction:
        """One prediction.

        Args:
            x: [B, C, H, W]; with ``window_tokens`` also a part [B, C, h, w] of it, whose position the context's window
                says.
            level: [B], of kind ``level_kind``.
            context: of ``encode_text``, B rows.
            state: [B, M, D], the latents of an earlier call; None = zeros.
            taps: RIN blocks, counted from 1, after which the data tokens [B, N, Dd] are returned.

        Returns:
            output in the shape and dtype of x, the latents [B, M, D], and the features of the taps.

        Raises:
            ValueError: a wrong shape; the message says what was expected.
        """
        grid = self._check_part(x, level, context)
        shape = (x.shape[0], *self.latents.shape)
        if state is None:
            state = self.latents.new_zeros(shape)
        elif state.shape != shape:
            raise ValueError(f"state {list(shape)} was expected, latents of an earlier call; got {list(state.shape)}")
        self.check_taps(taps)
        data, latents, features = self._trunk(x, level, context, state, taps=taps)
        output = unpatchify(self.map_tokens_to_patches(data), self.patch_size, grid)
        return Prediction(output.to(x.dtype), latents, features)

    @contextmanager
    def fixed_weights(self) -> Iterator[None]:
        """Inside, nobody changes a weight: with a zero weight of ``ln_previous`` no state reaches the output, as in a
        network that was never trained with self-conditioning, and :meth:`self_condition` computes none."""
        self._deaf_to_state = not bool(self.ln_previous.weight.any())
        try:
            yield
        finally:
            self._deaf_to_state = False

    def self_condition(self, x: Tensor, level: Tensor, context: TextContext, keep: Tensor) -> Tensor:
        """The latents of a first call from zero latents; see :meth:`Denoiser.self_condition`.

        Args:
            x: [B, C, H, W], or a part of it.
            level: [B].
            context: of ``encode_text``, B rows.
            keep: [B] bool, preferably on the CPU, or int64 [R], the rows that are kept.

        Returns:
            [B, M, D] without a graph; zeros for rows that are not kept, and where :meth:`fixed_weights` has found that
            no state matters.

        Raises:
            ValueError: a wrong shape; the message says what was expected.
        """
        self._check_part(x, level, context)
        rows = x.shape[0]
        mask = keep.dtype == torch.bool and keep.shape == (rows,)
        if not mask and (keep.dtype != torch.int64 or keep.dim() != 1):
            raise ValueError(
                f"keep [{rows}] bool was expected, or int64 row numbers, got {list(keep.shape)} {keep.dtype}"
            )
        if self._deaf_to_state:
            return self.latents.new_zeros(rows, *self.latents.shape)
        with without_graph(x.device.type):
            if mask and torch.compiler.is_compiling():  # how many are kept is no shape: compute all
                chosen = keep.to(x.device, self.latents.dtype)[:, None, None]
                return self._first_latents(x, level, context) * chosen
            index = kept_rows(keep, x.device)
            some = index.shape[0] < rows
            if index.shape[0] == 0:
                return self.latents.new_zeros(rows, *self.latents.shape)
            if some:
                x, level, context = x.index_select(0, index), level.index_select(0, index), context.rows(index)
            latents = self._first_latents(x, level, context)
            if not some:
                return latents
            return latents.new_zeros(rows, *self.latents.shape).index_copy_(0, index, latents)

    def _check_part(self, x: Tensor, level: Tensor, context: TextContext) -> tuple[int, int]:
        """Raises ValueError where the arguments do not fit each other; the grid of x."""
        if self.window_embed is None or x.dim() != 4 or x.shape[1:] == self.input_shape:
            self._check_call(x, level, context)
            return grid_of((x.shape[2], x.shape[3]), self.patch_size)
        self._check_rows(x, level, context)
        return grid_of_window(x, self.input_shape, self.patch_size)

    def _first_latents(self, x: Tensor, level: Tensor, context: TextContext) -> Tensor:
        """[B, M, D] of a call from zero latents. They are all the same, so one row of the MLP on them serves all."""
        zero = self.latents.new_zeros(1, 1, self.latents.shape[1])
        return self._trunk(x, level, context, zero, write_last=False)[1]

    def _trunk(
        self,
        x: Tensor,
        level: Tensor,
        context: TextContext,
        state: Tensor,
        write_last: bool = True,
        taps: tuple[int, ...] = (),
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Data tokens [B, N, Dd] and latents [B, M, D] after the last block, whose write is skipped on demand; and the
        data tokens after each tap."""
        positions: Tensor = self.data_pos_embedding
        grid = (x.shape[2] // self.patch_size, x.shape[3] // self.patch_size)
        if grid != self.grid and self.window_embed is None:
            positions = centre_of(positions.unflatten(0, self.grid), grid)
        elif grid != self.grid:
            positions = positions[patch_positions(cast(Tensor, context.window), self.grid, grid)]
        data = self.data_ln(self.patch_extractor(x)) + positions
        token = self.time_embedder(level)[:, None]
        if context.pooled is not None:
            token = token + context.pooled[:, None]
        state = state.to(self.latents.dtype)
        latents = self.latents + token
        latents = latents + self.ln_previous(state + self.linear_previous(state))
        bias = key_bias(context.mask, self.latents)
        last, after = len(self.rin_blocks) - 1, {}
        for index, (block, text) in enumerate(zip(self._blocks(), context.keys_values, strict=True)):
            write = write_last or index < last
            data, latents = self._run(block, data, latents, token, text, bias, write, random=block.random)
            if index + 1 in taps:
                after[index + 1] = data
        return data, latents, tuple(after[tap] for tap in taps)


def cad_i_s(**options: Any) -> CADI:
    """CAD-I S, 47.8 M parameters. ``options``: any of CADI's, over the size's own."""
    size: dict[str, Any] = {"num_latents": 128, "latent_dim": 512, "num_blocks": 3, "num_layers": 2}
    size |= {"read_write_heads": 8, "data_mlp_ratio": 2, "dropout": 0.1, "drop_path": 0.1}
    return CADI(**(size | options))


def cad_i_b(**options: Any) -> CADI:
    """CAD-I B, 188.4 M parameters. ``options``: any of CADI's, over the size's own."""
    size: dict[str, Any] = {"num_latents": 128, "latent_dim": 768, "compute_heads": 12}
    return CADI(**(size | options))


def cad_i_l(**options: Any) -> CADI:
    """CAD-I L, 330.2 M parameters, the paper's model. ``options``: any of CADI's."""
    return CADI(**options)
