"""Batches of labelled pictures: what a position holds is a pure function of the seed, whatever ranks and workers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from t2ikit import rng
from t2ikit.batch import Movable
from t2ikit.classify.depth import DepthMaps
from t2ikit.classify.pictures import Pictures
from t2ikit.classify.views import View


@dataclass(frozen=True)
class Reader:
    """Reads pictures as a view takes them.

    Attributes:
        depth: where the maps of the view ``depth`` are; None for the others.
    """

    depth: DepthMaps | None = None

    def __call__(self, pictures: Pictures, index: int) -> np.ndarray:
        """[3, H, W] uint8: the pixels of a picture, or its depth map."""
        return pictures.read(index) if self.depth is None else self.depth.read(pictures.facts[index].sha256)


@dataclass
class ClassBatch(Movable):
    """Pictures of one micro-batch.

    Attributes:
        images: [B, 3, S, S] float32; of a test [B, K, 3, S, S], K crops of each.
        labels: [B] int64.
        index: [B] int64, the picture's index in its set.
        source: [B] int64, zeros: the one training set.
        position: number of the micro-batch in the whole run, over all ranks.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    source: Tensor
    position: int = 0


@dataclass
class TrainingStream:
    """Map-style over the micro-batches of one rank, for all epochs.

    An epoch is a permutation keyed by (seed, epoch), cut into steps of ``batch_size``; the last step may be smaller.
    The pictures of a step are dealt out to its micro-batches and ranks. The augmentation of a picture is keyed by
    (seed, epoch, picture).

    Attributes:
        pictures: the training set.
        view: how a picture is shown.
        read: reads one.
        seed: of order and augmentation.
        batch_size: pictures of a step, over all ranks and accumulated micro-batches.
        accumulate: micro-batches of a step on each rank.
        world_size: number of ranks.
        rank: this one.
    """

    pictures: Pictures
    view: View
    read: Reader
    seed: int
    batch_size: int
    accumulate: int = 1
    world_size: int = 1
    rank: int = 0
    _order: tuple[int, np.ndarray] = field(default=(-1, np.empty(0, np.int64)), init=False, repr=False)

    @property
    def micro_batch(self) -> int:
        """Slots of a micro-batch; those behind the end of an epoch are empty."""
        return self.batch_size // (self.accumulate * self.world_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch: the last one may have fewer pictures."""
        return -(-len(self.pictures) // self.batch_size)

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return self.steps * self.accumulate

    def __getitem__(self, position: int) -> ClassBatch:
        epoch, micro_batch = divmod(position, len(self))
        step, chunk = divmod(micro_batch, self.accumulate)
        if self._order[0] != epoch:
            self._order = epoch, rng.permutation(self.seed, "classifier order", epoch, len(self.pictures))
        rows = self._order[1][step * self.batch_size : (step + 1) * self.batch_size]
        rows = np.array_split(rows, self.accumulate * self.world_size)[chunk * self.world_size + self.rank]
        images = [self._image(epoch, row) for row in rows.tolist()]
        index = torch.from_numpy(rows.copy())
        labels = torch.from_numpy(self.pictures.labels[rows])
        return ClassBatch(
            torch.stack(images), labels, index, torch.zeros_like(index), position * self.world_size + self.rank
        )

    def _image(self, epoch: int, row: int) -> Tensor:
        seed = rng.key(self.seed, "classifier view", epoch, row) >> 65
        return self.view.train(self.view.prepare(self.read(self.pictures, row)), seed)


@dataclass
class TestStream:
    """Map-style over the batches of one rank of a validation or test set, in the order of its files.

    Attributes:
        pictures: the set.
        view: how a picture is shown.
        read: reads one.
        seed: of random crops.
        batch_size: pictures of a batch.
        rows: the pictures of this rank.
    """

    __test__ = False  # pytest takes classes of this name for tests

    pictures: Pictures
    view: View
    read: Reader
    seed: int
    batch_size: int
    rows: range

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, batch: int) -> ClassBatch:
        rows = self.rows[batch * self.batch_size : (batch + 1) * self.batch_size]
        images = [
            self.view.test(
                self.view.prepare(self.read(self.pictures, row)), rng.derived_seed(self.seed, "classifier test", row)
            )
            for row in rows
        ]
        index = torch.tensor(list(rows))
        labels = torch.from_numpy(self.pictures.labels[rows.start : rows.stop])
        return ClassBatch(torch.stack(images), labels, index, torch.zeros_like(index), batch)
