"""The order in which a run visits records, a pure function of (seed, name, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t2ikit import rng
from t2ikit.data.buckets import BucketSchedule
from t2ikit.records.record_set import RecordSet

SHUFFLE_WINDOW = 16_384
"""Records that are shuffled together, at least."""


@dataclass(frozen=True)
class _Pools:
    """The pools of an epoch.

    Attributes:
        chunks: of each pool, in shuffled order.
        ends: position in the epoch at which each pool ends, [n] int64.
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
        """The record at each position of an epoch.

        Args:
            epoch: one epoch, or one for every position [n].
            slots: positions in the epoch, [n] int64 in [0, len).

        Returns:
            [n] int64; a full epoch visits every record once.
        """
        epochs = np.broadcast_to(np.asarray(epoch), np.shape(slots))
        index = np.empty(len(slots), dtype=np.int64)
        for value in np.unique(epochs).tolist():
            inside = epochs == value
            index[inside] = self._order(value)[slots[inside]]
        return index

    def pool(self, epoch: int, position: int) -> int:
        """Index of the pool that holds a position of an epoch."""
        return int(np.searchsorted(self._pools(epoch).ends, position, side="right"))

    def upcoming(self, epoch: int, position: int, records: int = 0) -> list[int]:
        """The chunks that are read from a position on: those of its pool, of the next one, and of further ones until
        they hold at least ``records``; no chunk twice."""
        chunks: list[int] = []
        pool, held, first = self.pool(epoch, position), 0, True
        while held < max(records, 1) and len(chunks) < 2 * len(self.chunk_sizes):
            pools = self._pools(epoch)
            chunks += pools.chunks[pool].tolist()
            held += 0 if first else int(self.chunk_sizes[pools.chunks[pool]].sum())
            pool, first = pool + 1, False
            if pool == len(pools.chunks):
                epoch, pool = epoch + 1, 0
        return list(dict.fromkeys(chunks))

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            order = self._shuffle(epoch)
            self._orders = {kept: indices for kept, indices in self._orders.items() if kept == epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]

    def _pools(self, epoch: int) -> _Pools:
        if epoch not in self._pooled:
            pools = self._pool_chunks(epoch)
            self._pooled = {kept: pooled for kept, pooled in self._pooled.items() if abs(kept - epoch) == 1}
            self._pooled[epoch] = pools
        return self._pooled[epoch]

    def _pool_chunks(self, epoch: int) -> _Pools:
        chunks = rng.permutation(self.seed, self._purpose, epoch, len(self.chunk_sizes))
        pools: list[np.ndarray] = []
        ends, first, pooled = [], 0, 0
        for last, end in enumerate(np.cumsum(self.chunk_sizes[chunks]).tolist()):
            if end - pooled >= self.window or last == len(chunks) - 1:
                pools.append(chunks[first : last + 1])
                ends.append(end)
                first, pooled = last + 1, end
        return _Pools(pools, np.array(ends, dtype=np.int64))

    def _shuffle(self, epoch: int) -> np.ndarray:
        order: list[np.ndarray] = []
        for stream, chunks in enumerate(self._pools(epoch).chunks, start=1):  # stream 0 is the order of the chunks
            starts = self._starts[chunks]
            records = np.concatenate(
                [np.arange(start, start + self.chunk_sizes[chunk]) for start, chunk in zip(starts, chunks, strict=True)]
            )
            order.append(records[rng.permutation(self.seed, self._purpose, epoch, len(records), stream=stream)])
        return np.concatenate(order)


@dataclass(frozen=True)
class Source:
    """A set that a run reads, in the order of the run.

    Attributes:
        records: the set.
        order: in which its records are visited.
        period: slots after which an epoch of the set ends.
        schedule: which slots of the run belong to its bucket; None for a set that every slot belongs to.
        bucket: index of the bucket.
    """

    records: RecordSet
    order: RecordOrder
    period: int
    schedule: BucketSchedule | None = None
    bucket: int = 0

    def place(self, slot: int) -> tuple[int, int]:
        """Epoch of the set, and position in it, at which the run is at a global slot."""
        return divmod(self._served(slot), self.period)

    def index(self, first: int, rows: np.ndarray) -> np.ndarray:
        """The records, [n] int64, of the slots ``first + rows`` [n] int64 of one step, where ``first`` is the first."""
        slots = self._served(first) + rows
        return self.order.index(slots // self.period, slots % self.period)

    def _served(self, slot: int) -> int:
        return slot if self.schedule is None else self.schedule.served(self.bucket, slot)
