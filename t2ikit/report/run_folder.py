"""What a run folder holds, read for a report; whatever is missing or damaged is said and never ends the reading.

A run that was killed, that still trains, or of which only some files were copied is read as far as it goes.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from t2ikit.callbacks.metrics_csv import parse_metrics
from t2ikit.checkpoints.runs import IMPORTED, is_finished, latest_config, newest_checkpoint
from t2ikit.checkpoints.saving import step_in_name
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import flatten
from t2ikit.config.values import parse_stored
from t2ikit.files import parse_json, read_lines
from t2ikit.metrics.fingerprint import Score, read_scores

MOST_RUNS = 32
MOST_BYTES = 2**28
"""Of a file that is read."""
MOST_BYTES_OF_YAML = 2**22
_NO_CURVES = "there are no curves"
_STEP = "step-"


@dataclass(frozen=True)
class Measured:
    """The scores of a snapshot of a run at one step, or of a later evaluation of it.

    Attributes:
        snapshot: its name.
        how: "" for a snapshot of the run itself, else the name of the evaluation, such as ``step-00001900-guidance-3``.
        step: of the weights.
        scores: by name.
    """

    snapshot: str
    how: str
    step: int
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Grid:
    """A picture of samples: of which snapshot, at which step, and its file."""

    snapshot: str
    step: int
    path: Path


@dataclass(frozen=True)
class Run:
    """A run folder as far as it can be read.

    Attributes:
        name: short, and different from that of every other run of the report.
        folder: where it is.
        config: its last resolved experiment; empty where that is missing.
        configs: every resolved experiment that was kept, by file name: the first, then one for each resume.
        environment: the command and versions of its first start; empty where they are missing.
        series: (step, value) by name, of ``metrics.csv``.
        measured: scores with fingerprints, by snapshot and step.
        grids: pictures of samples, by snapshot and step.
        prompts: of every snapshot.
        classification: what a classifier of SynthReal wrote; empty for any other run.
        finished: whether it has come to its end.
        step: of its newest checkpoint; None for none.
        missing: sentences about what is not there.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    configs: Mapping[str, dict[str, Any]]
    environment: dict[str, Any]
    series: Mapping[str, Sequence[tuple[int, float]]]
    measured: Sequence[Measured]
    grids: Sequence[Grid]
    prompts: Mapping[str, Sequence[str]]
    classification: dict[str, Any]
    finished: bool
    step: int | None
    missing: Sequence[str]

    @property
    def last_step(self) -> int:
        """The last step of which anything is known."""
        logged = [values[-1][0] for values in self.series.values()]
        return max([*logged, self.step or 0, *(entry.step for entry in self.measured)])

    def option(self, key: str) -> Any:
        """A value of its experiment by its dotted key; None where it is not there."""
        return dict(flatten(self.config)).get(key)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs that a command line names: run folders, versions with stages, or folders of versions (the newest).

    Raises:
        ConfigError: a path that holds no run, or more than ``MOST_RUNS`` of them.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in _found(path)))
    if len(folders) > MOST_RUNS:
        raise ConfigError(
            f"report: {len(folders)} runs are too many for one page (at most {MOST_RUNS}): name some of them; the "
            "table of a sweep is printed by t2ikit sweep FILE --list"
        )
    names = short_names([folder.absolute() for folder in folders])
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _found(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ConfigError(f"report: {path} is no folder: name a run folder, such as runs/quickstart/version_0")
    runs = _runs_in(path, depth=3)
    if not runs:
        raise ConfigError(
            f"report: {path} holds no run: a run folder has config.yaml or metrics.csv (runs/EXPERIMENT/version_N)"
        )
    return runs


def _runs_in(folder: Path, depth: int) -> list[Path]:
    if (folder / "config.yaml").is_file() or (folder / "metrics.csv").is_file():
        return [folder]
    if depth == 0:
        return []
    children = sorted(child for child in folder.iterdir() if child.is_dir())
    versions = {_version(child): child for child in children if _version(child) >= 0}
    for number in sorted(versions, reverse=True):  # the newest of which anything was written
        if runs := _runs_in(versions[number], depth - 1):
            return runs
    return [run for child in children if _version(child) < 0 for run in _runs_in(child, depth - 1)]


def _version(folder: Path) -> int:
    word, _, number = folder.name.partition("_")
    return int(number) if word == "version" and number.isdigit() else -1


def short_names(folders: Sequence[Path]) -> list[str]:
    """The end of each path, with as many folders as tell all apart; a last ``version_N`` never stands alone."""
    names = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        count = 2 if _version(folder) >= 0 or _version(folder.parent) >= 0 else 1
        count += _version(folder.parent) >= 0  # of a stage
        while count < len(folder.parts) and any(other.parts[-count:] == folder.parts[-count:] for other in others):
            count += 1
        names.append("/".join(folder.parts[-count:]))
    return names


def read_run(folder: Path, name: str) -> Run:
    """One run folder."""
    missing: list[str] = []
    configs = {path.name: content for path in _configs(folder) if (content := _mapping(folder, path, missing))}
    if not configs:
        missing.append("There is no config.yaml: the options of this run are not known.")
    environment = _mapping(folder, folder / "environment.yaml", missing)
    if not environment:
        missing.append("There is no environment.yaml: command, versions and machine of this run are not known.")
    imported = _mapping(folder, folder / IMPORTED, missing)
    if imported:
        missing.append(f"Its weights were imported from {imported.get('source')}: nothing was trained in this folder.")
    series = _series(folder, missing)
    measured = _measured(folder, missing)
    grids = [
        Grid(path.parent.name, step, path)
        for path in sorted(folder.glob(f"samples/*/{_STEP}*.png"))
        if (step := _step_of(path.stem)) is not None and _is_own(folder, path, missing)
    ]
    classification = _classification(folder, missing)
    if not measured and not classification:
        missing.append("There are no scores: no snapshot has ended, or the experiment names none (callbacks.NAME).")
    if not grids and not classification:
        missing.append("There are no grids of samples.")
    newest = newest_checkpoint(folder)
    step = None if newest is None else step_in_name(newest)
    if newest is None:
        missing.append("There is no complete checkpoint.")
    run = Run(
        name,
        folder,
        configs.get(latest_config(folder).name, {}),
        configs,
        environment,
        series,
        measured,
        grids,
        _prompts(folder, missing),
        classification,
        is_finished(folder),
        step,
        missing,
    )
    return run if run.finished else replace(run, missing=[_unfinished(run), *missing])


def _unfinished(run: Run) -> str:
    saved = "" if run.step is None else f", its newest checkpoint is of step {run.step}"
    return (
        "This run has not come to its end: it was stopped or killed, or it still trains. It is at step "
        f"{run.last_step}{saved}."
    )


def _configs(folder: Path) -> list[Path]:
    resumes = sorted(folder.glob("config.resume-*.yaml"), key=lambda path: (len(path.name), path.name))
    return [folder / "config.yaml", *resumes]


def _is_own(folder: Path, path: Path, missing: list[str], most: int = MOST_BYTES) -> bool:
    """Whether a path is a file in the run folder, of a size that can be read; a sentence where it is anything else.

    The folder may come from a stranger, and the page shows what it holds: no link to a file of the reader's, no pipe.
    """
    if not path.exists() and not path.is_symlink():
        return False
    name = path.relative_to(folder)
    if folder.resolve() not in path.resolve().parents:
        missing.append(f"{name} is left out: it is a link out of the run folder.")
    elif not path.is_file():
        missing.append(f"{name} is left out: it is no file.")
    elif path.stat().st_size > most:
        missing.append(f"{name} is left out: it has more than {most:,} bytes.")
    else:
        return True
    return False


def _mapping(folder: Path, path: Path, missing: list[str]) -> dict[str, Any]:
    """A mapping of a YAML file; an empty one, and a sentence, where it cannot be read."""
    if not _is_own(folder, path, missing, MOST_BYTES_OF_YAML):
        return {}
    try:
        content = parse_stored(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        missing.append(f"{path.name} cannot be read ({' '.join(str(error).split())[:120]}).")
        return {}
    return content if isinstance(content, dict) else {}


def _series(folder: Path, missing: list[str]) -> dict[str, list[tuple[int, float]]]:
    """``metrics.csv`` without a last line that was cut off, or that is damaged, and all after it."""
    path = folder / "metrics.csv"
    if not path.is_file():
        missing.append(f"There is no metrics.csv: {_NO_CURVES} (keep loggers.csv in the experiment).")
    if not _is_own(folder, path, missing):
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        missing.append("The last line of metrics.csv was cut off: it is left out.")
    try:
        return parse_metrics(io.StringIO(whole), path)
    except ValueError as error:
        missing.append(f"{error} Therefore {_NO_CURVES}.")
        return {}


def _measured(folder: Path, missing: list[str]) -> list[Measured]:
    entries = []
    for path in sorted(folder.glob(f"samples/*/scores/{_STEP}*")):
        entries.append(_scores(folder, path, path.parent.parent.name, "", missing))
    for path in sorted(folder.glob("evaluations/*/**/scores")):
        snapshot, *inside = path.relative_to(folder / "evaluations").parent.parts
        entries.append(_scores(folder, path, snapshot, "/".join(inside), missing))
    return [entry for entry in entries if entry is not None and entry.scores]


def _scores(folder: Path, path: Path, snapshot: str, how: str, missing: list[str]) -> Measured | None:
    if not all(_is_own(folder, file, missing) for file in path.rglob("*.json")):
        return None
    try:
        scores = read_scores(path)
    except (OSError, ValueError) as error:
        missing.append(f"Scores of {path.name} of {snapshot} are left out: {error}.")
        return None
    known = _step_of(how or path.name)
    steps = [score.step for score in scores.values() if score.step is not None]
    return Measured(snapshot, how, known if known is not None else max(steps, default=0), scores)


def _step_of(name: str) -> int | None:
    """1900 for ``step-00001900`` and ``step-00001900-guidance-3``."""
    digits = name.removeprefix(_STEP).partition("-")[0] if name.startswith(_STEP) else ""
    return int(digits) if digits.isdigit() else None


def _prompts(folder: Path, missing: list[str]) -> dict[str, list[str]]:
    prompts = {}
    for path in sorted(folder.glob("samples/*/prompts.txt")):
        if _is_own(folder, path, missing):
            try:
                prompts[path.parent.name] = read_lines(path)
            except ValueError as error:
                missing.append(f"The prompts of {path.parent.name} are left out: {error}.")
    return prompts


def _classification(folder: Path, missing: list[str]) -> dict[str, Any]:
    path = folder / "classification.json"
    if not _is_own(folder, path, missing):
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except ValueError as error:
        missing.append(f"classification.json cannot be read ({error}).")
        return {}
