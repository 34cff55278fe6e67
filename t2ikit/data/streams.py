"""Which record and caption every slot of a run holds.

Everything here is a pure function of (seed, slot): source, noise quantile, caption and record are the same for any
number of ranks, workers or micro-batches, and after any resume.

Shapes: B slots of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t2ikit import rng
from t2ikit.batch import StoredBatch
from t2ikit.data.batches import read_batch
from t2ikit.data.buckets import BucketSchedule
from t2ikit.data.captions import CaptionChoice, CaptionWeights, caption_kinds
from t2ikit.data.gate import Gate, shares, source_and_quantile
from t2ikit.data.order import SHUFFLE_WINDOW, RecordOrder, Source
from t2ikit.data.prefetch import Prefetcher
from t2ikit.records.fits import check_fits, check_same_arrays
from t2ikit.records.record_set import RecordSet
from t2ikit.records.remote import RemoteChunks

AHEAD_BATCHES = 4
"""Batches beyond the present pool whose chunks are made ready, at least."""


def _open_set(folder: Any, bucket: int) -> RecordSet:
    return RecordSet(folder)


def check_arrays(records: RecordSet, arrays: Sequence[str]) -> None:
    """Refuses a set that cannot be trained on, or that lacks arrays.

    Raises:
        ValueError: there are no text states; an array is missing, or has no fixed shape.
    """
    described = records.manifest.arrays
    if not records.manifest.texts:
        raise ValueError(f"{records.folder} holds no text states: run t2ikit prepare encode")
    for name in arrays:
        if name not in described:
            raise ValueError(f"the records of {records.folder} have no array {name}, only {', '.join(described)}")
        if None in described[name].shape:
            raise ValueError(f"the array {name} of {records.folder} differs in shape: a batch cannot hold it")


class TrainingStream:
    """Map-style over the micro-batches of one rank: ``stream[m]`` holds slots [(m * world + rank) * micro, + micro).

    Slot k of the run reads one record. In the primary set it is the one at position k % slots_per_epoch of epoch
    k // slots_per_epoch; in a gated stream of n records, the one at position k % n of epoch k // n of that stream. The
    gates decide which of them the slot reads; the records that the others have at this position are left out. With
    several buckets, k counts the slots of the bucket of the step; see :class:`BucketSchedule`.

    Args:
        primary: the raw set; or several, the aspect buckets, of which every step takes one.
        gates: augmented streams behind their gates, sources 1, 2, ...
        seed: seed of the run.
        global_batch: slots of one optimizer step.
        accumulate: forward passes of one rank in an optimizer step.
        world_size: number of ranks.
        rank: this one.
        length_bucket: see :func:`read_batch`.
        shuffle_window: see :class:`RecordOrder`.
        caption_weights: how often each of several captions is used; by default all alike.
        open_set: opens the set of a gated stream in a bucket, from the gate's folder and the index of the bucket.
        cache_limit: bytes that the chunks of remote sets may take in the cache.
        arrays: the arrays of the records that are read besides the text states.

    Raises:
        ValueError: if the batch cannot be divided, the set is smaller than a batch or not encoded or lacks an array, a
            gated set does not fit the primary one, the gates are no probabilities, the captions are others than the
            weights say, or the cache is too small; names what to change.
    """

    def __init__(
        self,
        primary: RecordSet | Sequence[RecordSet],
        gates: Sequence[Gate] = (),
        seed: int = 0,
        global_batch: int = 1024,
        accumulate: int = 1,
        world_size: int = 1,
        rank: int = 0,
        length_bucket: int = 16,
        shuffle_window: int = SHUFFLE_WINDOW,
        caption_weights: CaptionWeights | None = None,
        open_set: Callable[[Any, int], RecordSet] = _open_set,
        cache_limit: int | None = None,
        arrays: Sequence[str] = ("image",),
    ) -> None:
        if global_batch % (world_size * accumulate):
            raise ValueError(
                f"data.batch_size {global_batch} is not divisible by {world_size * accumulate} = {world_size} devices "
                f"(trainer.devices, trainer.num_nodes) x {accumulate} (trainer.accumulate_grad_batches)"
            )
        if length_bucket < 1:
            raise ValueError(f"data.length_bucket must be at least 1, not {length_bucket}")
        buckets = [primary] if isinstance(primary, RecordSet) else list(primary)
        shares(gates)
        self.gates = list(gates)
        self.arrays = tuple(arrays)
        folders = [str(records.folder) for records in buckets]
        self.schedule = BucketSchedule([len(records) for records in buckets], global_batch, seed, folders)
        for records in buckets[1:]:
            check_same_arrays(buckets[0], records, self.arrays, one_batch=False)
        self.sources = [
            self._sources(records, bucket, open_set, seed, shuffle_window) for bucket, records in enumerate(buckets)
        ]
        self.captions = [
            [
                CaptionChoice(caption_weights, caption_kinds(source.records.manifest), str(source.records.folder))
                for source in sources
            ]
            for sources in self.sources
        ]
        if caption_weights is not None:
            for sources, choices in zip(self.sources, self.captions, strict=True):
                for source, choice in zip(sources, choices, strict=True):
                    choice(0.0, source.records.view(0).captions_count)  # refused now, not in an hour
        self.seed = seed
        self.micro_batch = global_batch // (world_size * accumulate)
        self.world_size = world_size
        self.rank = rank
        self.length_bucket = length_bucket
        self.slots_per_epoch = self.schedule.steps_per_epoch * global_batch
        every_source = [source for sources in self.sources for source in sources]
        self._prefetcher = Prefetcher(every_source, AHEAD_BATCHES * global_batch)
        if cache_limit is not None and self.working_set() > cache_limit:
            raise ValueError(
                f"data.cache_gb {cache_limit / 1e9:g} does not hold the chunks that are shuffled together and the "
                f"next ones, {self.working_set() / 1e9:.3g} GB: raise it, or lower data.shuffle_window"
            )

    def _sources(
        self,
        raw: RecordSet,
        bucket: int,
        open_set: Callable[[Any, int], RecordSet],
        seed: int,
        shuffle_window: int,
    ) -> list[Source]:
        """The raw set of a bucket, then its gated ones."""
        sets = {"raw": raw, **{gate.name: open_set(gate.folder, bucket) for gate in self.gates}}
        sources = []
        for name, records in sets.items():
            check_arrays(records, self.arrays)
            if records is not raw:
                check_fits(raw, records, name)
                check_same_arrays(raw, records, self.arrays)
            # One set keeps the order that it always had; buckets have unrelated ones.
            order_name = name if len(self.schedule.steps) == 1 else f"{name} of bucket {bucket}"
            order = RecordOrder(records.chunk_sizes, seed, order_name, shuffle_window)
            period = self.schedule.steps[bucket] * self.schedule.global_batch if records is raw else len(records)
            schedule = self.schedule if len(self.schedule.steps) > 1 else None
            sources.append(Source(records, order, period, schedule, bucket))
        return sources

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch; later ones are valid too, in the following epochs."""
        return self.slots_per_epoch // (self.world_size * self.micro_batch)

    def working_set(self) -> int:
        """Bytes of the chunks of remote sets that should be in the cache at once, at the start of the run."""
        tasks = self._prefetcher.tasks(0)
        return sum(files.sizes.get(name, 0) for files, name in tasks if isinstance(files, RemoteChunks))

    def plan(self, micro_batch: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What a micro-batch of this rank (0 is its first) holds, without reading it.

        Returns:
            The first slot, source [B] int64, u [B] float64, index [B] int64 in the source, and [B] float64 in [0, 1)
            that chooses among several captions.
        """
        first = (micro_batch * self.world_size + self.rank) * self.micro_batch
        uniforms = rng.uniforms(self.seed, "source", first, self.micro_batch, 3)
        source, u = source_and_quantile(uniforms, self.gates)
        rows = np.arange(self.micro_batch)
        index = np.empty(self.micro_batch, dtype=np.int64)
        for which, entry in enumerate(self.sources[self._bucket(first)]):
            mine = source == which
            index[mine] = entry.index(first, rows[mine])
        return first, source, u, index, uniforms[:, 2]

    def _bucket(self, slot: int) -> int:
        return 0 if len(self.sources) == 1 else self.schedule.bucket(slot)

    def __getitem__(self, micro_batch: int) -> StoredBatch:
        first, source, u, index, uniforms = self.plan(micro_batch)
        self._prefetcher.move(first)
        bucket, which_of = self._bucket(first), source.tolist()
        sets, choices = [entry.records for entry in self.sources[bucket]], self.captions[bucket]
        views = [sets[which].view(record) for which, record in zip(which_of, index.tolist(), strict=True)]
        captions = [
            choices[which](uniform, view.captions_count)
            for which, uniform, view in zip(which_of, uniforms.tolist(), views, strict=True)
        ]
        return read_batch(views, captions, first, source, u, index, self.length_bucket, self.arrays)
