"""Loads the items of some shards in order and ahead, in loader processes; writes shards that need no device there."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from t2ikit.prepare.engine.shards import Ledger
from t2ikit.prepare.engine.work import HostWork, Work

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


@dataclass
class Batch:
    """Loaded items of a shard; or the news that the shard is written, or what went wrong.

    Attributes:
        shard: its number.
        indices: of the items.
        items: what was loaded for them.
        written: the loader process has written the whole shard to the disk; ``items`` is empty.
        failure: what went wrong instead.
    """

    shard: int
    indices: range
    items: list[Any]
    written: bool = False
    failure: Exception | None = None


class Loading(Dataset[Batch]):
    """The batches of some shards, each of which is loaded by one loader process; of host work, whole shards."""

    def __init__(self, work: Work, ledger: Ledger, shards: list[int], batch_size: int) -> None:
        self.work = work
        self.ledger = ledger
        self.shards = shards  # in order: only the last shard of all may be shorter
        self.batch_size = ledger.shard_size if isinstance(work, HostWork) else batch_size
        self.per_shard = -(-ledger.shard_size // self.batch_size)

    def __len__(self) -> int:
        if not self.shards:
            return 0
        last = -(-len(self.ledger.range(self.shards[-1])) // self.batch_size)
        return (len(self.shards) - 1) * self.per_shard + last

    def __getitem__(self, index: int) -> Batch:
        shard = self.shards[index // self.per_shard]
        first = index % self.per_shard * self.batch_size
        indices = self.ledger.range(shard)[first : first + self.batch_size]
        try:
            if isinstance(self.work, HostWork):
                self.ledger.write(shard, map(self.work.load, indices))
                return Batch(shard, indices, [], written=True)
            return Batch(shard, indices, [self.work.load(item) for item in indices])
        except (OSError, ValueError, RuntimeError) as error:
            # Raised by the rank: here it would get the traceback of this process for a message.
            if get_worker_info() is None or not _survives_pickling(error):
                raise
            return Batch(shard, indices, [], failure=error)


class Batches:
    """Reads batches ahead, in order. Loader processes start with the iterator: before models are on a device."""

    def __init__(self, loading: Loading, workers: int) -> None:
        self.loading = loading
        self.workers = workers

    def __iter__(self) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            self.loading, batch_size=None, num_workers=self.workers, worker_init_fn=_begin
        )
        return iter(loader)


def _survives_pickling(error: Exception) -> bool:
    try:
        return str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:
        return False


def _begin(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the process that reads
    _end_with_parent()


def _end_with_parent() -> None:
    """Has Linux kill this process when the one that started it is killed, so that it writes no shard after that.

    Elsewhere it ends after its shard, when PyTorch notices.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL))
        if not multiprocessing.parent_process().is_alive():  # type: ignore[union-attr]
            os._exit(128 + signal.SIGKILL)
