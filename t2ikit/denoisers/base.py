"""The contract of a denoiser.

Shape legend::

    B  samples        C, H, W  channels, height, width of x        level [B]  the scalar a denoiser receives
    L  text tokens    D  width of tokens or states                 N  image tokens
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from t2ikit.batch import Prediction, Text, Texts, each_text, text_rows
from t2ikit.denoisers.adopt import chosen
from t2ikit.denoisers.context import Context

LevelKind = Literal["gamma", "t", "log_snr"]


class Denoiser(nn.Module, ABC):
    """Predicts the target of a diffusion process from a noisy x, the noise level and a text.

    Attributes:
        level_kind: which scalar the network receives: "gamma" (signal power), "t", or "log_snr".
        text_dim: width of the text states it takes; of several text encoders, a tuple with the width of each.
        pooled_dim: width of the pooled vectors it takes, those of all text encoders together; 0 ignores them.
        checkpoint_blocks: recompute every block in the backward pass instead of keeping its activations.
        parts: prefixes of the names of its parameters by part: "time", "text", "core", "shell" (input and output).
        positions: names of its learned position tables, [N, D] over its grid, which can be resized.
    """

    level_kind: LevelKind = "gamma"
    text_dim: int | tuple[int, ...]
    pooled_dim: int = 0
    checkpoint_blocks: bool = False
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    positions: ClassVar[tuple[str, ...]] = ()
    _caller: Callable[..., Any] | None = None  # not in the state: set by called_by, for a while

    @property
    def supports(self) -> frozenset[str]:
        """What it can beyond the plain call: "window" (sees parts of an image), "taps" (returns features, see
        ``tapped_blocks``), "several_texts" (takes a tuple with the text of each of several encoders), "coherence"
        (knows how well text and image agree)."""
        return frozenset()

    @property
    def tapped_blocks(self) -> int:
        """Number of blocks after which features can be taken; 0 for a denoiser that does not support "taps"."""
        return 0

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one x."""

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Every (C, H, W) of a whole x that it takes; ``input_shape`` first."""
        return (self.input_shape,)

    @abstractmethod
    def encode_text(
        self,
        text: Texts,
        coherence: Tensor | float | None = None,
        window: Tensor | None = None,
    ) -> Context:
        """Everything that depends on neither x nor level.

        Args:
            text: embeddings [B, L, D], mask [B, L]; a tuple for a denoiser of several text encoders.
            coherence: [B] in [0, 1], how well text and image agree; for denoisers that know it.
            window: [B, 4] x0 y0 x1 y1 in [0, 1], the part of the image seen; for denoisers that know it.

        Raises:
            ValueError: a wrong width, or an input that this denoiser was not built with.
        """

    @abstractmethod
    def forward(self, x: Tensor, level: Tensor, context: Any, state: Any = None) -> Prediction:
        """One prediction. A denoiser that supports "taps" takes ``taps``, too: blocks, counted from 1.

        Args:
            x: [B, C, H, W].
            level: [B], of kind ``level_kind``.
            context: of ``encode_text``, B rows.
            state: what the previous call returned, or None.

        Returns:
            output [B, C, H, W] in the dtype of x, the state for the next call (None when there is none), and the
            features after the taps, [B, N, D] each.

        Raises:
            ValueError: a wrong shape; the message says what was expected.
        """

    def self_condition(self, x: Tensor, level: Tensor, context: Any, keep: Tensor) -> Any:
        """The first of two passes: the state for the main pass, or None for a denoiser without state.

        No graph is built. Only rows where ``keep`` [B] bool is True are computed; the others get the zero state. Give
        ``keep`` on the CPU, since on another device its count is a host sync, or as the int64 index [R] of its rows,
        whose shape ``torch.compile`` can know.
        """
        return None

    @contextmanager
    def fixed_weights(self) -> Iterator[None]:
        """Inside, nobody changes a weight: what these weights make needless is found once, and left out."""
        yield

    def _reset_own(self) -> None:
        """Initialises the parameters that no submodule initialises."""

    def reset_parameters(self) -> None:
        """Initialises all weights again, e.g. after construction on the meta device and ``to_empty``."""
        for module in self.modules():
            if module is not self and callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self._reset_own()

    def adopt(
        self,
        weights: Mapping[str, Tensor],
        fit: str = "strict",
        take: Sequence[str] = (),
        grid: tuple[int, int] | None = None,
    ) -> str:
        """Takes the weights of another denoiser.

        Args:
            weights: by name.
            fit: "strict": equal names and shapes. "resize": ``positions`` may be of another grid. "grow": only the
                parts that ``take`` names, which must be equal; the rest stays as it is.
            take: names of ``parts``.
            grid: (h, w) of the other denoiser's ``positions``; None = unknown, then as many are of the same grid.

        Returns:
            In a few words, what was resized and what stays fresh; empty if everything was taken as it is.

        Raises:
            ValueError: what does not match, by name; nothing is changed then.
        """
        strange = [part for part in take if part not in self.parts]
        if strange:
            raise ValueError(f"{type(self).__name__} has no part {', '.join(strange)}; it has {', '.join(self.parts)}")
        prefixes = [prefix for part in take for prefix in self.parts[part]]
        own = getattr(self, "grid", None)
        taken, changes = chosen(self.state_dict(), weights, fit, prefixes, self.positions, own, grid)
        self.load_state_dict(taken, strict=False)
        return changes

    @contextmanager
    def called_by(self, caller: Callable[..., Any]) -> Iterator[None]:
        """Inside, ``caller(block, *args)`` calls every block; ``t2ikit.diffusion.compiled`` gives compiled code."""
        kept, self._caller = self._caller, caller
        try:
            yield
        finally:
            self._caller = kept

    def _call(self, block: Callable[..., Any], *args: Any) -> Any:
        """Calls a part of the network that occurs many times."""
        return block(*args) if self._caller is None else self._caller(block, *args)

    def _run(self, block: Callable[..., Any], *args: Any, random: bool = False) -> Any:
        """Calls a block, under gradient checkpointing when that is asked for. ``random``: it takes random numbers."""
        if self.checkpoint_blocks and torch.is_grad_enabled():
            call = (block, *args) if self._caller is None else (self._caller, block, *args)
            return checkpoint(*call, use_reentrant=False, preserve_rng_state=random)
        return self._call(block, *args)

    def check_taps(self, taps: Sequence[int]) -> None:
        """Raises ValueError for taps that are no blocks of it."""
        if taps and "taps" not in self.supports:
            raise ValueError(
                f"features after blocks {', '.join(map(str, taps))} were asked for; {type(self).__name__} gives none "
                "(its `supports` has no 'taps')"
            )
        wrong = [tap for tap in taps if not 1 <= tap <= self.tapped_blocks]
        if wrong:
            raise ValueError(
                f"taps are blocks, 1 to {self.tapped_blocks} of {type(self).__name__}; got {', '.join(map(str, wrong))}"
            )

    def _check_text(self, text: Texts) -> tuple[Text, ...]:
        """The text of each encoder, if there are as many as ``text_dim`` has widths, each as wide as it says."""
        texts = each_text(text)
        wanted = (self.text_dim,) if isinstance(self.text_dim, int) else self.text_dim
        widths = tuple(encoded.embeddings.shape[2] for encoded in texts)
        if len(texts) != len(wanted):
            encoders = "one text encoder" if len(wanted) == 1 else f"{len(wanted)} text encoders"
            raise ValueError(f"the text of {encoders} was expected (option text_dim), got that of {len(texts)}")
        if widths != wanted:
            raise ValueError(
                f"text states of width {_listed(wanted)} were expected (option text_dim), got {_listed(widths)}"
            )
        text_rows(text)
        return texts

    def _pooled(self, texts: Sequence[Text], projection: nn.Linear | None) -> Tensor | None:
        """[B, D], the projection of the pooled vectors of all encoders side by side; None without a projection."""
        if projection is None:
            return None
        pooled = [text.pooled for text in texts if text.pooled is not None]
        width = sum(vectors.shape[1] for vectors in pooled)
        if width != self.pooled_dim:
            raise ValueError(
                f"pooled vectors of {self.pooled_dim} numbers in all were expected (option pooled_dim), got {width}"
            )
        return cast(Tensor, projection(torch.cat(pooled, dim=1).to(projection.weight.dtype)))

    def _check_call(self, x: Tensor, level: Tensor, context: Context) -> None:
        if x.dim() != 4 or tuple(x.shape[1:]) not in self.shapes:
            wanted = " or ".join(f"[B, {', '.join(map(str, shape))}]" for shape in self.shapes)
            raise ValueError(
                f"x {wanted} was expected (options in_channels, input_size and other_sizes), got {list(x.shape)}"
            )
        self._check_rows(x, level, context)

    @staticmethod
    def _check_rows(x: Tensor, level: Tensor, context: Context) -> None:
        rows = x.shape[0]
        if level.dim() != 1 or level.shape[0] != rows:
            raise ValueError(f"level [{rows}] was expected, one scalar a sample, got {list(level.shape)}")
        if not isinstance(context, Context):
            raise ValueError(f"context of encode_text was expected, got {type(context).__name__}")
        if len(context) != rows:
            raise ValueError(
                f"a context of {rows} rows was expected, got {len(context)}; context.rows(index) repeats rows"
            )


def _listed(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))


def check_level_kind(kind: str) -> LevelKind:
    """``kind`` if it is known.

    Raises:
        ValueError: naming the known kinds.
    """
    for known in get_args(LevelKind):
        if kind == known:
            return known
    raise ValueError(f"level_kind must be one of {', '.join(get_args(LevelKind))}; got {kind!r}")
