"""What a piece of work cost: seconds and the peak of memory, of the GPU where one is in use, else of the process."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Of one piece of work.

    Attributes:
        what: its name.
        seconds: wall clock.
        memory: bytes at the peak: allocated on the GPU, or resident in the whole process.
        place: "GPU" or "process".
    """

    what: str
    seconds: float
    memory: int
    place: str

    def __str__(self) -> str:
        return f"{self.what}: {self.seconds:.1f} s, at most {self.memory / 2**20:,.0f} MiB ({self.place})"


@contextlib.contextmanager
def measured(what: str, costs: list[Cost]) -> Iterator[None]:
    """Appends the cost of the block to ``costs`` when the block ends well."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # Linux: the peak starts anew; elsewhere it is that of the process so far
    started = time.perf_counter()
    yield
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    memory = torch.cuda.max_memory_allocated() if on_gpu else _peak()
    costs.append(Cost(what, seconds, memory, "GPU" if on_gpu else "process"))


def _peak() -> int:
    """Peak of the resident memory, bytes."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
