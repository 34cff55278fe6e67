"""How far long work is: a bar with rate and time left over all items, and a first estimate in words."""

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
        drawn: whether this process draws.
        processes: how many share the work.

    Attributes:
        own: items that this process has computed.
    """

    def __init__(self, ledger: Ledger, label: str, unit: str, drawn: bool, processes: int) -> None:
        self.ledger = ledger
        self.label = label
        self.unit = unit
        self.processes = processes
        self._begun = time.monotonic()
        self._before = self._others = self._finished()
        self.own = 0
        self._bar: Any = None
        if drawn:
            self._bar = tqdm(
                total=ledger.items, initial=self._before, desc=label, unit=unit, smoothing=0.05, mininterval=0.5
            )

    def add(self, items: int) -> None:
        """This process has computed some more."""
        self.own += items
        if self._bar is not None:
            self._bar.update(min(self._others + self.own, self.ledger.items) - self._bar.n)

    def shard_written(self, pending: int) -> None:
        """A shard of this process lies on the disk; ``pending`` items that it has computed do not yet."""
        if self._bar is not None and self.processes > 1:
            self._others = max(self._others, self._finished() - (self.own - pending))

    def estimate(self) -> None:
        """Says how long the rest will take, from what was done so far."""
        done = self.own * self.processes
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
