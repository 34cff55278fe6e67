"""Where a run writes: ``runs/<experiment>/version_<N>``, chosen once for all ranks, and which checkpoint it resumes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from t2ikit.checkpoints.runs import find_checkpoint, newest_checkpoint
from t2ikit.config.compose import ConfigError, nearest
from t2ikit.files import write_whole
from t2ikit.launch import first_rank

# Lightning starts the other ranks of a machine by running the same command again: they find the choice here.
FOLDER_VARIABLE = "T2IKIT_RUN_FOLDER"
CHECKPOINT_VARIABLE = "T2IKIT_RUN_CHECKPOINT"
MARKER = ".launch"
WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class RunFolder:
    """A chosen run folder; ``checkpoint`` is where training resumes, ``created`` whether this process made it."""

    path: Path
    checkpoint: Path | None
    created: bool


def choose(directory: str, name: str, resume: str | None) -> RunFolder:
    """The folder of this run, the same for all of its ranks.

    Args:
        directory, name: ``run.directory`` and ``run.name`` of the experiment.
        resume: None for a new version; ``last`` for the newest version that holds a complete checkpoint; or a
            checkpoint (or the folder of one), whose run folder is continued if it is in one.

    Raises:
        ConfigError: nothing to resume from, or an incomplete checkpoint.
    """
    if FOLDER_VARIABLE in os.environ:  # a rank that Lightning started
        return rank_folder()
    versions = Path(directory) / name
    checkpoint_path = None
    if resume is not None:
        checkpoint_path = _last(versions) if resume == "last" else find_checkpoint(Path(resume), "--resume")
        folder = checkpoint_path.parent.parent
        if checkpoint_path.parent.name == "checkpoints" and (folder / "config.yaml").is_file():
            return RunFolder(folder, checkpoint_path, False)
    if not first_rank():
        return RunFolder(_follow(versions, launch_id()), checkpoint_path, False)
    folder = new_version(versions)
    if launch_id():
        write_whole(folder / MARKER, launch_id())
    return RunFolder(folder, checkpoint_path, True)


def rank_folder() -> RunFolder:
    """What the first rank chose, for a rank that Lightning started."""
    checkpoint = os.environ.get(CHECKPOINT_VARIABLE)
    return RunFolder(Path(os.environ[FOLDER_VARIABLE]), Path(checkpoint) if checkpoint else None, False)


def launch_id(environment: Mapping[str, str] = os.environ) -> str:
    """What ranks started from outside (torchrun, srun) have in common; empty for a lone process."""
    variables = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return ":".join(environment[variable] for variable in variables if variable in environment)


def version_number(folder: Path) -> int:
    """3 for ``version_3``; -1 for any other name."""
    match = re.fullmatch(r"version_(\d+)", folder.name)
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


def _last(versions: Path) -> Path:
    folders = sorted(
        (folder for folder in versions.glob("version_*") if version_number(folder) >= 0), key=version_number
    )
    for folder in reversed(folders):
        checkpoint = newest_checkpoint(folder)
        if checkpoint is not None:
            return checkpoint
    known = [folder.name for folder in versions.parent.glob("*") if folder.is_dir()] if versions.parent.is_dir() else []
    other = nearest(versions.name, known) if versions.name not in known else ""
    raise ConfigError(f"--resume last: no version in {versions} holds a complete checkpoint{other}")


def new_version(versions: Path) -> Path:
    """Makes the folder of the next version."""
    versions.mkdir(parents=True, exist_ok=True)
    version = max((version_number(folder) for folder in versions.iterdir()), default=-1) + 1
    while True:
        folder = versions / f"version_{version}"
        try:
            folder.mkdir()
        except FileExistsError:  # another run has just made this version
            version += 1
            continue
        return folder


def _follow(versions: Path, launch: str) -> Path:
    """Waits for the version that rank 0 of this launch makes."""
    since = time.time() - WAIT_SECONDS
    while time.time() < since + 2 * WAIT_SECONDS:
        for folder in sorted(versions.glob("version_*"), key=version_number, reverse=True):
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
