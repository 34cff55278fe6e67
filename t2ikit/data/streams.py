"""Which record every slot of a run holds, and the batches of them.

Everything here is a pure function of (seed, slot): source, noise quantile, caption and record are the same for any
number of ranks, workers or micro-batches, and after any resume.

Shapes::

    B  slots of a micro-batch        S  their text tokens, packed        L  longest caption, rounded up
    D  width of the text states      G  scales a token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from t2ikit import draws
from t2ikit.augment.gate import Gate, draw, shares
from t2ikit.batch import StoredBatch
from t2ikit.data.layout import RecordView, groups
from t2ikit.data.records import RecordSet

SHUFFLE_WINDOW = 16_384
"""Records that are shuffled together, at least."""


@dataclass(frozen=True)
class GatedStream:
    """An augmented stream that is drawn behind a noise gate (Algorithm 1).

    Attributes:
        name: of the source, as it is logged.
        folder: the encoded set.
        quantile: tau, the noise quantile beyond which the stream may be drawn, in [0, 1].
        probability: p, with which it then is, in [0, 1].
    """

    name: str
    folder: str | Path
    quantile: float
    probability: float

    @property
    def gate(self) -> Gate:
        """Checks both numbers."""
        return Gate(self.quantile, self.probability, self.name)


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
        self._orders: dict[int, np.ndarray] = {}  # this epoch's and the last one's

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

    def _shuffle(self, epoch: int) -> np.ndarray:
        purpose = f"order of {self.name}"
        order: list[np.ndarray] = []
        pool: list[np.ndarray] = []
        pooled = 0
        chunks = draws.permutation(self.seed, purpose, epoch, len(self.chunk_sizes))
        for place, chunk in enumerate(chunks):
            size = int(self.chunk_sizes[chunk])
            pool.append(np.arange(self._starts[chunk], self._starts[chunk] + size))
            pooled += size
            if pooled >= self.window or place == len(chunks) - 1:
                records = np.concatenate(pool)
                number = len(order) + 1  # stream 0 is the order of the chunks
                order.append(records[draws.permutation(self.seed, purpose, epoch, pooled, stream=number)])
                pool, pooled = [], 0
        return np.concatenate(order)


def read_batch(
    views: Sequence[RecordView],
    captions: Sequence[int],
    slot: int,
    source: np.ndarray,
    u: np.ndarray,
    index: np.ndarray,
    length_bucket: int,
) -> StoredBatch:
    """Copies records into one batch: images stacked, text states packed without padding.

    Args:
        views: B records of one layout.
        captions: which caption of each is used.
        slot: first global slot.
        source: [B] int64; u: [B] in [0, 1]; index: [B] int64.
        length_bucket: L is rounded up to a multiple of this, so that few shapes occur (a compiled model is compiled
            once for each).
    """
    first = views[0]
    lengths = np.array([view.length(caption) for view, caption in zip(views, captions, strict=True)])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    max_length = -(-int(lengths.max()) // length_bucket) * length_bucket
    quantised = first.token_type == np.int8
    pixels = torch.uint8 if first.image_type == np.uint8 else torch.half
    image = torch.empty(len(views), *first.image_shape, dtype=pixels)
    tokens = torch.empty(int(ends[-1]), first.width, dtype=torch.int8 if quantised else torch.half)
    scales = torch.empty(len(tokens), groups(first.width), dtype=torch.half) if quantised else None
    images, values = image.numpy(), tokens.numpy()
    factors = None if scales is None else scales.numpy()
    for row, (view, caption) in enumerate(zip(views, captions, strict=True)):
        images[row] = view.image()
        value, factor = view.tokens(caption)
        values[starts[row] : ends[row]] = value
        if factors is not None:
            factors[starts[row] : ends[row]] = factor
    positions = np.repeat(np.arange(len(views)) * max_length - starts, lengths) + np.arange(len(tokens))
    return StoredBatch(
        image=image,
        tokens=tokens,
        scales=scales,
        positions=torch.from_numpy(positions),
        u=torch.from_numpy(u.astype(np.float32)),
        source=torch.from_numpy(source.astype(np.int64)),
        index=torch.from_numpy(index.astype(np.int64)),
        slot=slot,
        max_length=max_length,
    )


class TrainingStream:
    """Map-style over the micro-batches of one rank: ``stream[m]`` holds slots [(m * world + rank) * micro, + micro).

    Slot k of the run is at place k % slots_per_epoch of epoch k // slots_per_epoch of the primary set; a gated stream
    of n records is at place k % n of its own epoch k // n. Records whose slot went to another source are not read.

    Args:
        primary: the raw set.
        gated: augmented streams behind their gates, sources 1, 2, ...
        seed: seed of the run.
        global_batch: slots of one optimizer step.
        micro_batch: slots of one forward pass of one rank; world_size * micro_batch divides global_batch.
        world_size: number of ranks.
        rank: this one.
        length_bucket: see :func:`read_batch`.
        shuffle_window: see :class:`RecordOrder`.

    Raises:
        ValueError: if the batch cannot be divided, the set is smaller than a batch or not encoded, a gated set does
            not fit the primary one, or the gates are no probabilities; names what to change.
    """

    def __init__(
        self,
        primary: RecordSet,
        gated: Sequence[GatedStream] = (),
        seed: int = 0,
        global_batch: int = 1024,
        micro_batch: int = 1024,
        world_size: int = 1,
        rank: int = 0,
        length_bucket: int = 16,
        shuffle_window: int = SHUFFLE_WINDOW,
    ) -> None:
        if micro_batch < 1 or global_batch % (world_size * micro_batch) or not 0 <= rank < world_size:
            raise ValueError(
                f"data.batch_size {global_batch} cannot be divided into micro-batches of {micro_batch} "
                f"for rank {rank} of {world_size}"
            )
        if len(primary) < global_batch:
            raise ValueError(
                f"{primary.folder} has {len(primary)} records, fewer than one batch of {global_batch}: "
                "lower data.batch_size"
            )
        if length_bucket < 1:
            raise ValueError(f"data.length_bucket must be at least 1, not {length_bucket}")
        if primary.manifest.text_dim == 0:
            raise ValueError(f"{primary.folder} holds no text states: run t2ikit prepare encode")
        self.gates = [stream.gate for stream in gated]
        shares(self.gates)
        self.sets = [primary, *(RecordSet(stream.folder) for stream in gated)]
        for stream, records in zip(gated, self.sets[1:], strict=True):
            check_fits(primary, records, stream.name)
        names = ["raw", *(stream.name for stream in gated)]
        self.orders = [
            RecordOrder(records.chunk_sizes, seed, name, shuffle_window)
            for name, records in zip(names, self.sets, strict=True)
        ]
        self.seed = seed
        self.micro_batch = micro_batch
        self.world_size = world_size
        self.rank = rank
        self.length_bucket = length_bucket
        self.slots_per_epoch = len(primary) // global_batch * global_batch

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch; later ones are valid too, in the following epochs."""
        return self.slots_per_epoch // (self.world_size * self.micro_batch)

    def plan(self, micro_batch_number: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What a micro-batch holds, without reading it.

        Returns:
            The first slot, source [B] int64, u [B] float64, index [B] int64 in the source, and [B] float64 in [0, 1)
            that chooses among several captions.
        """
        first = (micro_batch_number * self.world_size + self.rank) * self.micro_batch
        numbers = draws.uniforms(self.seed, "source", first, self.micro_batch, 3)
        source, u = draw(numbers, self.gates)
        slots = np.arange(first, first + self.micro_batch)
        index = np.empty(self.micro_batch, dtype=np.int64)
        for number, order in enumerate(self.orders):
            here = source == number
            size = self.slots_per_epoch if number == 0 else len(order)
            index[here] = order.index(slots[here] // size, slots[here] % size)
        return first, source, u, index, numbers[:, 2]

    def __getitem__(self, micro_batch_number: int) -> StoredBatch:
        first, source, u, index, choice = self.plan(micro_batch_number)
        views = [self.sets[number].view(place) for number, place in zip(source.tolist(), index.tolist(), strict=True)]
        captions = [int(part * view.states_count) for part, view in zip(choice.tolist(), views, strict=True)]
        return read_batch(views, captions, first, source, u, index, self.length_bucket)


def check_fits(primary: RecordSet, other: RecordSet, name: str) -> None:
    """Raises ValueError, naming the field, if the records of two sets cannot share a batch."""
    mismatch = primary.manifest.mismatch(other.manifest)
    if mismatch is not None:
        raise ValueError(
            f"the set of {name} ({other.folder}) does not fit {primary.folder}: {mismatch}. "
            "Prepare both with the same options of t2ikit prepare encode"
        )


class EvaluationStream:
    """Map-style over the batches of one rank of a set in its stored order, every record with its first caption.

    Record i has the noise quantile (i + 0.5) / n, so that one pass covers all levels evenly. The records are dealt out
    evenly: every rank has the same number of batches, and no record comes twice unless there are more ranks than
    records. ``slot`` of a batch is the index of its first record.

    Args:
        records: the set.
        batch_size: records of a batch of one rank, at most.
        world_size: number of ranks.
        rank: this one.
        length_bucket: see :func:`read_batch`.
    """

    def __init__(
        self, records: RecordSet, batch_size: int, world_size: int = 1, rank: int = 0, length_bucket: int = 16
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"data.eval_batch_size must be at least 1, not {batch_size}")
        self.records = records
        self.length_bucket = length_bucket
        count = len(records)
        batches = -(-count // (batch_size * world_size))
        edges = np.arange(batches * world_size + 1) * count // (batches * world_size)
        self.ranges = [
            (int(edges[number]), max(int(edges[number + 1]), int(edges[number]) + 1))
            for number in range(rank, batches * world_size, world_size)
        ]

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, number: int) -> StoredBatch:
        first, end = self.ranges[number]
        index = np.arange(first, end)
        views = [self.records.view(place) for place in index.tolist()]
        u = (index + 0.5) / len(self.records)
        return read_batch(views, [0] * len(views), first, np.zeros_like(index), u, index, self.length_bucket)
