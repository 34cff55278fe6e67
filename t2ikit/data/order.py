"""In which order the records of a set are visited: a pure function of (seed, name, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t2ikit import rng

SHUFFLE_WINDOW = 16_384
"""Records that are shuffled together, at least."""


@dataclass(frozen=True)
class _Pools:
    """The pools of an epoch.

    Attributes:
        chunks: of each pool, in the order in which they were drawn.
        ends: place of the epoch at which each pool ends, [n] int64.
    """

    chunks: list[np.ndarray]
    ends: np.ndarray


class RecordOrder:
    """The order in which the records of a set are visited, epoch by epoch.

    Chunks are shuffled; neighbours that together hold at least ``window`` records are then shuffled as one pool. So
    reading stays within few chunks at a time, and a batch is not filled from one chunk (one class, in a set that was
    written class by class). A set of at most ``window`` records is shuffled as a whole.

    Args:
        chunk_sizes: records of every chunk.
        seed: seed of the run.
        name: of the stream; streams of unlike names have unrelated orders.
        window: records that are shuffled together, at least; 1 keeps to one chunk at a time.
    """

    def __init__(self, chunk_sizes: Sequence[int], seed: int, name: str, window: int = SHUFFLE_WINDOW) -> None:
        if window < 1:
            raise ValueError(f"the shuffle window needs at least one record, not {window}: change data.shuffle_window")
        self.chunk_sizes = np.asarray(chunk_sizes, dtype=np.int64)
        self.seed = seed
        self.name = name
        self.window = window
        self._starts = np.cumsum(self.chunk_sizes) - self.chunk_sizes
        self._purpose = f"order of {name}"
        self._orders: dict[int, np.ndarray] = {}  # this epoch's and the last one's
        self._pooled: dict[int, _Pools] = {}  # and the next one's

    def __len__(self) -> int:
        return int(self.chunk_sizes.sum())

    def index(self, epoch: int | np.ndarray, slots: np.ndarray) -> np.ndarray:
        """The record at each place of an epoch.

        Args:
            epoch: one epoch, or one for every place [n].
            slots: places in the epoch, [n] int64 in [0, len).

        Returns:
            [n] int64; a full epoch visits every record once.
        """
        epochs = np.broadcast_to(np.asarray(epoch), np.shape(slots))
        index = np.empty(len(slots), dtype=np.int64)
        for value in np.unique(epochs).tolist():
            here = epochs == value
            index[here] = self._order(value)[slots[here]]
        return index

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = self._shuffle(epoch)
            self._orders = {number: kept for number, kept in self._orders.items() if number == epoch - 1}
            self._orders[epoch] = order
        return order

    def pool(self, epoch: int, place: int) -> int:
        """Number of the pool that a place of an epoch lies in."""
        return int(np.searchsorted(self._pools(epoch).ends, place, side="right"))

    def upcoming(self, epoch: int, place: int, records: int = 0) -> list[int]:
        """The chunks that are read from a place on: those of its pool, of the next one, and of further ones until they
        hold at least ``records``; no chunk twice."""
        found: list[int] = []
        number, held, first = self.pool(epoch, place), 0, True
        while held < max(records, 1) and len(found) < 2 * len(self.chunk_sizes):
            pools = self._pools(epoch)
            found += pools.chunks[number].tolist()
            held += 0 if first else int(self.chunk_sizes[pools.chunks[number]].sum())
            number, first = number + 1, False
            if number == len(pools.chunks):
                epoch, number = epoch + 1, 0
        return list(dict.fromkeys(found))

    def _pools(self, epoch: int) -> _Pools:
        pools = self._pooled.get(epoch)
        if pools is None:
            pools = self._pool_chunks(epoch)
            self._pooled = {number: kept for number, kept in self._pooled.items() if abs(number - epoch) == 1}
            self._pooled[epoch] = pools
        return pools

    def _pool_chunks(self, epoch: int) -> _Pools:
        chunks = rng.permutation(self.seed, self._purpose, epoch, len(self.chunk_sizes))
        pools: list[np.ndarray] = []
        ends, first, pooled = [], 0, 0
        sizes = np.cumsum(self.chunk_sizes[chunks])
        for place, end in enumerate(sizes.tolist()):
            if end - pooled >= self.window or place == len(chunks) - 1:
                pools.append(chunks[first : place + 1])
                ends.append(end)
                first, pooled = place + 1, end
        return _Pools(pools, np.array(ends, dtype=np.int64))

    def _shuffle(self, epoch: int) -> np.ndarray:
        order: list[np.ndarray] = []
        for number, chunks in enumerate(self._pools(epoch).chunks, start=1):  # stream 0 is the order of the chunks
            starts = self._starts[chunks]
            records = np.concatenate(
                [np.arange(start, start + self.chunk_sizes[chunk]) for start, chunk in zip(starts, chunks, strict=True)]
            )
            order.append(records[rng.permutation(self.seed, self._purpose, epoch, len(records), stream=number)])
        return np.concatenate(order)
