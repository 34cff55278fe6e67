"""Aspect buckets: sets of images of unlike shapes, of which every step of a run takes one.

The bucket of a step is a pure function of (seed, step): whatever the ranks, the workers and the micro-batches, all
samples of a step have one shape, and a resumed run goes on with the same buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from t2ikit import rng


@dataclass(frozen=True)
class _Epoch:
    """The steps of an epoch.

    Attributes:
        buckets: [steps] int64, the bucket of each step.
        before: [steps + 1, buckets] int64, how many steps before each one took each bucket.
    """

    buckets: np.ndarray
    before: np.ndarray


class BucketSchedule:
    """Which bucket every step takes: in each epoch, as many steps as a bucket has whole batches, in shuffled order.

    Args:
        counts: records of every bucket.
        global_batch: slots of one optimizer step.
        seed: seed of the run.
        names: of the buckets, for messages.

    Attributes:
        steps: of an epoch, by bucket.

    Raises:
        ValueError: a bucket holds less than one batch.
    """

    def __init__(self, counts: Sequence[int], global_batch: int, seed: int, names: Sequence[str]) -> None:
        for count, name in zip(counts, names, strict=True):
            if count < global_batch:
                raise ValueError(
                    f"{name} has {count} records, fewer than one batch of {global_batch}: lower data.batch_size"
                )
        self.steps = tuple(count // global_batch for count in counts)
        self.global_batch = global_batch
        self.seed = seed
        self._epochs: dict[int, _Epoch] = {}  # this one's and the last one's

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, over all buckets."""
        return sum(self.steps)

    def bucket(self, slot: int) -> int:
        """The bucket that a global slot of the run belongs to."""
        epoch, step = divmod(slot // self.global_batch, self.steps_per_epoch)
        return int(self._epoch(epoch).buckets[step])

    def served(self, bucket: int, slot: int) -> int:
        """How many slots of the run before ``slot`` belong to a bucket: the position of the run in its set."""
        epoch, step = divmod(slot // self.global_batch, self.steps_per_epoch)
        steps = self._epoch(epoch)
        served = (epoch * self.steps[bucket] + int(steps.before[step, bucket])) * self.global_batch
        return served + (slot % self.global_batch if steps.buckets[step] == bucket else 0)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            dealt = np.repeat(np.arange(len(self.steps)), self.steps)
            buckets = dealt[rng.permutation(self.seed, "bucket", epoch, len(dealt))]
            before = np.zeros((len(buckets) + 1, len(self.steps)), dtype=np.int64)
            np.cumsum(buckets[:, None] == np.arange(len(self.steps)), axis=0, out=before[1:])
            self._epochs = {kept: steps for kept, steps in self._epochs.items() if kept == epoch - 1}
            self._epochs[epoch] = _Epoch(buckets, before)
        return self._epochs[epoch]
