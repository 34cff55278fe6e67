"""Tries of a run with two ranks that a signal stops at a random moment; a table of how each ended.

    python tests/signal_trials.py [TRIES] [SEED]

Run by ``nox -s signals``. Exits 1 if a try does not end within 30 seconds, ends with another status than 75, or lacks
the checkpoint of the step at which it says that it stopped. Under torchrun, which makes a 1 of every status, 1 counts.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tiny

EXPERIMENT = """
extends: [tiny.yaml]
data: {init_args: {num_workers: WORKERS}}
trainer: {max_steps: 100000, accumulate_grad_batches: 2}
callbacks:
  geneval: null
  table: null
  checkpoint: {init_args: {every_n_steps: 40}}
  val:
    init_args:
      {prompts: {init_args: {limit: 48}}, metrics: [], reference: null, batch_size: 2, steps: 20, every_n_steps: 25}
"""
LIMIT_SECONDS = 30.0
RANKS = ["--trainer.devices", "2", "--trainer.strategy"]
LAUNCHES = {
    "ddp": [],
    "ddp_fork": [],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"],
}


@dataclass
class Try:
    """How one try ended.

    Attributes:
        launch: which launcher started the ranks.
        target: launcher, rank 1, or all (those of the launcher's process group).
        name: of the signal.
        phase: what the run was doing.
        status: exit status of the launcher; None if it had to be killed.
        seconds: from the signal to the end of the last process.
        said: what the run printed.
        saved: steps of its checkpoints.
    """

    launch: str
    target: str
    name: str
    phase: str
    status: int | None
    seconds: float
    said: str
    saved: list[int]

    @property
    def failure(self) -> str:
        """What is not as promised; empty if all is."""
        stopped = re.search(r"Stopped by [\w ]+? (at step (\d+)|before the first step)", self.said)
        if self.status not in ((75, 1) if self.launch == "torchrun" else (75,)):
            return f"status {self.status}"
        if self.seconds >= LIMIT_SECONDS or stopped is None:
            return f"{self.seconds:.0f} s, last words: {self.said[-300:]!r}"
        step = int(stopped[2] or 0)
        return f"no checkpoint of step {step}: {self.saved}" if step and step not in self.saved else ""


def processes(folder: Path) -> dict[int, str]:
    """Processes of a try, by its current folder, and their command lines, without those that have ended.

    torchrun gives each rank a session and a process group of its own.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if (path / "cwd").readlink() == folder and state != "Z":
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def ready_processes(folder: Path) -> list[int]:
    """Processes of a run that handle signals: Python itself has come up, and no child stands between fork and exec."""
    before = processes(folder)
    time.sleep(0.2)
    lines = processes(folder)
    return [pid for pid, line in lines.items() if pid in before and "t2ikit" in line and handles_signals(pid)]


def handles_signals(pid: int) -> bool:
    """Whether a process has a handler of SIGTERM."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return False
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def phase_of(folder: Path) -> str:
    """What a run is doing, by its files."""
    if list(folder.glob("runs/*/version_0/samples/val/*.sampling")):
        return "snapshot"
    return "steps" if list(folder.glob("runs/*/version_0/metrics.csv")) else "setup"


def command_of(launch: str) -> list[str]:
    strategy = "ddp" if launch == "torchrun" else launch
    words = ["run", "small.yaml", *RANKS, strategy, "--resume", "auto"]
    return [sys.executable, "-m", *LAUNCHES[launch], "t2ikit", *words]


def attempt(folder: Path, launch: str, target: str, name: str, delay: float, phase: str) -> Try:
    """Starts a run, waits for a phase and ``delay`` seconds more, signals, and waits for the end of all processes.

    Nothing is sent before the run has set its handlers: a signal in the first second ends Python itself.
    """
    folder = folder.resolve()
    folder.mkdir()
    workers = "1" if target == "all" else "0"
    (folder / "tiny.yaml").write_text(tiny.EXPERIMENT)
    (folder / "small.yaml").write_text(EXPERIMENT.replace("WORKERS", workers))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "T2IKIT_CACHE": str(folder.parent / "cache")}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command_of(launch),
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wanted = time.monotonic() + 120
    while phase != "setup" and time.monotonic() < wanted and process.poll() is None and phase_of(folder) != phase:
        time.sleep(0.05)
    time.sleep(delay)
    ready = ready_processes(folder)
    while process.poll() is None and time.monotonic() < wanted and len(ready) < (3 if launch == "torchrun" else 1):
        ready = ready_processes(folder)
    actual, begun = phase_of(folder), time.monotonic()
    number = signal.Signals[name]
    others = [pid for pid in ready if pid != process.pid]
    with contextlib.suppress(ProcessLookupError):  # the run has ended by itself, which its status tells
        if target == "all":
            os.killpg(process.pid, number)
        else:
            os.kill(max(others) if target == "rank 1" and others else process.pid, number)
    status: int | None = None
    try:
        status = process.wait(90)
        while processes(folder) and time.monotonic() < begun + 90:
            time.sleep(0.1)
    except subprocess.TimeoutExpired:
        pass
    seconds = time.monotonic() - begun
    for pid in processes(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    saved = [int(path.stem[5:]) for path in folder.glob("runs/small/version_0/checkpoints/*.ckpt")]
    return Try(launch, target, name, actual, status, seconds, log.read_text(errors="replace"), sorted(saved))


def plan(tries: int, seed: int) -> list[tuple[str, str, str, float, str]]:
    """Launch, target, signal, delay and phase of each try: every combination in turn, at random moments."""
    chance = random.Random(seed)
    combinations = [
        (launch, target, name, phase)
        for launch in LAUNCHES
        for target in ("launcher", "rank 1", "all")
        for name in ("SIGTERM", "SIGUSR1", "SIGINT")
        for phase in ("setup", "steps", "snapshot")
        # torchrun passes neither SIGUSR1 on, nor the status of one rank alone
        if launch != "torchrun" or (name == "SIGTERM" and target == "all")
    ]
    chance.shuffle(combinations)
    chosen = (combinations * (tries // len(combinations) + 1))[:tries]
    return [
        (launch, target, name, chance.uniform(1.0, 12.0) if phase == "setup" else chance.uniform(0.0, 1.5), phase)
        for launch, target, name, phase in chosen
    ]


def main(tries: int, seed: int) -> int:
    """Prints a row for each try; 1 if one failed."""
    failed = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'launch':9} {'to':9} {'signal':8} {'during':9} {'status':>6} {'seconds':>8}")
        for index, (launch, target, name, delay, phase) in enumerate(plan(tries, seed)):
            done = attempt(Path(folder) / str(index), launch, target, name, delay, phase)
            failed += bool(done.failure)
            print(
                f"{done.launch:9} {done.target:9} {done.name:8} {done.phase:9} {done.status!s:>6} {done.seconds:8.1f}  "
                f"{done.failure or 'as promised'}",
                flush=True,
            )
    print(f"{tries - failed} of {tries} tries stopped as promised")
    return 1 if failed else 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(main(numbers[0] if numbers else 50, numbers[1] if len(numbers) > 1 else 0))
