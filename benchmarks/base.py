"""What a benchmark is, and how two things are timed side by side.

Timings are CPU seconds of this process, A B A B ... in one run, so that a busy machine moves both alike; what is
reported is a ratio of medians. Deterministic counts (operations, FLOPs, bytes) are gated in ``tests/``, not here.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
        full: also what does not fit into ten minutes on two cores.
        threads: threads of torch.
        device: where networks run, "cpu" or "cuda".
        checkpoints: trained models, for what needs some.
        figure: the file of the plotted curves, or None.
        small: tiny networks and few steps, so that every line of a measurement runs on a CPU.
        data: folder of check vectors, or None.
        work: a folder for what a measurement writes.
        until: when a measurement should come to its end, by ``time.monotonic``.
        measured: values of measurements before this one, by what they measured.
    """

    full: bool = False
    threads: int = 1
    device: str = "cpu"
    checkpoints: tuple[Path, ...] = ()
    figure: Path | None = None
    small: bool = False
    data: Path | None = None
    work: Path = Path("benchmark-work")
    until: float = math.inf
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds until ``until``."""
        return self.until - time.monotonic()


@dataclass(frozen=True)
class Measurement:
    """One line of the table.

    Attributes:
        what: the quantity, with the sizes that matter ("PRDC, N=10,000, D=1,024").
        value: ours, in ``unit``.
        unit: "s", "ms", "samples/s", "ops", "MB", "x", ...
        against: what it is compared with; empty for none.
        reference: the other's value in the same unit.
        goal: what was to be reached, in words ("at least 1.3 x"); empty for none.
        reached: whether it was; None without a goal.
        note: what a reader has to know.
    """

    what: str
    value: float
    unit: str
    against: str = ""
    reference: float | None = None
    goal: str = ""
    reached: bool | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours over the other's; None where there is no other."""
        return None if not self.reference else self.value / self.reference


@dataclass(frozen=True)
class Benchmark:
    """A named measurement.

    Attributes:
        name: as on the command line.
        summary: one line of ``--list``.
        measure: the work; gives its measurements at once, or one by one where it may be cut short.
        seconds: how long it may take where time is short.
        needs: packages that it imports beyond torch and numpy.
    """

    name: str
    summary: str
    measure: Callable[[Settings], Iterable[Measurement]]
    seconds: float = math.inf
    needs: tuple[str, ...] = ()


def reached(value: float, goal: float, kind: Literal["at least", "at most"]) -> bool:
    """Whether ``value`` meets ``goal``."""
    return value >= goal if kind == "at least" else value <= goal


def cpu_seconds(
    functions: dict[str, Callable[[], object]],
    repeats: int = 3,
    warm_up: int = 1,
    clock: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Median seconds of each function, run in turns.

    Args:
        functions: name -> what to time.
        repeats: timed calls of each.
        warm_up: calls before that.
        clock: ``time.process_time`` by default (CPU seconds of all threads of this process).

    Returns:
        name -> median seconds of a call.
    """
    clock = clock or time.process_time
    for function in functions.values():
        for _ in range(warm_up):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            gc.collect()
            started = clock()
            function()
            seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
