"""Text states as they are stored: int8 values with a scale for every group of channels, or float16.

Shapes: L tokens of a caption, D width of its states, G scales a token (one a group of 64 channels), P width of a pooled
vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # imported where states are quantised: `t2ikit prepare --help` would take 1.5 s longer
    from torch import Tensor

    from t2ikit.batch import Text

GROUP = 64
"""Channels that share one scale."""

_TYPES = (np.dtype(np.int8), np.dtype(np.float16))


def groups(width: int) -> int:
    """Scales that one int8 token of ``width`` channels has."""
    return -(-width // GROUP)


@dataclass(frozen=True)
class Tokens:
    """States of one caption, as stored.

    Attributes:
        values: [L, D] int8, or float16.
        scales: [L, G] float16 for int8 values, None for float16 values.
    """

    values: np.ndarray
    scales: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype not in _TYPES:
            raise ValueError(f"token values are [L, D] int8 or float16; got {self.values.shape} {self.values.dtype}")
        if (self.scales is None) != (self.values.dtype == np.float16):
            raise ValueError("int8 token values need scales, float16 values have none")
        if self.scales is not None and self.scales.shape != (len(self.values), groups(self.values.shape[1])):
            raise ValueError(f"scales {self.scales.shape} do not fit values {self.values.shape}")

    def __len__(self) -> int:
        return len(self.values)

    def dequantise(self) -> np.ndarray:
        """The states, [L, D] float32."""
        states = self.values.astype(np.float32)
        if self.scales is None:
            return states
        return states * np.repeat(self.scales.astype(np.float32), GROUP, axis=1)[:, : states.shape[1]]


@dataclass(frozen=True)
class States:
    """What one text encoder gives for one caption.

    Attributes:
        tokens: the states of its tokens.
        pooled: [P] float16, one vector for the whole text; None for an encoder that gives none.
    """

    tokens: Tokens
    pooled: np.ndarray | None = None


def as_text(captions: Iterable[States]) -> Text | tuple[Text, ...]:
    """One caption by every text encoder, as a batch of one row: embeddings [1, L, D] and pooled [1, P] float32."""
    import torch

    from t2ikit.batch import Text

    texts = []
    for states in captions:
        text = Text.from_rows([torch.from_numpy(states.tokens.dequantise())])
        pooled = None if states.pooled is None else torch.from_numpy(states.pooled.astype(np.float32))[None]
        texts.append(replace(text, pooled=pooled))
    return texts[0] if len(texts) == 1 else tuple(texts)


def quantise_tokens(states: np.ndarray | Tensor, token_format: str = "int8") -> Tokens:
    """Text states as they are stored.

    Measured on flan-T5-XL states: int8 with groups of 64 has a median relative error of 0.67 % a token (at most 1.9 %);
    one scale a token has 1.2 % (outlier channels), float16 has 0.02 % for twice the bytes.

    Args:
        states: [L, D] float.
        token_format: "int8" or "float16".

    Raises:
        ValueError: for states that are not finite, an empty text or an unknown format.
    """
    import torch

    return quantise_states([torch.as_tensor(states, dtype=torch.float32)], token_format)[0]


def quantise_states(texts: Sequence[Tensor], token_format: str = "int8") -> list[Tokens]:
    """The states of several texts as they are stored: computed at once, on their device.

    Args:
        texts: [L, D] float each.
        token_format: "int8" or "float16".

    Raises:
        ValueError: as :func:`quantise_tokens`.
    """
    import torch

    if token_format not in ("int8", "float16"):
        raise ValueError(f'token_format is "int8" or "float16", not "{token_format}"')
    for states in texts:
        if states.dim() != 2 or len(states) == 0:
            raise ValueError(f"text states are [L, D] with L >= 1; got {tuple(states.shape)}")
    if not texts:
        return []
    rows = torch.cat([states.detach() for states in texts]).float()
    finite = torch.isfinite(rows).all()
    scales = None
    if token_format == "float16":
        values = rows.clamp(-65504, 65504).half()
    else:
        width = rows.shape[1]
        padded = torch.nn.functional.pad(rows, (0, groups(width) * GROUP - width)).view(len(rows), -1, GROUP)
        scales = (padded.abs().amax(dim=2) / 127).half()
        # Divided by the rounded scale that will be read back, so that its rounding costs nothing.
        divisor = torch.where(scales > 0, scales, 1).float()[:, :, None]
        values = (padded / divisor).round().clamp(-127, 127).to(torch.int8).view(len(rows), -1)[:, :width].contiguous()
        scales = scales.cpu()
    values = values.cpu()
    if not finite:
        raise ValueError("text states hold values that are not finite: run the text encoder in float32 or bfloat16")
    lengths = [len(states) for states in texts]
    scales_of = [None] * len(texts) if scales is None else [rows.numpy() for rows in scales.split(lengths)]
    return [Tokens(rows.numpy(), scale) for rows, scale in zip(values.split(lengths), scales_of, strict=True)]
