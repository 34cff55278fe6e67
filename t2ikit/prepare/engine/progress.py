"""Progress of long work: a bar with rate and time left over all items, and a first estimate in words."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm

from t2ikit.prepare.engine.shards import Ledger


class Progress:
    """Counts the items of one process, and those that others finish beside it.

    Args:
        ledger: of the work.
        label, unit: of the bar.
        shown: whether this process shows the bar.
        processes: how many share the work.

    Attributes:
        computed: items that this process has computed.
    """

    def __init__(self, ledger: Ledger, label: str, unit: str, shown: bool, processes: int) -> None:
        self.ledger = ledger
        self.label = label
        self.unit = unit
        self.processes = processes
        self._begun = time.monotonic()
        self._before = self._others = self._finished()
        self.computed = 0
        self._bar: Any = None
        if shown:
            self._bar = tqdm(
                total=ledger.items, initial=self._before, desc=label, unit=unit, smoothing=0.05, mininterval=0.5
            )

    def add(self, items: int) -> None:
        """This process has computed some more."""
        self.computed += items
        if self._bar is not None:
            self._bar.update(min(self._others + self.computed, self.ledger.items) - self._bar.n)

    def shard_written(self, pending: int) -> None:
        """A shard of this process lies on the disk; ``pending`` items that it has computed do not yet."""
        if self._bar is not None and self.processes > 1:
            self._others = max(self._others, self._finished() - (self.computed - pending))

    def estimate(self) -> None:
        """Says how long the rest will take, from what was done so far."""
        done = self.computed * self.processes
        left = self.ledger.items - self._before - done
        seconds = left * (time.monotonic() - self._begun) / done
        if self._bar is not None and seconds >= 60:
            tqdm.write(f"{self.label}: about {duration(seconds)} for the {left:,} {self.unit} that are left")

    def close(self, complete: bool) -> None:
        """Ends the bar."""
        if self._bar is not None:
            if complete:
                self._bar.update(self.ledger.items - self._bar.n)
            self._bar.close()
            self._bar = None

    def _finished(self) -> int:
        return sum(len(self.ledger.range(shard)) for shard in self.ledger.finished())


def duration(seconds: float) -> str:
    """ "3 h 05 min", or minutes alone.

    Example:
        >>> duration(11_100)
        '3 h 05 min'
    """
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
