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

Slots = int | np.ndarray
"""The slots of a batch: the first one, where they are consecutive, or all of them, [B] int64."""

_WORDS = 4  # 64-bit words that one Philox counter gives
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, odd


def key(seed: int, purpose: str, *indices: int) -> int:
    """A 128-bit key; different (seed, purpose, indices) give different keys, on every machine and in every process."""
    text = "\0".join([str(int(seed)), purpose, *(str(int(index)) for index in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def derived_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A seed in [0, 2**63) for a generator of one's own, such as the one of image ``index``."""
    return key(seed, purpose, index) >> 65


def slots_of(slot: Slots, count: int) -> np.ndarray:
    """All slots of ``count`` samples, [count] int64.

    Raises:
        ValueError: a negative slot or count, or another number of slots.
    """
    slots = slot if isinstance(slot, np.ndarray) else np.arange(slot, slot + max(count, 0), dtype=np.int64)
    if count < 0 or slots.shape != (count,) or (count and slots.min() < 0):
        raise ValueError(f"need a first slot >= 0 or count >= 0 slots; got slot {slot}, count {count}")
    return slots


def uniforms(seed: int, purpose: str, slot: Slots, count: int, columns: int = 1) -> np.ndarray:
    """Uniform numbers for ``count`` slots.

    Args:
        seed: seed of the run.
        purpose: what the numbers are for.
        slot: the first of consecutive slots, at least 0; or all slots, [count] int64, which lie close together.
        count: number of slots.
        columns: numbers a slot.

    Returns:
        [count, columns] float64 in [0, 1). Each row depends only on (seed, purpose, its slot); more columns leave the
        first ones as they are.

    Raises:
        ValueError: a negative slot or count, another number of slots, or no column.
    """
    slots = slots_of(slot, count)
    if columns < 1:
        raise ValueError(f"need columns >= 1; got {columns}")
    first = int(slots.min()) if count else 0
    span = int(slots.max()) + 1 - first if count else 0
    blocks = []
    for block in range(-(-columns // _WORDS)):
        philox = np.random.Philox(key=key(seed, purpose), counter=first + (block << 64))
        blocks.append(philox.random_raw(span * _WORDS).reshape(span, _WORDS))
    words = np.concatenate(blocks, axis=1)[slots - first, :columns]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def share(seed: int, purpose: str, slot: Slots, count: int, rate: float) -> np.ndarray:
    """Which of ``count`` slots belong to a share of all slots that is spread evenly.

    Slot s belongs to it where the fractional part of s / (golden ratio) + offset lies below ``rate``; seed and purpose
    give the offset. Such numbers fill [0, 1) as evenly as any sequence (Weyl 1916), also where only every second or
    third slot is looked at. So the share is exact in the long run, and near it in every batch.

    Args:
        seed, purpose, slot, count: as in :func:`uniforms`.
        rate: the share, in [0, 1].

    Returns:
        [count] bool.
    """
    offset = np.uint64(key(seed, purpose) & 0xFFFFFFFFFFFFFFFF)
    fractions = slots_of(slot, count).astype(np.uint64) * _GOLDEN + offset  # of 2**64, which is where it wraps
    return (fractions >> np.uint64(11)).astype(np.float64) * 2.0**-53 < rate


def permutation(seed: int, purpose: str, epoch: int, size: int, stream: int = 0) -> np.ndarray:
    """A permutation of ``range(size)`` for one epoch of one stream, [size] int64.

    Sorted raw words, not ``Generator.permutation``, whose algorithm NumPy may change between versions.
    """
    words = np.random.Philox(key=key(seed, purpose, epoch, stream)).random_raw(size)
    return np.argsort(words, kind="stable").astype(np.int64)


def normal(
    seed: int,
    purpose: str,
    slot: Slots,
    count: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal numbers for ``count`` slots.

    Made in aligned blocks of 8 slots, each with a generator seeded by (seed, purpose, block): any split of the slots
    over ranks or micro-batches gives the same numbers, on devices of one kind.

    Args:
        seed, purpose, slot, count: as in :func:`uniforms`.
        shape: of the numbers of one slot.
        device: where they are made.

    Returns:
        [count, *shape] float32 on ``device``.

    Raises:
        ValueError: a negative slot or count, or another number of slots.
    """
    slots = slots_of(slot, count)
    blocks = np.unique(slots // BLOCK)
    generator = torch.Generator(device=device)
    # An odd factor makes the map from block to seed one to one, also in the 32 bits that the CPU generator uses.
    bits = key(seed, purpose)
    offset, factor = bits & 0xFFFFFFFFFFFFFFFF, (bits >> 64) | 1
    values = torch.empty(len(blocks), BLOCK, *shape, dtype=torch.float32, device=device)
    for row, block in enumerate(blocks.tolist()):
        generator.manual_seed((offset + factor * block) & 0xFFFFFFFFFFFFFFFF)
        values[row].normal_(generator=generator)
    numbers = values.flatten(0, 1)
    if not isinstance(slot, np.ndarray):  # consecutive: no copy
        return numbers[slot % BLOCK : slot % BLOCK + count]
    index = np.searchsorted(blocks, slots // BLOCK) * BLOCK + slots % BLOCK
    return numbers.index_select(0, torch.from_numpy(index).to(device, non_blocking=True))


@dataclass(frozen=True)
class Keyed:
    """The random numbers of one run: the functions of this file with its seed.

    Attributes:
        seed: of the run.
    """

    seed: int

    def uniforms(self, purpose: str, slot: Slots, count: int, columns: int = 1) -> np.ndarray:
        """[count, columns] float64 in [0, 1); see :func:`uniforms`."""
        return uniforms(self.seed, purpose, slot, count, columns)

    def share(self, purpose: str, slot: Slots, count: int, rate: float) -> np.ndarray:
        """[count] bool; see :func:`share`."""
        return share(self.seed, purpose, slot, count, rate)

    def normal(
        self, purpose: str, slot: Slots, count: int, shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> Tensor:
        """[count, *shape] float32; see :func:`normal`."""
        return normal(self.seed, purpose, slot, count, shape, device)

    def derived_seed(self, purpose: str, index: int = 0) -> int:
        """In [0, 2**63); see :func:`derived_seed`."""
        return derived_seed(self.seed, purpose, index)
