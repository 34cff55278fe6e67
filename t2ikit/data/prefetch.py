"""Chunks that are made ready ahead of the slot that a run is at."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

from t2ikit.data.order import Source
from t2ikit.records.record_set import SetFiles
from t2ikit.records.remote import RemoteChunks

_DOWNLOADS = 4  # of one process at the same time

ChunkTask = tuple[SetFiles, str]


class Prefetcher:
    """Keeps the chunks of the present pools and of the next ones ready, in threads of the process that reads.

    Every reading process has its own; they leave a chunk to the process that is busy with it. An error in a thread is
    not reported: it occurs again, with its message, where the chunk is needed.

    Args:
        sources: the sets that are read.
        records: how far to look ahead, at least, beyond the pools in use.
    """

    def __init__(self, sources: Sequence[Source], records: int) -> None:
        self.sources = [(source.records.files, source) for source in sources if source.records.files is not None]
        self.records = records
        self._pools: list[tuple[int, int]] = []  # (epoch, pool) of every source
        self._process = os.getpid()
        self._tasks: deque[ChunkTask] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pools": [], "_tasks": deque()}

    def move(self, slot: int) -> None:
        """Says that slot ``slot`` is about to be read; returns at once."""
        places = [(source, *source.place(slot)) for _, source in self.sources]
        pools = [(epoch, source.order.pool(epoch, position)) for source, epoch, position in places]
        if pools == self._pools and self._process == os.getpid():
            return
        self._pools, self._process = pools, os.getpid()
        self._tasks.clear()  # what the threads of the last pools have not begun
        self._tasks = deque(self.tasks(slot))
        threads = _DOWNLOADS if any(isinstance(files, RemoteChunks) for files, *_ in self.sources) else 1
        for _ in range(min(threads, len(self._tasks))):
            threading.Thread(target=_work, args=(self._tasks,), daemon=True, name="chunk prefetch").start()

    def tasks(self, slot: int) -> list[ChunkTask]:
        """The chunks that are needed from ``slot`` on, the next ones of every source first."""
        lists: list[list[ChunkTask]] = [
            [
                (files, source.records.chunk_names[chunk])
                for chunk in source.order.upcoming(*source.place(slot), self.records)
            ]
            for files, source in self.sources
        ]
        # In turns: every source is needed in every batch.
        return [task for turn in zip_longest(*lists) for task in turn if task is not None]


def _work(tasks: deque[ChunkTask]) -> None:
    while True:
        try:
            files, name = tasks.popleft()
        except IndexError:
            return
        with suppress(Exception):
            files.ready(name, wait=False)
