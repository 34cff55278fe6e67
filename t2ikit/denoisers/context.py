"""The text context that a denoiser hands out.

Shape legend::

    B  samples    K  keys of a conditioning attention: tokens before the text, registers, text, window
    A  width of a conditioning attention    D  width of the conditioning

A context is made once per text with ``Denoiser.encode_text`` and shared by the self-conditioning pass, the main pass
and all sampling steps: it holds whatever depends on neither x nor the level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

Kept = TypeVar("Kept", bound="Context")


@dataclass(frozen=True)
class Context:
    """What ``encode_text`` makes of B texts: a dataclass of tensors, each with B rows, or tuples of such, or None.

    Opaque outside the denoiser that made it; a denoiser of one's own adds fields. ``padded`` names the fields whose
    second axis counts tokens: the shorter text of two is padded with zeros, which a mask then hides.
    """

    padded: ClassVar[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return self._first().shape[0]

    def _first(self) -> Tensor:
        """Any of the tensors: all have the same rows and device."""
        values = [getattr(self, item.name) for item in fields(self)]
        flat = [entry for value in values for entry in (value if isinstance(value, tuple) else (value,))]
        return next(entry for entry in flat if entry is not None)

    def _map(self: Kept, function: Callable[[Tensor], Tensor]) -> Kept:
        def mapped(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(mapped(entry) for entry in value)
            return None if value is None else function(value)

        return type(self)(*(mapped(getattr(self, item.name)) for item in fields(self)))

    def rows(self: Kept, index: Tensor) -> Kept:
        """The contexts at ``index`` [R] int64, in that order; a row may be taken several times."""
        index = index.to(self._first().device, non_blocking=True)
        return self._map(lambda tensor: tensor.index_select(0, index))

    def detach(self: Kept) -> Kept:
        """The same values outside the graph."""
        return self._map(Tensor.detach)

    def cat(self: Kept, other: Kept) -> Kept:
        """These contexts, then those of ``other``; the shorter text is padded with zeros.

        Raises:
            ValueError: when the two come from different denoisers, or only one has a window.
        """
        if type(self) is not type(other):
            raise ValueError("cat joins contexts of one denoiser; these two are of different kinds")
        return type(self)(
            *(self._joined(item.name, getattr(self, item.name), getattr(other, item.name)) for item in fields(self))
        )

    def _joined(self, name: str, first: Any, second: Any) -> Any:
        if isinstance(first, tuple) and isinstance(second, tuple):
            if len(first) != len(second):
                raise ValueError("cat joins contexts of one denoiser; these two have unlike blocks or widths")
            return tuple(self._joined(name, a, b) for a, b in zip(first, second, strict=True))
        if (first is None) != (second is None):
            raise ValueError(
                f"cat joins contexts that both have a {name} or both have none: give both a {name} or neither"
            )
        if first is None:
            return None
        if name in self.padded:
            length = max(first.shape[1], second.shape[1])
            first, second = _padded(first, length), _padded(second, length)
        if first.shape[1:] != second.shape[1:]:
            raise ValueError("cat joins contexts of one denoiser; these two have unlike blocks or widths")
        return torch.cat([first, second])


def _padded(tensor: Tensor, length: int) -> Tensor:
    """[B, L, ...] with zeros up to ``length`` along its second axis."""
    extra = length - tensor.shape[1]
    return tensor if extra == 0 else nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, extra))


@dataclass(frozen=True)
class TextContext(Context):
    """Keys and values of the text for every block of a denoiser.

    Attributes:
        keys_values: one tensor [B, K', 2 A] a block, keys then values along the last axis. K' = K less the tokens that
            depend on the level and go in front.
        mask: [B, K] bool, True where a key may be looked at.
        window: [B, 4] float x0 y0 x1 y1 in [0, 1], the part of the image that is seen; None = all of it.
        pooled: [B, D], the projected pooled vectors, which are added to the embedding of the level; None without them.
    """

    padded = ("keys_values", "mask")

    keys_values: tuple[Tensor, ...]
    mask: Tensor
    window: Tensor | None = None
    pooled: Tensor | None = None
