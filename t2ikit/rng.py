"""Random numbers as a pure function of (seed, purpose, slot).

A *slot* is the position of a sample in the whole run: slot 0 is the first sample of the first step, for any number of
ranks, workers or micro-batches. Everything random of a sample is keyed by its slot, so a run that is cut, resumed or
spread over other ranks takes the same numbers. ``purpose`` names the use ("source", "noise", ...): numbers of unlike
purposes are independent.

Source: Philox, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011 (the counter is the slot).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 8
"""Slots that share one generator in :func:`normal`."""

_WORDS = 4  # 64-bit words that one Philox counter gives


def key(seed: int, purpose: str, *indices: int) -> int:
    """A 128-bit key; different (seed, purpose, indices) give different keys, on every machine and in every process."""
    text = "\0".join([str(int(seed)), purpose, *(str(int(index)) for index in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def derived_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A seed in [0, 2**63) for a generator of one's own, such as the one of image ``index``."""
    return key(seed, purpose, index) >> 65


def uniforms(seed: int, purpose: str, first_slot: int, count: int, columns: int = 1) -> np.ndarray:
    """Uniform numbers for ``count`` consecutive slots.

    Args:
        seed: seed of the run.
        purpose: what the numbers are for.
        first_slot: first slot, at least 0.
        count: number of slots.
        columns: numbers a slot.

    Returns:
        [count, columns] float64 in [0, 1). Row i depends only on (seed, purpose, first_slot + i); more columns leave
        the first ones as they are.
    """
    if first_slot < 0 or count < 0 or columns < 1:
        raise ValueError(f"need first_slot >= 0, count >= 0, columns >= 1; got {first_slot}, {count}, {columns}")
    blocks = []
    for block in range(-(-columns // _WORDS)):
        philox = np.random.Philox(key=key(seed, purpose), counter=first_slot + (block << 64))
        blocks.append(philox.random_raw(count * _WORDS).reshape(count, _WORDS))
    words = np.concatenate(blocks, axis=1)[:, :columns]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, purpose: str, epoch: int, size: int, stream: int = 0) -> np.ndarray:
    """A permutation of ``range(size)`` for one epoch of one stream, [size] int64.

    Sorted raw words, not ``Generator.permutation``, whose algorithm NumPy may change between versions.
    """
    words = np.random.Philox(key=key(seed, purpose, epoch, stream)).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64)


def normal(
    seed: int,
    purpose: str,
    first_slot: int,
    count: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal numbers for ``count`` consecutive slots.

    Made in aligned blocks of 8 slots, each with a generator seeded by (seed, purpose, block): any split of the slots
    over ranks or micro-batches gives the same numbers, on devices of one kind.

    Returns:
        [count, *shape] float32 on ``device``.
    """
    if first_slot < 0 or count < 0:
        raise ValueError(f"need first_slot >= 0 and count >= 0; got {first_slot}, {count}")
    first_block = first_slot // BLOCK
    blocks = -(-(first_slot + count) // BLOCK) - first_block if count else 0
    generator = torch.Generator(device=device)
    # An odd factor makes the map from block to seed one to one, also in the 32 bits that the CPU generator uses.
    bits = key(seed, purpose)
    offset, factor = bits & 0xFFFFFFFFFFFFFFFF, (bits >> 64) | 1
    values = torch.empty(blocks, BLOCK, *shape, dtype=torch.float32, device=device)
    for i in range(blocks):
        generator.manual_seed((offset + factor * (first_block + i)) & 0xFFFFFFFFFFFFFFFF)
        values[i].normal_(generator=generator)
    skip = first_slot - first_block * BLOCK
    return values.flatten(0, 1)[skip : skip + count]


@dataclass(frozen=True)
class Keyed:
    """The random numbers of one run: :func:`uniforms`, :func:`normal` and :func:`derived_seed` with its seed.

    Attributes:
        seed: of the run.
    """

    seed: int

    def uniforms(self, purpose: str, first_slot: int, count: int, columns: int = 1) -> np.ndarray:
        """[count, columns] float64 in [0, 1); see :func:`uniforms`."""
        return uniforms(self.seed, purpose, first_slot, count, columns)

    def normal(
        self, purpose: str, first_slot: int, count: int, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """[count, *shape] float32; see :func:`normal`."""
        return normal(self.seed, purpose, first_slot, count, shape, device)

    def derived_seed(self, purpose: str, index: int = 0) -> int:
        """In [0, 2**63); see :func:`derived_seed`."""
        return derived_seed(self.seed, purpose, index)
