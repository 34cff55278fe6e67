"""Several processes of one command beside each other, each with its share of the cores and a GPU of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch

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
    running: dict[int, subprocess.Popen[bytes]] = {}
    statuses: list[int] = []
    before = signal.signal(signal.SIGTERM, _end)
    try:
        for number in range(count):
            path = logs / f"worker-{number}.log"
            print(f"worker {number}: output in {path}", flush=True)
            with path.open("ab") as output:
                running[number] = subprocess.Popen(
                    [sys.executable, "-m", "t2ikit", *words],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(number, count),
                )
        while running:
            time.sleep(_PAUSE)
            for number in [number for number, process in running.items() if process.poll() is not None]:
                status = running.pop(number).returncode
                statuses.append(status)
                if status:
                    seen = f"see {logs / f'worker-{number}.log'}"
                    print(f"worker {number}: ended with status {status}; {seen}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:  # the terminal has told the workers as well, which save their state and end
        for process in running.values():
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return next(filter(None, statuses), 0)


def _environment(number: int, count: int) -> dict[str, str]:
    """Of one process: the cores are shared, and the GPUs dealt out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": str(max(1, cores // count)), **os.environ}
    gpus = torch.cuda.device_count()
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
    return environment


def _end(number: int, frame: FrameType | None) -> None:
    """Ends by an exception, so that the workers are ended, too."""
    raise SystemExit(128 + number)
