"""Loads the items of some shards in order and ahead, in loader processes."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from t2ikit.prepare.shards import Ledger
from t2ikit.prepare.work import Work


@dataclass
class Batch:
    """Loaded items ``start ...`` of a shard, or why they could not be loaded."""

    shard: int
    start: int
    items: list[Any]
    failure: Exception | None = None


class Loading(Dataset[Batch]):
    """The batches of some shards; loader processes load whole ones."""

    def __init__(self, work: Work, ledger: Ledger, shards: list[int], batch_size: int) -> None:
        self.work = work
        self.ledger = ledger
        self.shards = shards  # in order: only the last shard of all may be shorter
        self.batch_size = batch_size
        self.per_shard = -(-ledger.shard_size // batch_size)

    def __len__(self) -> int:
        if not self.shards:
            return 0
        last = -(-len(self.ledger.range(self.shards[-1])) // self.batch_size)
        return (len(self.shards) - 1) * self.per_shard + last

    def __getitem__(self, index: int) -> Batch:
        shard = self.shards[index // self.per_shard]
        items = self.ledger.range(shard)
        first = index % self.per_shard * self.batch_size
        part = items[first : first + self.batch_size]
        try:
            return Batch(shard, part.start, [self.work.load(item) for item in part])
        except (OSError, ValueError, RuntimeError) as error:
            # Raised by the rank: here it would get the traceback of this process for a message.
            if get_worker_info() is None or not _survives_pickling(error):
                raise
            return Batch(shard, part.start, [], error)


class Batches:
    """Reads batches ahead, in order. Loader processes start with the iterator: before models are on a device."""

    def __init__(self, loading: Loading, workers: int) -> None:
        self.loading = loading
        self.workers = workers

    def __iter__(self) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            self.loading, batch_size=None, num_workers=self.workers, worker_init_fn=_one_thread
        )
        return iter(loader)


def _survives_pickling(error: Exception) -> bool:
    try:
        return str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:
        return False


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the process that reads
