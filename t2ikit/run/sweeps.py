"""Trains the cells of a sweep that are missing: any number of processes and machines on one folder, no cell twice.

    <run.directory>/<run.name>/<cell>/.lock           held by the process that trains the cell
    <run.directory>/<run.name>/<cell>/experiment.json what is trained there
    <run.directory>/<run.name>/<cell>/version_0/      its run, a run folder like any other
    FILE.scores/<cell>.json                           its scores; where this file is, the cell is done

A cell that was killed goes on from its last checkpoint, whoever trains it next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t2ikit.checkpoints.runs import is_finished, newest_checkpoint
from t2ikit.checkpoints.saving import step_in_name
from t2ikit.config.errors import ConfigError
from t2ikit.config.origins import Origins
from t2ikit.config.sweep import Cell, Sweep
from t2ikit.config.values import to_yaml
from t2ikit.files import parse_json, write_whole
from t2ikit.launch import first_rank
from t2ikit.lock import Locked, is_locked, lock, unlock
from t2ikit.prepare.steps import versions
from t2ikit.run.experiment import Plan, check
from t2ikit.run.folder import FOLDER_VARIABLE, choose, version_number
from t2ikit.run.sweep_scores import CellScores, read_cell, scores_of_run
from t2ikit.run.train import train
from t2ikit.run.workers import children, environment_of, wait_for_some

ELSEWHERE = 3
"""Exit status of a cell that another process trains."""

_EXPERIMENT = "experiment.json"
_PAUSE = 0.2  # seconds between two looks at a lock
_TRIES = 5
_OUTPUT = "output.log"


@dataclass(frozen=True)
class Place:
    """Where a cell is trained, and what.

    Attributes:
        folder: of its versions.
        scores: its file of scores.
        digest: of what is trained.
        devices: how many the experiment wants.
    """

    folder: Path
    scores: Path
    digest: str
    devices: int

    def finished(self) -> CellScores | None:
        """The scores of the cell; None where it is not done.

        Raises:
            ConfigError: they are those of another experiment than the file now describes.
        """
        known = read_cell(self.scores)
        if known is not None:
            self._compare(known.experiment, self.scores)
        return known

    def state(self) -> str:
        """In words: done, running, at which step it was left, or missing."""
        if self.finished() is not None:
            return "done"
        if is_locked(self.folder):
            return "running"
        steps = [step_in_name(path) for version in self.versions() if (path := newest_checkpoint(version))]
        return f"left at step {max(steps)}" if steps else "missing"

    def versions(self) -> list[Path]:
        """Run folders of the cell, the newest first."""
        folders = [folder for folder in self.folder.glob("version_*") if version_number(folder) >= 0]
        return sorted(folders, key=version_number, reverse=True)

    def claim(self) -> None:
        """Writes down what is trained here.

        Raises:
            ConfigError: a part of something else has been trained here.
        """
        path = self.folder / _EXPERIMENT
        if path.is_file() and any(newest_checkpoint(version) or is_finished(version) for version in self.versions()):
            self._compare(parse_json(path.read_text(encoding="utf-8"))["experiment"], self.folder)
        else:
            write_whole(path, json.dumps({"experiment": self.digest}) + "\n")

    def _compare(self, before: str, path: Path) -> None:
        if before != self.digest:
            raise ConfigError(
                f"{path} is of another experiment than the file (or an override, or other images) now describes for "
                "this cell: set it as it was, give the cell another name, or remove this to train it again"
            )


def place_of(sweep: Sweep, cell: Cell, scores: Path | None = None) -> Place:
    """Where a cell is trained; ``scores``: folder of its scores, by default beside the experiment."""
    config = sweep.compose(cell)
    folder = Path(config["run"]["directory"]) / cell.name
    scores = scores or sweep.path.with_suffix(".scores")
    devices = _devices((config.get("trainer") or {}).get("devices"))
    return Place(folder, scores / f"{cell.name}.json", sweep.digest(config), devices)


def run_cell(sweep: Sweep, name: str, scores: Path | None, origins: Origins, command: str) -> int:
    """Trains one cell, or goes on with it, and writes its scores.

    Args:
        sweep: whose cell it is.
        name: of the cell.
        scores: folder of the scores; None is that beside the experiment.
        origins: which modules the experiment may name.
        command: as the user would type it again.

    Returns:
        The exit status: that of the training, or ``ELSEWHERE``.

    Raises:
        ConfigError: the cell cannot be trained, and why.
    """
    cell = sweep.cell(name)
    plan = check(sweep.compose(cell), origins)
    directory, text = plan.config["run"]["directory"], to_yaml(plan.config)
    place = place_of(sweep, cell, scores)
    if place.finished() is not None:
        return 0
    _check_loggers(plan)
    if FOLDER_VARIABLE in os.environ or not first_rank():  # the first rank does all but training
        return train(plan, text, choose(directory, cell.name, "auto"), (), command, command)
    place.folder.mkdir(parents=True, exist_ok=True)
    if not _locked(place.folder):
        print(f"{name}: another process trains this cell")
        return ELSEWHERE
    try:
        if place.finished() is not None:
            return 0
        place.claim()
        run = next(filter(is_finished, place.versions()), None)
        seconds: float | None = None
        if run is None:
            chosen, before = choose(directory, cell.name, "auto"), _cpu_seconds()
            status = train(plan, text, chosen, (), command, command)
            if status != 0:
                return status
            run = chosen.path
            seconds = round(_cpu_seconds() - before, 1) if chosen.checkpoint is None else None
        scores_of_run(run, place.digest, seconds, versions("torch")).write(place.scores)
        return 0
    finally:
        unlock(place.folder)


def run_missing(sweep: Sweep, scores: Path | None, origins: Origins, jobs: int, words: Sequence[str]) -> int:
    """Trains the missing cells, ``jobs`` at a time, each in a process of its own.

    Args:
        sweep: the cells.
        scores: folder of the scores; None is that beside the experiment.
        origins: which modules the experiment may name.
        jobs: processes at once.
        words: of a command line, to which ``--cell NAME`` is added.

    Returns:
        0 if all cells are done or trained by another process, else 1.

    Raises:
        ConfigError: a cell that cannot be trained, before any of them begins.
    """
    places = {name: place_of(sweep, cell, scores) for name, cell in sweep.cells.items()}
    missing = [name for name, place in places.items() if place.finished() is None]
    for name in missing:
        _check_loggers(check(sweep.compose(sweep.cells[name]), origins))
    failed: list[str] = []
    numbers: dict[str, int] = {}  # of the running cells, below ``jobs``
    with children() as running:
        while missing or running:
            while missing and len(running) < jobs:
                name = missing.pop(0)
                if places[name].finished() is None and not is_locked(places[name].folder):
                    numbers[name] = min(set(range(jobs)) - {numbers[other] for other in running})
                    running[name] = _start(name, places[name], words, numbers[name], jobs)
            for name, process in wait_for_some(running).items():
                if not _ended(name, process, places[name], shown=jobs == 1):
                    failed.append(name)
    return 1 if failed else 0


def finished_cells(sweep: Sweep, scores: Path | None = None) -> Mapping[str, CellScores]:
    """The scores of the cells that are done, by name."""
    found = {name: place_of(sweep, cell, scores).finished() for name, cell in sweep.cells.items()}
    return {name: result for name, result in found.items() if result is not None}


def _check_loggers(plan: Plan) -> None:
    """Refuses an experiment that writes no ``metrics.csv``, before the work whose scores would be lost.

    Raises:
        ConfigError: names ``loggers.csv``.
    """
    if (plan.config.get("loggers") or {}).get("csv") is None:
        raise ConfigError("a sweep reads scores from metrics.csv: keep loggers.csv")


def _locked(folder: Path) -> bool:
    """Locks a cell, unless another process trains it; one that only looks at the lock holds it for a moment."""
    for _ in range(_TRIES):
        try:
            lock(folder)
            return True
        except Locked:
            time.sleep(_PAUSE)
    return False


def _devices(wanted: object) -> int:
    """How many devices ``trainer.devices`` asks for at least; those that it names by number are not to be renamed."""
    if isinstance(wanted, list) or "," in str(wanted):
        return sys.maxsize
    return max(int(wanted), 1) if isinstance(wanted, (int, str)) and str(wanted).lstrip("-").isdecimal() else 1


def _start(name: str, place: Place, words: Sequence[str], number: int, jobs: int) -> subprocess.Popen[bytes]:
    """Trains a cell in a process of its own; several share the GPUs, and the cores unless OMP_NUM_THREADS is set."""
    command = [sys.executable, "-m", "t2ikit", *words, "--cell", name]
    if jobs == 1:
        print(f"{name}: {place.folder}", flush=True)
        return subprocess.Popen(command)
    environment = environment_of(number, jobs, place.devices)
    place.folder.mkdir(parents=True, exist_ok=True)
    print(f"{name}: output in {place.folder / _OUTPUT}", flush=True)
    with (place.folder / _OUTPUT).open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def _ended(name: str, process: subprocess.Popen[bytes], place: Place, shown: bool) -> bool:
    """Says how a cell ended; whether it is done, or left to another process."""
    if process.returncode == 0:
        print(f"{name}: done, {place.scores}", flush=True)
    elif process.returncode != ELSEWHERE:
        hint = "" if shown else f"; see {place.folder / _OUTPUT}"
        print(f"{name}: ended with status {process.returncode}{hint}", file=sys.stderr, flush=True)
    return process.returncode in (0, ELSEWHERE)


def _cpu_seconds() -> float:
    """Of this process and of its loaders that have ended."""
    return sum(os.times()[:4])
