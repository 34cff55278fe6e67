"""Which record every slot of a run holds, and the batches of them.

Everything here is a pure function of (seed, slot): source, noise quantile, caption and record are the same for any
number of ranks, workers or micro-batches, and after any resume.

Shapes::

    B  slots of a micro-batch        S  their text tokens, packed        L  longest caption, rounded up
    D  width of the text states      G  scales a token
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from t2ikit import rng
from t2ikit.batch import StoredBatch
from t2ikit.data.captions import CaptionChoice, CaptionWeights, caption_kinds
from t2ikit.data.gate import Gate, shares, source_and_quantile
from t2ikit.data.order import SHUFFLE_WINDOW, RecordOrder
from t2ikit.data.prefetch import Ahead
from t2ikit.records.fits import check_fits
from t2ikit.records.record import RecordView, groups
from t2ikit.records.record_set import RecordSet
from t2ikit.records.remote import RemoteChunks

__all__ = ["SHUFFLE_WINDOW", "EvaluationStream", "RecordOrder", "TrainingStream"]

AHEAD_BATCHES = 4
"""Batches beyond the present pool whose chunks are made ready, at least."""


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
        gates: augmented streams behind their gates, sources 1, 2, ...
        seed: seed of the run.
        global_batch: slots of one optimizer step.
        micro_batch: slots of one forward pass of one rank; world_size * micro_batch divides global_batch.
        world_size: number of ranks.
        rank: this one.
        length_bucket: see :func:`read_batch`.
        shuffle_window: see :class:`RecordOrder`.
        caption_weights: how often each of several captions is used; by default all alike.
        open_set: opens the sets of the gated streams.

    Raises:
        ValueError: if the batch cannot be divided, the set is smaller than a batch or not encoded, a gated set does
            not fit the primary one, the gates are no probabilities, or the captions are others than the weights say;
            names what to change.
    """

    def __init__(
        self,
        primary: RecordSet,
        gates: Sequence[Gate] = (),
        seed: int = 0,
        global_batch: int = 1024,
        micro_batch: int = 1024,
        world_size: int = 1,
        rank: int = 0,
        length_bucket: int = 16,
        shuffle_window: int = SHUFFLE_WINDOW,
        caption_weights: CaptionWeights | None = None,
        open_set: Callable[[Any], RecordSet] = RecordSet,
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
        shares(gates)
        self.gates = list(gates)
        self.sets = [primary, *(open_set(gate.folder) for gate in gates)]
        for gate, records in zip(gates, self.sets[1:], strict=True):
            check_fits(primary, records, gate.name)
        names = ["raw", *(gate.name for gate in gates)]
        self.orders = [
            RecordOrder(records.chunk_sizes, seed, name, shuffle_window)
            for name, records in zip(names, self.sets, strict=True)
        ]
        self.captions = [
            CaptionChoice(caption_weights, caption_kinds(records.manifest), str(records.folder))
            for records in self.sets
        ]
        if caption_weights is not None:
            for records, choice in zip(self.sets, self.captions, strict=True):
                choice(0.0, records.view(0).states_count)  # refused now, not in an hour
        self.seed = seed
        self.micro_batch = micro_batch
        self.world_size = world_size
        self.rank = rank
        self.length_bucket = length_bucket
        self.slots_per_epoch = len(primary) // global_batch * global_batch
        self.periods = [self.slots_per_epoch, *(len(order) for order in self.orders[1:])]
        self._ahead = Ahead(self.sets, self.orders, self.periods, AHEAD_BATCHES * global_batch)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch; later ones are valid too, in the following epochs."""
        return self.slots_per_epoch // (self.world_size * self.micro_batch)

    def working_set(self) -> int:
        """Bytes of the chunks of remote sets that should be in the cache at once, at the start of the run."""
        return sum(files.sizes.get(name, 0) for files, name in self._ahead.tasks(0) if isinstance(files, RemoteChunks))

    def plan(self, micro_batch_number: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What a micro-batch holds, without reading it.

        Returns:
            The first slot, source [B] int64, u [B] float64, index [B] int64 in the source, and [B] float64 in [0, 1)
            that chooses among several captions.
        """
        first = (micro_batch_number * self.world_size + self.rank) * self.micro_batch
        numbers = rng.uniforms(self.seed, "source", first, self.micro_batch, 3)
        source, u = source_and_quantile(numbers, self.gates)
        slots = np.arange(first, first + self.micro_batch)
        index = np.empty(self.micro_batch, dtype=np.int64)
        for which, (order, period) in enumerate(zip(self.orders, self.periods, strict=True)):
            mine = source == which
            index[mine] = order.index(slots[mine] // period, slots[mine] % period)
        return first, source, u, index, numbers[:, 2]

    def __getitem__(self, micro_batch_number: int) -> StoredBatch:
        first, source, u, index, choice = self.plan(micro_batch_number)
        self._ahead.move(first)
        sources = source.tolist()
        views = [self.sets[number].view(place) for number, place in zip(sources, index.tolist(), strict=True)]
        captions = [
            self.captions[number](part, view.states_count)
            for number, part, view in zip(sources, choice.tolist(), views, strict=True)
        ]
        return read_batch(views, captions, first, source, u, index, self.length_bucket)


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
