"""Where a run writes: ``runs/<experiment>/version_<N>``, chosen once for all ranks, and which checkpoint it resumes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from t2ikit.checkpoints.runs import (
    IMPORTED,
    find_checkpoint,
    good_checkpoint,
    imported_refusal,
    is_finished,
    latest_config,
    newest_checkpoint,
    run_folder_of,
)
from t2ikit.checkpoints.saving import step_in_name
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.values import parse_stored
from t2ikit.files import write_whole
from t2ikit.launch import first_rank
from t2ikit.lock import is_locked

# Lightning starts the other ranks of a machine by running the same command again: they find the choice here.
FOLDER_VARIABLE = "T2IKIT_RUN_FOLDER"
CHECKPOINT_VARIABLE = "T2IKIT_RUN_CHECKPOINT"
MARKER = ".launch"
WAIT_SECONDS = 120.0
TRIAL = "fast_dev_run"
"""Versions of a trial (``trainer.fast_dev_run``) are called so, and no resume takes them for a run."""


@dataclass(frozen=True)
class RunFolder:
    """A chosen run folder; ``checkpoint`` is where training resumes, ``created`` whether this process made it."""

    path: Path
    checkpoint: Path | None
    created: bool


def choose(directory: str, name: str, resume: str | None, *, fork: bool = False, kind: str = "version") -> RunFolder:
    """The folder of this run, the same for all of its ranks.

    Args:
        directory, name: ``run.directory`` and ``run.name`` of the experiment.
        resume: None for a new version; ``last`` for the newest version that holds a complete checkpoint; ``auto`` for
            the newest of these that has not ended, or a new version; or a checkpoint (or the folder of one), whose run
            folder is continued if it is in one. A damaged checkpoint of a version is warned of, and the one before it
            is taken; one that is named is refused.
        fork: whether the run goes on from that checkpoint in a new version, and leaves the old folder as it is.
        kind: first word of the name of a new folder.

    Raises:
        ConfigError: nothing to resume from, an incomplete checkpoint, or one of a run of another name without ``fork``.
    """
    if FOLDER_VARIABLE in os.environ:  # a rank that Lightning started
        return rank_folder()
    versions = Path(directory) / name
    checkpoint_path = _requested_checkpoint(versions, resume)
    if checkpoint_path is not None and not fork:
        folder = checkpoint_path.parent.parent
        if checkpoint_path.parent.name == "checkpoints" and (folder / "config.yaml").is_file():
            refuse_other_place(folder, versions)
            return RunFolder(folder, checkpoint_path, False)
    if not first_rank():
        return RunFolder(_follow(versions, launch_id(), kind), checkpoint_path, False)
    folder = new_version(versions, kind)
    if launch_id():
        write_whole(folder / MARKER, launch_id())
    return RunFolder(folder, checkpoint_path, True)


def _requested_checkpoint(versions: Path, resume: str | None) -> Path | None:
    if resume is None:
        return None
    if resume == "last":
        return _last(versions)
    if resume != "auto":
        path = find_checkpoint(Path(resume), "--resume")
        if (run_folder_of(path) / IMPORTED).is_file():  # before what it says of its name and place
            raise imported_refusal(path)
        return path if len(path.parts) > 2 else path.absolute()  # from inside of its run folder
    going_on = (folder for folder in _newest_first(versions) if not is_finished(folder))
    return next(filter(None, map(good_checkpoint, going_on)), None)


def refuse_other_place(folder: Path, versions: Path) -> None:
    """Refuses to go on in the folder of a run that has another name or directory than the experiment now says.

    A folder that was moved, or whose experiment says the same of a path from elsewhere, is none.

    Args:
        folder: a version of a run.
        versions: ``run.directory`` / ``run.name`` of the experiment.

    Raises:
        ConfigError: names ``--fork``.
    """
    if folder.resolve().parent == versions.resolve():
        return
    with suppress(OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        run = parse_stored(latest_config(folder).read_text())["run"]
        if Path(run["directory"]) / run["name"] == versions:
            return
    raise ConfigError(
        f"--resume: {folder} is a run of {folder.resolve().parent}, and run.directory and run.name say {versions} now. "
        f"Add --fork to go on in a new version in {versions}, or set them as they were to go on in the old folder"
    )


def unfinished(versions: Path) -> Path | None:
    """The newest version that holds a complete checkpoint and has not come to its end."""
    for folder in _newest_first(versions):
        if newest_checkpoint(folder) is not None and not is_finished(folder):
            return folder
    return None


def print_unfinished(folder: Path | None, command: str) -> None:
    """Says, before another run begins, that one of this experiment has not ended, and how to go on with it."""
    if folder is None or not first_rank() or any(map(is_locked, (folder, *folder.glob("*/")))):
        return
    newest = newest_checkpoint(folder)
    step = "" if newest is None else f" (step {step_in_name(newest)})"
    print(f"{folder} has not ended{step}; this is a new run. To go on with that one: {command} --resume auto")


def rank_folder() -> RunFolder:
    """What the first rank chose, for a rank that Lightning started."""
    checkpoint = os.environ.get(CHECKPOINT_VARIABLE)
    return RunFolder(Path(os.environ[FOLDER_VARIABLE]), Path(checkpoint) if checkpoint else None, False)


def launch_id(environment: Mapping[str, str] = os.environ) -> str:
    """What ranks started from outside (torchrun, srun) have in common; empty for a lone process.

    A job that SLURM has requeued keeps its numbers but for that of the restart, and so do ranks that torchrun restarts.
    """
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    variables = (*slurm, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return ":".join(environment[variable] for variable in variables if variable in environment)


def version_number(folder: Path, kind: str = "version") -> int:
    """3 for ``version_3``; -1 for any other name."""
    match = re.fullmatch(rf"{kind}_(\d+)", folder.name)
    return int(match[1]) if match else -1


def write_config(folder: Path, text: str, resumed: bool) -> Path:
    """Keeps the resolved experiment as ``config.yaml``, or ``config.resume-N.yaml`` beside it; whole or not at all."""
    resumes, path = 0, folder / "config.yaml"
    while resumed and path.exists():
        resumes += 1
        path = folder / f"config.resume-{resumes}.yaml"
    write_whole(path, text)
    return path


@contextmanager
def tell_ranks(folder: RunFolder) -> Iterator[None]:
    """Lets the ranks that Lightning starts by running this command again find the choice of this process."""
    os.environ[FOLDER_VARIABLE] = str(folder.path.resolve())
    if folder.checkpoint is not None:
        os.environ[CHECKPOINT_VARIABLE] = str(folder.checkpoint.resolve())
    try:
        yield
    finally:
        os.environ.pop(FOLDER_VARIABLE, None)
        os.environ.pop(CHECKPOINT_VARIABLE, None)


def _newest_first(versions: Path) -> list[Path]:
    folders = (folder for folder in versions.glob("version_*") if version_number(folder) >= 0)
    return sorted(folders, key=version_number, reverse=True)


def _last(versions: Path) -> Path:
    for folder in _newest_first(versions):
        checkpoint = good_checkpoint(folder)
        if checkpoint is not None:
            return checkpoint
    known = [folder.name for folder in versions.parent.glob("*") if folder.is_dir()] if versions.parent.is_dir() else []
    other = nearest(versions.name, known) if versions.name not in known else ""
    raise ConfigError(f"--resume last: no version in {versions} holds a complete checkpoint{other}")


def new_version(versions: Path, kind: str = "version") -> Path:
    """Makes the folder of the next version; of another kind one that no ``--resume last`` takes."""
    versions.mkdir(parents=True, exist_ok=True)
    version = max((version_number(folder, kind) for folder in versions.iterdir()), default=-1) + 1
    while True:
        folder = versions / f"{kind}_{version}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run has just made this version
            version += 1
            continue
        return folder


def _follow(versions: Path, launch: str, kind: str) -> Path:
    """Waits for the version that rank 0 of this launch makes."""
    since = time.time() - WAIT_SECONDS
    while time.time() < since + 2 * WAIT_SECONDS:
        for folder in sorted(versions.glob(f"{kind}_*"), key=partial(version_number, kind=kind), reverse=True):
            marker = folder / MARKER
            if marker.is_file() and marker.stat().st_mtime >= since and marker.read_text() == launch:
                return folder
        time.sleep(0.2)
    raise ConfigError(
        f"this rank found no run folder of rank 0 in {versions}: is run.directory shared by all machines?"
    )


def contents(folder: Path) -> list[str]:
    """The files of a run folder to look at first: experiment, metrics, the newest checkpoint, the newest grids."""
    paths = [folder / name for name in ("config.yaml", "metrics.csv")]
    paths.append(newest_checkpoint(folder) or folder / "checkpoints")
    for samples in sorted((folder / "samples").glob("*")):
        paths += sorted(samples.glob("step-*.png"))[-1:]
    return [str(path) for path in paths if path.exists()]
