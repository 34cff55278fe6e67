"""Chunks are brought and checked before they are needed: the order is a pure function, so the next ones are known."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from t2ikit.data.order import RecordOrder
from t2ikit.records.record_set import RecordSet, SetFiles
from t2ikit.records.remote import RemoteChunks

_AT_ONCE = 4  # downloads of one process

Task = tuple[SetFiles, str]


class Ahead:
    """Keeps the chunks of the present pools and of the next ones ready, in threads of the process that reads.

    Every reading process has its own; they leave a chunk that one of them is busy with to that one. What goes wrong
    here is not reported: it goes wrong again, with its message, where the chunk is needed.

    Args:
        sets: of the sources.
        orders: of the sources.
        periods: slots of an epoch of each source.
        records: how far to look ahead, at least, beyond the pools in use.
    """

    def __init__(
        self, sets: Sequence[RecordSet], orders: Sequence[RecordOrder], periods: Sequence[int], records: int
    ) -> None:
        self.sources = [
            (one.files, one.chunk_names, order, period)
            for one, order, period in zip(sets, orders, periods, strict=True)
            if one.files is not None
        ]
        self.records = records
        self._places: list[tuple[int, int]] = []
        self._process = os.getpid()
        self._tasks: deque[Task] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_places": [], "_tasks": deque()}

    def move(self, slot: int) -> None:
        """Says that slot ``slot`` is about to be read; returns at once."""
        places = [(slot // period, order.pool(slot // period, slot % period)) for *_, order, period in self.sources]
        if places == self._places and self._process == os.getpid():
            return
        self._places, self._process = places, os.getpid()
        self._tasks.clear()  # what the threads of the last pools have not begun
        self._tasks = deque(self.tasks(slot))
        at_once = _AT_ONCE if any(isinstance(files, RemoteChunks) for files, *_ in self.sources) else 1
        for _ in range(min(at_once, len(self._tasks))):
            threading.Thread(target=_work, args=(self._tasks,), daemon=True, name="chunks ahead").start()

    def tasks(self, slot: int) -> list[Task]:
        """The chunks that are needed from ``slot`` on, the next ones of every source first."""
        lists: list[list[Task]] = [
            [(files, names[chunk]) for chunk in order.upcoming(slot // period, slot % period, self.records)]
            for files, names, order, period in self.sources
        ]
        # In turns: every source is needed in every batch.
        longest = max(map(len, lists), default=0)
        return [tasks[place] for place in range(longest) for tasks in lists if place < len(tasks)]


def _work(tasks: deque[Task]) -> None:
    while True:
        try:
            files, name = tasks.popleft()
        except IndexError:
            return
        with suppress(Exception):
            files.ready(name, wait=False)
