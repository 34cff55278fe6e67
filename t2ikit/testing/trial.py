"""Inputs that checks of several kinds share: texts, batches and a small denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from t2ikit.augment.crop import coordinates, cut, sides
from t2ikit.batch import Batch, Prediction, Text, Texts
from t2ikit.denoisers import CADI, Denoiser
from t2ikit.testing.base import NotApplicable, moved_off_zero

Small = TypeVar("Small", bound=CADI)
TOKENS, WIDTH = 16, 64
"""Image tokens of the small denoiser, and their width."""
TEXT_DIM = 24


class WatchedDenoiser(CADI):
    """Notes the taps and the windows that it is asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.taps_asked: set[int] = set()
        self.windows_seen = 0

    def encode_text(self, text: Any, coherence: Any = None, window: Tensor | None = None) -> Any:
        """As CAD-I."""
        self.windows_seen += window is not None
        return super().encode_text(text, coherence, window)

    def forward(self, x: Tensor, level: Tensor, context: Any, state: Any = None, taps: Any = ()) -> Prediction:
        """As CAD-I."""
        self.taps_asked.update(taps)
        return super().forward(x, level, context, state, taps)


def trial_denoiser(taps: Sequence[int] = ()) -> CADI:
    """A small CAD-I for x [B, 4, 8, 8] in evaluation mode, the same each time, with as many blocks as ``taps`` need."""
    return _small(CADI, taps)


def watched_denoiser(taps: Sequence[int] = ()) -> WatchedDenoiser:
    """The same, watched."""
    return _small(WatchedDenoiser, taps)


def _small(kind: type[Small], taps: Sequence[int]) -> Small:
    sizes: dict[str, Any] = {"input_size": 8, "data_dim": WIDTH, "num_latents": 6, "latent_dim": WIDTH}
    sizes |= {"num_blocks": max(1, *taps, 1), "num_layers": 1, "num_registers": 2, "text_dim": TEXT_DIM}
    sizes |= {"read_write_heads": 4, "compute_heads": 4, "refine_heads": 4, "window_tokens": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return moved_off_zero(kind(**sizes)).eval()


def trial_text(denoiser: Denoiser, rows: int, tokens: int, seed: int = 0) -> Texts:
    """Texts of unlike lengths, padded to ``tokens``, as the denoiser takes them: one for each width of ``text_dim``.

    The first one has pooled vectors where the denoiser takes any.
    """
    width = denoiser.text_dim
    if isinstance(width, int):
        return _text(width, rows, tokens, seed, denoiser.pooled_dim)
    pooled = [denoiser.pooled_dim] + [0] * (len(width) - 1)
    return tuple(
        _text(size, rows, tokens, seed + index, vectors)
        for index, (size, vectors) in enumerate(zip(width, pooled, strict=True))
    )


def _text(width: int, rows: int, tokens: int, seed: int, pooled: int = 0) -> Text:
    generator = torch.Generator().manual_seed(seed)
    lengths = 1 + (3 * torch.arange(rows) + tokens - 1) % tokens
    embeddings = torch.randn(rows, tokens, width, generator=generator)
    vectors = torch.randn(rows, pooled, generator=generator) if pooled else None
    return Text(embeddings, torch.arange(tokens)[None] < lengths[:, None], vectors)


def trial_batch(
    shape: tuple[int, int, int] = (4, 8, 8),
    rows: int = 6,
    tokens: int = 5,
    slot: int = 3,
    arrays: Mapping[str, tuple[int, ...]] | None = None,
) -> Batch:
    """A batch of random numbers, the same each time, with t over nearly all of [0, 1]."""
    generator = torch.Generator().manual_seed(slot)
    names = {name: torch.randn(rows, *size, generator=generator) for name, size in (arrays or {}).items()}
    text = _text(TEXT_DIM, rows, tokens, slot)
    return Batch(
        torch.randn(rows, *shape, generator=generator),
        text,
        torch.linspace(0.05, 0.95, rows),
        torch.zeros(rows, dtype=torch.int64),
        torch.arange(rows) + 100,
        slot=slot,
        extra=names,
        text_lengths=text.mask.sum(1, keepdim=True).numpy(),
    )


def windows(denoiser: Denoiser, x: Tensor, shift: int = 0) -> tuple[Tensor, Tensor]:
    """Parts of x [B, C, h, w] and their windows [B, 4], as the callback Crop makes them; rows look at unlike places.

    Args:
        denoiser: says the grid of its patches by ``grid`` and ``patch_size``.
        x: [B, C, H, W].
        shift: another number gives other places.

    Raises:
        NotApplicable: the grid has no window of more than half of it.
    """
    grid, patch_size = denoiser.grid, denoiser.patch_size
    assert isinstance(grid, tuple) and isinstance(patch_size, int)
    try:
        size = (sides(grid[0])[0], sides(grid[1])[0])
    except ValueError as error:
        raise NotApplicable(f"{error}: give the class a larger input") from None
    free = torch.tensor([grid[0] - size[0] + 1, grid[1] - size[1] + 1])
    corners = (torch.arange(len(x))[:, None] + shift + torch.tensor([0, 1])) % free
    return cut(x, corners, size, patch_size), coordinates(grid, size, corners)
