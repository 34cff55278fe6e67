"""What Lightning iterates: streams read by worker processes, and a position that survives a resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader

from t2ikit.batch import StoredBatch
from t2ikit.data.batches import read_batch
from t2ikit.data.streams import check_arrays
from t2ikit.records.record_set import RecordSet
from t2ikit.stopping import only_by_parent


class Stream(Protocol):
    """The batches of one rank by their number: those of one pass, or of a training, whose passes never end."""

    def __len__(self) -> int:
        """Batches of a pass."""

    def __getitem__(self, batch: int) -> Any:
        """One batch."""


class Training(Stream, Protocol):
    """Micro-batches of a training.

    Attributes:
        world_size: number of ranks.
        micro_batch: slots of a micro-batch of one rank.
    """

    @property
    def world_size(self) -> int: ...

    @property
    def micro_batch(self) -> int: ...


def _unchanged(batch: Any) -> Any:
    return batch


def _read(stream: Stream, batches: range, num_workers: int, pin_memory: bool) -> DataLoader[Any]:
    """Reads batches of a stream, in order.

    Workers live as long as one pass: kept ones would end only with the garbage collection of the loader, where PyTorch
    waits five seconds for each of them.
    """
    return DataLoader(
        stream,  # type: ignore[arg-type]  # map-style by its methods
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_unchanged,
        worker_init_fn=only_by_parent,
    )


@dataclass(eq=False)
class PositionLoader:
    """Serves a training stream from a position that Lightning saves and restores.

    Iterating goes on from the position to the end of the pass (an epoch, unless ``batches_per_pass`` is given). The
    position moves before a batch is handed out, so a checkpoint counts just the batches that were consumed, whatever
    the workers have read ahead. The position is a number of global slots: it means the same for other ranks, workers
    and micro-batches.

    Attributes:
        stream: the stream of this rank.
        num_workers: reading processes; 0 reads in this one.
        pin_memory: copy the batches to page-locked memory.
        batches_per_pass: micro-batches after which iterating stops; 0 stops at the end of an epoch.
        first_slot: global slots that were served before, None for none.
    """

    stream: Training
    num_workers: int = 0
    pin_memory: bool = False
    batches_per_pass: int = 0
    first_slot: InitVar[int | None] = None
    _position: int = field(default=0, init=False)  # micro-batches of this rank

    def __post_init__(self, first_slot: int | None) -> None:
        self.batches_per_pass = self.batches_per_pass or len(self.stream)
        if first_slot is not None:
            self.load_state_dict({"slot": first_slot})

    @property
    def slot(self) -> int:
        """Global slots served so far."""
        return self._position * self._slots

    @property
    def _slots(self) -> int:
        return self.stream.world_size * self.stream.micro_batch

    def __len__(self) -> int:
        """Micro-batches of a full epoch, wherever the position is."""
        return len(self.stream)

    def __iter__(self) -> Iterator[Any]:
        # A generator: Lightning calls iter() several times, but only the iterator that is advanced may start workers.
        end = (self._position // self.batches_per_pass + 1) * self.batches_per_pass
        for batch in _read(self.stream, range(self._position, end), self.num_workers, self.pin_memory):
            self._position += 1
            yield batch

    def move(self, micro_batches: int) -> None:
        """Moves the position on, or back by a negative number; a pass that is under way stays as it is."""
        self._position += micro_batches

    def state_dict(self) -> dict[str, Any]:
        """The position, as it goes into the checkpoint."""
        return {"slot": self.slot}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position, also one of a run with other ranks or micro-batches.

        Raises:
            ValueError: if the position is inside a micro-batch of this run.
        """
        position, rest = divmod(int(state["slot"]), self._slots)
        if rest:
            raise ValueError(
                f"the checkpoint has served {state['slot']} samples, which is no multiple of the {self._slots} of a "
                "pass over all devices: resume with the same data.batch_size, trainer.devices and "
                "trainer.accumulate_grad_batches"
            )
        self._position = position


def batches_per_pass(trainer: Any, epoch: int) -> int:
    """Micro-batches after which Lightning ends its epoch; the next one then goes on where this one stopped.

    Lightning makes an optimizer step at the end of an epoch from whatever micro-batches there are, so an epoch must be
    whole steps. A share of the epoch is rounded down to them, at least one; the Trainer is told, to count the same.

    Args:
        trainer: of Lightning; None stands for one that limits nothing.
        epoch: micro-batches of a full epoch.

    Raises:
        ValueError: an option of the Trainer would repeat data, begin it again, or make steps of a part of the batch.
    """
    if trainer is None:
        return epoch
    if trainer.overfit_batches:
        raise ValueError("trainer.overfit_batches would repeat batches: use a small data set instead")
    if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
        raise ValueError("trainer.reload_dataloaders_every_n_epochs would begin the data again: leave it at 0")
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    batches = min(limit, epoch) if isinstance(limit, int) else int(limit * epoch)
    if batches % accumulate == 0 or getattr(trainer, "fast_dev_run", False):  # a trial is its first micro-batches
        return max(1, batches)
    if isinstance(limit, int):
        raise ValueError(
            f"trainer.limit_train_batches {limit} is no multiple of trainer.accumulate_grad_batches {accumulate}: the "
            "last step of every epoch would have a part of the batch; set it to a multiple, or leave it out"
        )
    trainer.limit_train_batches = max(accumulate, batches - batches % accumulate)
    return int(trainer.limit_train_batches)


def count_anew(fit_loop: dict[str, Any], slots: int) -> None:
    """Counts the micro-batches of a checkpoint again where those of this run have another size.

    Lightning counts micro-batches. After a resume with other ``trainer.accumulate_grad_batches`` its count would end
    epochs, and with them optimizer steps, in the wrong places.

    Args:
        fit_loop: state of Lightning's fit loop in a checkpoint; changed in place. One without the position of a
            :class:`PositionLoader` stays as it is.
        slots: global slots of a micro-batch of this run, over all ranks.

    Raises:
        ValueError: the checkpoint is inside an epoch whose micro-batches cannot be counted so.
    """
    states = fit_loop.get("state_dict", {}).get("combined_loader") or [{}]
    progress = fit_loop["epoch_loop.batch_progress"]
    before, now = progress["total"]["processed"], int(states[0].get("slot", 0)) // slots
    if before == 0 or now in (0, before):
        return
    for counts in (progress["total"], progress["current"]):
        processed, rest = divmod(counts["processed"] * now, before)
        if rest:
            raise ValueError(
                f"the checkpoint is {counts['processed']} micro-batches into an epoch, which are no whole number of "
                "those of this run: set data.batch_size and trainer.accumulate_grad_batches as they were"
            )
        moved = processed - counts["processed"]
        counts.update({name: counts[name] + moved for name in ("ready", "started", "processed", "completed")})


class EvaluationStream:
    """Map-style over the batches of one rank of a set in its stored order, every record with its first caption.

    Record i has the noise quantile (i + 0.5) / n, so that one pass covers all levels evenly. The records are dealt out
    evenly: every rank has the same number of batches, and no record comes twice unless a set has fewer records than
    there are ranks. ``slot`` of a batch counts the records before it. Aspect buckets come one after the other, and no
    batch holds records of two.

    Args:
        records: the set, or its buckets.
        batch_size: records of a batch of one rank, at most.
        world_size: number of ranks.
        rank: this one.
        length_bucket: see :func:`read_batch`.
        limit: only the first so many records, of buckets each its share of them; None takes all.
        arrays: as of :class:`TrainingStream`.

    Raises:
        ValueError: the batch size is below 1, or a set lacks text states or one of further ``arrays``, which are
            looked at where some are asked for.
    """

    def __init__(
        self,
        records: RecordSet | Sequence[RecordSet],
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
        length_bucket: int = 16,
        limit: int | None = None,
        arrays: Sequence[str] = ("image",),
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"data.eval_batch_size must be at least 1, not {batch_size}")
        self.sets = [records] if isinstance(records, RecordSet) else list(records)
        if tuple(arrays) != ("image",):
            for bucket_records in self.sets:
                check_arrays(bucket_records, arrays)
        self.arrays = tuple(arrays)
        self.length_bucket = length_bucket
        ends = np.cumsum([len(records) for records in self.sets])
        self.count = count = int(ends[-1]) if limit is None else min(limit, int(ends[-1]))
        taken = np.diff(ends * count // ends[-1], prepend=0)  # of each set
        self.ranges: list[tuple[int, int, int, int]] = []  # set, first record in it, last + 1, records before
        for bucket, (size, before) in enumerate(zip(taken.tolist(), (np.cumsum(taken) - taken).tolist(), strict=True)):
            batches = -(-size // (batch_size * world_size))
            edges = np.arange(batches * world_size + 1) * size // max(batches * world_size, 1)
            for batch in range(rank, batches * world_size, world_size):
                first, end = int(edges[batch]), max(int(edges[batch + 1]), int(edges[batch]) + 1)
                self.ranges.append((bucket, first, end, before))

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, batch: int) -> StoredBatch:
        bucket, first, end, before = self.ranges[batch]
        index = np.arange(first, end)
        views = [self.sets[bucket].view(record) for record in index.tolist()]
        u = (index + before + 0.5) / self.count
        source, captions = np.zeros_like(index), [0] * len(views)
        return read_batch(views, captions, before + first, source, u, index, self.length_bucket, self.arrays)


@dataclass(eq=False)
class EvaluationLoader:
    """Serves an evaluation stream, the same batches in every pass.

    Not a ``DataLoader``: Lightning would put a distributed sampler of its own into one.
    """

    stream: Stream
    num_workers: int = 0
    pin_memory: bool = False

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Any]:
        yield from _read(self.stream, range(len(self.stream)), self.num_workers, self.pin_memory)
