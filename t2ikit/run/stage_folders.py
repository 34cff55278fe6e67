"""The stages of a version on disk: which version is trained, and whether its stages are still what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from t2ikit.checkpoints.files import read_weights
from t2ikit.checkpoints.runs import (
    find_checkpoint,
    finish_record,
    good_checkpoint,
    is_finished,
    newest_checkpoint,
)
from t2ikit.checkpoints.saving import step_in_name
from t2ikit.config.errors import ConfigError
from t2ikit.lock import unlock
from t2ikit.pretrained import sha256_of
from t2ikit.run.changes import Change, differing
from t2ikit.run.folder import RunFolder, refuse_other_place, version_number
from t2ikit.run.stage_tree import REFERENCE, Source, Tree

MAX_STEPS = "trainer.max_steps"


@dataclass(frozen=True)
class Version:
    """A version of an experiment in stages: its folder, and the checkpoint in it that --resume names, if it does."""

    path: Path
    checkpoint: Path | None

    def begins(self, tree: Tree, name: str) -> int | None:
        """The step from which a stage is trained; None if it is finished and stays so."""
        folder = self.path / name
        if self.checkpoint is not None and self.checkpoint.parent.parent.resolve() == folder.resolve():
            return step_in_name(self.checkpoint)
        if is_finished(folder) and (_allowed(tree, name) or not _goes_on(differences(tree, self, name))):
            return None
        newest = newest_checkpoint(folder)
        return 0 if newest is None else step_in_name(newest)

    def stays(self, tree: Tree, name: str) -> bool:
        """Whether a stage is finished and not trained any more."""
        return self.begins(tree, name) is None


def requested_version(tree: Tree, versions: Path, names: Sequence[str]) -> Version | None:
    """The existing version that the command line means; None for a new one.

    Args:
        tree: of the experiment.
        versions: where its versions are.
        names: of the stages that are trained.

    Raises:
        ConfigError: there is no such version, it is one of a run of another name, or ``--resume`` and ``--stage`` mean
            different stages.
    """
    request = tree.request
    existing = _existing(tree, versions)
    if request.resume == "auto":
        unfinished = unfinished_version(tree, versions, names)
        if unfinished is not None:
            return Version(unfinished, None)
    if request.resume in (None, "auto"):
        return _newest_without(tree, request.only, existing) if request.only and existing else None
    if request.resume == "last":
        if not existing:
            raise ConfigError(f"--resume last: no version in {versions} holds a stage of this experiment")
        return Version(existing[-1], None)
    path = Path(request.resume)
    if any((path / name).is_dir() for name in tree.stages):
        refuse_other_place(path, versions)
        return Version(path, None)
    checkpoint = find_checkpoint(path, "--resume")
    stage = checkpoint.parent.parent
    if stage.name not in tree.stages or checkpoint.parent.name != "checkpoints":
        raise ConfigError(
            f"--resume {path}: neither a version of this experiment nor a checkpoint of one of its stages"
        )
    if request.only not in (None, stage.name):
        raise ConfigError(
            f"--resume {path} is a checkpoint of stage {stage.name}, and --stage names {request.only}: give --stage "
            f"{stage.name}, or --resume {stage.parent} to go on with stage {request.only} of this version"
        )
    refuse_other_place(stage.parent, versions)
    return Version(stage.parent, checkpoint)


def _existing(tree: Tree, versions: Path) -> list[Path]:
    """The versions that hold a stage, oldest first."""
    folders = (folder for folder in versions.glob("version_*") if any((folder / name).is_dir() for name in tree.stages))
    return sorted(folders, key=version_number)


def unfinished_version(tree: Tree, versions: Path, names: Sequence[str]) -> Path | None:
    """The newest version in which a stage has begun and one of ``names`` has not come to its end."""
    for version in reversed(_existing(tree, versions)):
        if not all(is_finished(version / name) for name in names):
            return version
    return None


def _newest_without(tree: Tree, stage: str, existing: Sequence[Path]) -> Version | None:
    """The newest version, in which ``stage`` is trained for the first time; None for a new version.

    Raises:
        ConfigError: it has been trained there already, and a new version would lack the stage that it starts from.
    """
    version = existing[-1]
    if not (version / stage).exists():
        return Version(version, None)
    source = tree.source(stage)
    if source is None:
        return None
    state = "finished" if is_finished(version / stage) else "begun"
    raise ConfigError(
        f"--stage {stage}: it is {state} in {version}, and a new version would lack {source}, from which it starts. "
        f"To go on there add --resume last; to train it again from the same start, rename {version / stage}; to train "
        "everything again leave out --stage"
    )


# ------------------------------------------------------------------ what has changed


def differences(tree: Tree, version: Version, name: str) -> list[Change]:
    """What differs between a finished stage and what the experiment says of it now, and would have trained another."""
    source = tree.source(name)
    plan = tree.plan(name, None if source is None else _source_checkpoint(version.path, source))
    record = finish_record(version.path / name)
    assert record is not None  # it is finished
    pair = record["experiment"], plan.config
    before, now = pair if source is None else (_without_folders(config) for config in pair)
    return [change for change in differing(before, replace(plan, config=now), ended=True) if change.decides]


def refuse_changed(tree: Tree, version: Version, names: Sequence[str]) -> None:
    """Refuses to go on with a version whose stages are not those of the experiment any more.

    Args:
        tree: of the experiment.
        version: where it is trained.
        names: of the stages that are trained.

    Raises:
        ConfigError: names the stage, what differs, and what to do.
    """
    for folder in sorted(version.path.iterdir()):
        begun = folder.name.isidentifier() and (folder / "checkpoints").is_dir()
        if begun and folder.name not in tree.stages and not _allowed(tree, folder.name):
            raise _refusal(
                folder.name, version, f"has a stage {folder.name}, which {tree.request.path} lacks (renamed?)"
            )
    for name in tree.with_sources(names):
        if _allowed(tree, name):
            continue
        folder = version.path / name
        if newest_checkpoint(folder) is not None:
            _refuse_another_source(tree, version, name, names)
        if is_finished(folder):
            changes = differences(tree, version, name)
            if changes and not (_goes_on(changes) and name in names):
                listed = "; ".join(f"{c.key} was {c.before!r}, now {c.now!r}" for c in changes)
                raise _refusal(name, version, f"has finished stage {name} with another experiment: {listed}")
        elif name in names and not folder.exists():
            source = tree.source(name)
            if source is not None and (source.stage not in names or version.stays(tree, source.stage)):
                tree.start(name, version.path)  # refuses, if the checkpoint is missing


def _refuse_another_source(tree: Tree, version: Version, name: str, names: Sequence[str]) -> None:
    """Refuses a begun stage if the weights that it started from are made again, or have been."""
    source = tree.source(name)
    if source is None:
        return
    step = version.begins(tree, source.stage) if source.stage in names else None
    if step is not None and (source.step is None or step < source.step):
        raise _refusal(
            name,
            version,
            f"has begun stage {name} from {source}, which this command would train again from step {step}",
        )
    begun, now = newest_checkpoint(version.path / name), _source_checkpoint(version.path, source)
    if begun is None or begun.is_dir() or now is None or not now.is_file():
        return
    start = read_weights(begun, mmap=True).get("start")
    if start is not None and start["sha256"] != sha256_of(now):
        raise _refusal(name, version, f"has begun stage {name} from {start['checkpoint']}, which {now} is not any more")


def _refusal(name: str, version: Version, reason: str) -> ConfigError:
    return ConfigError(
        f"{version.path} {reason}. Make the experiment as it was; or keep the stage as it is with --allow "
        f"{REFERENCE}{name} (beside --resume); or train all stages in a new version, without --resume and --stage"
    )


def _allowed(tree: Tree, name: str) -> bool:
    return f"{REFERENCE}{name}" in tree.request.allow


def _goes_on(changes: Sequence[Change]) -> bool:
    """Whether all that has changed is that a finished stage is to make more steps."""
    if [change.key for change in changes] != [MAX_STEPS]:
        return False
    before, now = changes[0].before, changes[0].now
    return isinstance(before, int) and isinstance(now, int) and 0 < before < now


def _source_checkpoint(version: Path, source: Source) -> Path | None:
    """Where the weights of a source lie, if they do."""
    if source.step is None:
        return newest_checkpoint(version / source.stage)
    return version / source.stage / "checkpoints" / f"step-{source.step:08d}.ckpt"


def _without_folders(config: dict[str, Any]) -> dict[str, Any]:
    """An experiment whose start from another stage says only which one and what step: a version may be moved."""
    model = config["model"]
    start = model["init_args"].get("start")
    if not isinstance(start, dict) or not isinstance(start.get("checkpoint"), str):
        return config
    start = {**start, "checkpoint": "/".join(Path(start["checkpoint"]).parts[-3:])}
    return {**config, "model": {**model, "init_args": {**model["init_args"], "start": start}}}


# ------------------------------------------------------------------ the folder of a stage


def folder_of(path: Path, checkpoint: Path | None) -> RunFolder:
    """Where a stage is trained: on from its newest checkpoint, or anew; what is left without one is kept aside.

    Args:
        path: its folder.
        checkpoint: of ``--resume``, which may be one of another stage.
    """
    if checkpoint is not None and checkpoint.parent.parent.resolve() == path.resolve():
        return RunFolder(path, checkpoint, False)
    newest = good_checkpoint(path)
    if newest is not None:
        return RunFolder(path, newest, False)
    if path.exists():
        count = sum(1 for _ in path.parent.glob(f"{path.name}.left-*"))
        path.rename(path.with_name(f"{path.name}.left-{count + 1}"))
        unlock(path)
    path.mkdir(parents=True)
    return RunFolder(path, None, True)
