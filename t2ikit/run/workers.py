"""Several processes of one command beside each other, each with its share of the cores and the GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from t2ikit.launch import with_share_of_cores

_PAUSE = 0.1  # seconds between two looks at the processes


def run_workers(words: Sequence[str], count: int, logs: Path) -> int:
    """Runs ``t2ikit WORDS`` in ``count`` processes and waits for them; a signal ends them, too.

    Args:
        words: of the command line.
        count: of processes.
        logs: folder of their output, ``worker-0.log``, ...

    Returns:
        The first exit status that is not 0, or 0.
    """
    logs.mkdir(parents=True, exist_ok=True)
    statuses: list[int] = []
    with children() as running:
        for number in range(count):
            path = logs / f"worker-{number}.log"
            print(f"worker {number}: output in {path}", flush=True)
            with path.open("ab") as output:
                running[str(number)] = subprocess.Popen(
                    [sys.executable, "-m", "t2ikit", *words],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment_of(number, count),
                )
        while running:
            for name, process in wait_for_some(running).items():
                statuses.append(process.returncode)
                if process.returncode:
                    seen = f"see {logs / f'worker-{name}.log'}"
                    print(f"worker {name}: ended with status {process.returncode}; {seen}", file=sys.stderr, flush=True)
    return next(filter(None, statuses), 0)


@contextmanager
def children() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes by name, none of which outlives the block.

    SIGTERM or SIGUSR1 ends it, Ctrl-C waits until they have saved.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield running
    except KeyboardInterrupt:  # the terminal has told the processes as well, which save their state and end
        for process in running.values():
            process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()


def environment_of(number: int, count: int, devices: int = 1) -> dict[str, str]:
    """The environment of one of ``count`` processes: the cores are shared, and the GPUs dealt out.

    Args:
        number: of the process, from 0.
        count: of the processes beside each other.
        devices: that it needs, for a rank each, which share its cores; ``sys.maxsize`` for those that it names itself.
            It gets as many GPUs, and its whole share where that is more; where there are fewer, it sees all.
    """
    ranks = devices if devices < sys.maxsize else 1
    environment = with_share_of_cores(count * ranks)
    gpus = torch.cuda.device_count()
    own = max(gpus // count, devices)
    if gpus > 1 and own <= gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[(number * own + i) % gpus] for i in range(own))
    return environment


def wait_for_some(running: dict[str, subprocess.Popen[bytes]]) -> dict[str, subprocess.Popen[bytes]]:
    """Waits a moment, and takes those that have ended out of ``running``."""
    time.sleep(_PAUSE)
    return {name: running.pop(name) for name, process in list(running.items()) if process.poll() is not None}


def _end(number: int, frame: FrameType | None) -> None:
    """Ends by an exception, so that the processes are ended, too."""
    raise SystemExit(128 + number)
