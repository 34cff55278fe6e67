"""Watches a run that another process makes, and kills it at a moment that was chosen before."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from t2ikit import rng
from t2ikit.callbacks.step_records import FOLDER
from t2ikit.files import parse_json
from t2ikit.run.folder import version_number

KINDS = ("training", "checkpoint", "snapshot")
LOOK_SECONDS = 0.004


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    Attributes:
        kind: while it trains, writes a checkpoint, or takes a snapshot.
        step: not before this step, counted over all stages.
        fraction: how far into the step, the writing or the snapshot, in [0, 1).
    """

    kind: str
    step: int
    fraction: float


def moments(seed: int, kills: int, steps: int, kinds: Sequence[str] = KINDS) -> list[Moment]:
    """The moments of ``kills`` kills of a run of ``steps``: one in each equal part of it, of every kind in turn.

    Example:
        >>> [moment.kind for moment in moments(0, 2, 10, ["training"])]
        ['training', 'training']
    """
    order = rng.permutation(seed, "kinds of kills", 0, len(kinds))
    generator = np.random.default_rng([seed, kills, steps])
    result = []
    for index in range(kills):
        first, end = index * (steps - 1) / kills, (index + 1) * (steps - 1) / kills
        step = 1 + int(generator.uniform(first, end))
        result.append(Moment(kinds[int(order[index % len(kinds)])], step, float(generator.uniform())))
    return result


@dataclass
class Watch:
    """What can be seen of a run from outside: the step, whether a checkpoint is written, whether a snapshot is taken.

    Attributes:
        versions: ``run.directory`` / ``run.name``; the newest version is watched.
        stages: names of its stages, in their order; empty for an experiment without stages.
        durations: seconds of steps, of the writing of checkpoints and of snapshots that were seen, by kind.
    """

    versions: Path
    stages: Sequence[str] = ()
    durations: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def run(self) -> Path | None:
        """The newest version."""
        folders = [folder for folder in self.versions.glob("version_*") if version_number(folder) >= 0]
        return max(folders, key=version_number, default=None)

    def folders(self) -> list[Path]:
        """The run folders of the newest version: its own, or one a stage."""
        run = self.run()
        if run is None:
            return []
        return [run / stage for stage in self.stages if (run / stage).is_dir()] if self.stages else [run]

    def step(self) -> int:
        """Steps made so far, over all stages."""
        return sum(_last_step(folder / FOLDER / "rank-0.jsonl") for folder in self.folders())

    def writings(self) -> int:
        """A number that changes when something in the folder of checkpoints changes."""
        total = 0
        for folder in self.folders():
            with suppress(OSError):
                total += (folder / "checkpoints").stat().st_mtime_ns
        return total

    def sampling(self) -> bool:
        """Whether a snapshot has begun that is not finished."""
        return any(path for folder in self.folders() for path in folder.glob("samples/*/step-*.sampling"))


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own, whose output goes to ``log``; all its processes end with the block."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and every process that it has started: ranks and workers."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(process: subprocess.Popen[bytes], watch: Watch, moment: Moment | None) -> int | None:
    """Waits for the end of a run, or for a moment.

    Args:
        process: that makes the run.
        watch: of its folder; learns how long steps, checkpoints and snapshots take.
        moment: at which this function returns; None waits for the end.

    Returns:
        The step at the moment; None if the run came to its end before.
    """
    since = dict.fromkeys(KINDS, time.monotonic())
    step, writings, sampling = watch.step(), watch.writings(), watch.sampling()
    first = step
    while process.poll() is None:
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        before, last_writings, was_sampling = step, writings, sampling
        since_step = now - since["training"]
        step, writings, sampling = watch.step(), watch.writings(), watch.sampling()
        begun = {
            "training": step > before,
            "checkpoint": writings != last_writings,
            "snapshot": sampling and not was_sampling,
        }
        if step == before + 1 and before > first and since["snapshot"] < since["training"]:
            watch.durations["training"].append(now - since["training"])
        if was_sampling and not sampling:
            watch.durations["snapshot"].append(now - since["snapshot"])
        if begun["checkpoint"] and now - since["checkpoint"] < since_step:
            watch.durations["checkpoint"].append(now - since["checkpoint"])
        since.update({kind: now for kind, has in begun.items() if has})
        # A snapshot is taken, and a checkpoint is written, before the line of its step.
        if moment is not None and begun[moment.kind] and step + (moment.kind != "training") >= moment.step:
            time.sleep(moment.fraction * median(watch.durations[moment.kind] or [0.0]))
            return watch.step() if process.poll() is None else None
    return None


def _last_step(path: Path) -> int:
    """The step of the last whole line; 0 for none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 200_000))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return 0
    try:
        return int(parse_json(lines[-1])["step"]) if lines else 0
    except ValueError:
        return 0
