"""The checkpoints of a run folder: which are complete, which is the newest or the last, which experiment made them."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from t2ikit.checkpoints.exported import INDEX, exported_weights
from t2ikit.checkpoints.foreign import TRAINING, reason_of, refuse_foreign
from t2ikit.checkpoints.saving import fault_of, is_complete, step_in_name
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.files import SUFFIXES
from t2ikit.config.values import parse_stored
from t2ikit.files import write_whole
from t2ikit.launch import first_rank

FINISHED = "finished"
IMPORTED = "imported.yaml"
"""File of a run folder whose weights were trained by another program: where they come from."""
PLUGINS = "plugins"
"""Folder of a run for the sources of the user's own classes; of a resume with others: ``plugins.resume-N``."""

_MOST_NAMED = 5


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in ``<folder>/checkpoints``; without a step in the name, by age.

    Its bytes are not compared with their hash: :func:`good_checkpoint` does.
    """
    return next(filter(is_complete, _newest_first(folder)), None)


def good_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of ``<folder>/checkpoints`` that is as it was written; warns of worse ones after it."""
    bad: list[str] = []
    for path in _newest_first(folder):
        fault = fault_of(path)
        if fault is None:
            if bad and first_rank():
                warnings.warn(f"{'; '.join(bad)}. The one before is taken: {path}", stacklevel=2)
            return path
        bad.append(f"{path}: {fault}")
    if bad and first_rank():
        warnings.warn(f"{'; '.join(bad)}. There is no good one in this folder", stacklevel=2)
    return None


def _newest_first(folder: Path) -> list[Path]:
    dated = []
    for path in (folder / "checkpoints").glob("*.ckpt"):
        with suppress(OSError):  # a link to nothing, or a file that the run has just removed
            dated.append((step_in_name(path), path.stat().st_mtime, path))
    return [path for *_, path in sorted(dated, reverse=True)]


def find_checkpoint(path: Path, option: str) -> Path:
    """A good checkpoint: the one given, the newest of the run folder (or its ``checkpoints``) given, or an export.

    Args:
        path: of a checkpoint or of a folder.
        option: what the user gave it by, for the message.

    Raises:
        ConfigError: there is none, or it is cut off, damaged or of another step than its name says.
    """
    path = path.expanduser()
    exported = exported_weights(path)
    if exported is not None:  # compared with its hash when it is read
        return exported
    if path.is_dir() and path.suffix != ".ckpt":
        newest = good_checkpoint(_run_of(path))
        if newest is None:
            inside = sorted(file.parent.parent for file in path.glob("*/checkpoints/*.ckpt") if is_complete(file))
            hint = f"; name one of the runs in it, such as {inside[-1]}" if inside else ""
            raise ConfigError(f"{option} {path}: no complete checkpoint in {path}{hint}")
        return newest
    if not path.exists():
        others = [str(file) for file in path.parent.glob("*.ckpt")] if path.parent.is_dir() else []
        raise ConfigError(f"{option} {path}: no such file{nearest(str(path), others)}")
    fault = fault_of(path)
    if fault is not None:
        good = next((other for other in _newest_first(_run_of(path.parent)) if fault_of(other) is None), None)
        raise ConfigError(f"{option} {path}: {fault}{'' if good is None else f'. The newest good one is {good}'}")
    return path


def find_trained(path: Path, option: str) -> Path:
    """As :func:`find_checkpoint`, and of the folder of an experiment's runs that of its newest version.

    Raises:
        ConfigError: as there; or the newest version has several stages, which are named.
    """
    path = path.expanduser()
    if path.suffix in SUFFIXES:
        raise ConfigError(
            f"{option} {path}: an experiment says how to train a model; give a trained one, such as runs/{path.stem}, "
            f"the folder of its runs, or train it first: t2ikit run {path}"
        )
    versions = [folder for folder in path.glob("version_*") if folder.name.rpartition("_")[2].isdecimal()]
    for version in sorted(versions, key=lambda folder: int(folder.name.rpartition("_")[2]), reverse=True):
        if newest_checkpoint(version) is not None:
            return find_checkpoint(version, option)
        files = filter(is_complete, version.glob("*/checkpoints/*.ckpt"))
        stages = sorted({str(file.parent.parent) for file in files})
        if len(stages) > 1:
            raise ConfigError(f"{option} {path}: {version} has several stages: name one of {', '.join(stages)}")
        if stages:
            return find_checkpoint(Path(stages[0]), option)
    _refuse_another_folder(path, option)
    return find_checkpoint(path, option)


def _refuse_another_folder(path: Path, option: str) -> None:
    """Refuses the name of an experiment in place of the folder of its runs, and a folder of such folders.

    Raises:
        ConfigError: names the folders that can be given.
    """
    if not path.exists() and (runs := Path("runs") / path).is_dir():
        raise ConfigError(f"{option} {path}: no such file; the runs of this name are in {runs}")
    if path.is_dir() and newest_checkpoint(path) is None:
        files = filter(is_complete, path.glob("*/version_*/checkpoints/*.ckpt"))
        inside = sorted({str(file.parents[2]) for file in files})
        if inside:
            more = f", ... ({len(inside)} in all)" if len(inside) > _MOST_NAMED else ""
            raise ConfigError(f"{option} {path}: name one of the runs in it: {', '.join(inside[:_MOST_NAMED])}{more}")


def _run_of(folder: Path) -> Path:
    """The run folder that a folder is, or whose ``checkpoints`` it is."""
    named = folder if folder.name else folder.absolute()
    return named.parent if named.name == "checkpoints" else folder


def finish(folder: Path, config: dict[str, Any]) -> None:
    """Records that a run has come to its end, with its last checkpoint and its experiment; an earlier record stays."""
    if not is_finished(folder):
        newest = newest_checkpoint(folder)
        content = {"checkpoint": None if newest is None else newest.name, "experiment": config}
        write_whole(folder / FINISHED, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))


def is_finished(folder: Path) -> bool:
    """Whether a run or a stage has come to its end, and has not been trained again from an earlier checkpoint since."""
    record = finish_record(folder)
    newest = newest_checkpoint(folder)
    return record is not None and record["checkpoint"] == (None if newest is None else newest.name)


def finish_record(folder: Path) -> dict[str, Any] | None:
    """What :func:`finish` wrote; None if there is nothing, or something else."""
    try:
        path = folder / FINISHED
        record = parse_stored(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return record if isinstance(record, dict) and {"checkpoint", "experiment"} <= record.keys() else None


def latest_config(folder: Path) -> Path:
    """The last resolved experiment that was kept in a run folder."""
    resume = 1
    while (folder / f"config.resume-{resume}.yaml").is_file():
        resume += 1
    return folder / (f"config.resume-{resume - 1}.yaml" if resume > 1 else "config.yaml")


def run_folder_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of, or that was exported; that of the file where it lies in none."""
    if checkpoint.suffix == ".safetensors":
        return checkpoint.parent.parent if (checkpoint.parent.parent / INDEX).is_file() else checkpoint.parent
    checkpoint = checkpoint if len(checkpoint.parts) > 2 else checkpoint.absolute()
    return next((folder.parent for folder in checkpoint.parents if folder.name == "checkpoints"), checkpoint.parent)


def kept_plugins(folder: Path) -> Path | None:
    """The last sources of plug-ins that a run folder keeps; None if it keeps none."""
    resumes = [path for path in folder.glob(f"{PLUGINS}.resume-[0-9]*") if path.is_dir()]
    if resumes:
        return max(resumes, key=lambda path: int(path.name.rpartition("-")[2]))
    return folder / PLUGINS if (folder / PLUGINS).is_dir() else None


def imported_refusal(checkpoint: Path) -> ConfigError:
    """What is said of a resume from imported weights."""
    return ConfigError(
        f"--resume {checkpoint}: these weights were imported (`t2ikit import`): they lack the state of the optimizer "
        f"and the place in the data, with which a run goes on. Begin a new one from them: "
        f"--model.start.checkpoint {checkpoint}"
    )


def step_of(checkpoint: Path, explained: bool = True) -> int:
    """Optimizer steps that a checkpoint of a run has made.

    Args:
        checkpoint: complete.
        explained: whether it must hold its experiment, as those of every module of the kit do.

    Raises:
        ConfigError: it is no checkpoint of a run.
    """
    import torch  # here: looking for checkpoints needs none

    if checkpoint.suffix == ".safetensors":
        raise ConfigError(
            f"--resume {checkpoint}: an export holds weights alone, with which no run can go on: begin a new one from "
            f"them, --model.start.checkpoint {checkpoint}"
        )
    try:
        content = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        raise ConfigError(f"--resume {checkpoint}: not a checkpoint of a run ({reason_of(error)})") from error
    if isinstance(content, dict) and "imported_from" in content:
        raise imported_refusal(checkpoint)
    needs = (*TRAINING, "experiment") if explained else TRAINING
    return int(refuse_foreign(content, checkpoint, "--resume", needs)["global_step"])
