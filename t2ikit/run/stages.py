"""An experiment in stages: overlays that are trained one after the other, each in a folder of its own.

    runs/<experiment>/<version>/<stage>/        a run folder like any other
    runs/<experiment>/<version>/<stage>/finished  written when the stage has come to its end

A stage starts from the end of the one before, unless its ``model.init_args.start`` names another or is null: so stages
are a tree. Whatever is killed goes on with ``--resume last``: finished stages stay, the begun one is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ikit.callbacks import Checkpoint
from t2ikit.checkpoints.runs import find_checkpoint, newest_checkpoint
from t2ikit.config.class_nodes import accepted, find_class
from t2ikit.config.compose import ConfigError, Override, compose, nearest, stages_of
from t2ikit.config.origins import Origins
from t2ikit.config.values import to_yaml
from t2ikit.files import write_whole
from t2ikit.launch import first_rank
from t2ikit.run.experiment import Plan, check
from t2ikit.run.folder import FOLDER_VARIABLE, RunFolder, launch_id, new_version, rank_folder, version_number
from t2ikit.run.train import train

FINISHED = "finished"
REFERENCE = "stages."


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        path: the experiment.
        overrides: for every stage; those below ``stages.NAME`` for that one.
        only: one stage, or None for all of them.
        resume: None for a new version; "last"; or a version, a stage folder or a checkpoint in one.
        allow: keys that may differ from the checkpoint that is resumed.
        command: as the user would type it again, without --resume.
    """

    path: Path
    overrides: Sequence[Override]
    only: str | None
    resume: str | None
    allow: Sequence[str]
    command: str


def train_stages(request: Request, origins: Origins) -> int:
    """Trains the stages of an experiment that are not finished; returns the exit status.

    Raises:
        ConfigError: what one of the stages cannot do; all are checked before the first begins.
    """
    stages = stages_of(request.path, request.overrides)
    if request.only is not None and request.only not in stages:
        raise ConfigError(f"--stage {request.only}: {request.path} has no such stage{nearest(request.only, stages)}")
    tree = Tree(stages, request, origins)
    names = [request.only] if request.only else list(stages)
    plans = {name: tree.plan(name, None) for name in names}
    if FOLDER_VARIABLE in os.environ:  # a rank that Lightning started, for one of the stages
        folder = rank_folder()
        return _train(tree.plan(folder.path.name, folder.path.parent), folder, request)
    if launch_id():
        raise ConfigError(
            "stages are trained by one command that starts its ranks itself (trainer.devices, trainer.num_nodes): "
            "leave out torchrun or srun"
        )
    version, chosen = _version(plans[names[0]], request, stages)
    for name in names:
        if (version / name / FINISHED).exists():
            print(f"stage {name}: finished before, in {version / name}")
            continue
        try:
            plan = tree.plan(name, version)
        except ConfigError:
            with suppress(OSError):  # it holds other stages, or other versions
                version.rmdir()
                version.parent.rmdir()
            raise
        folder = _folder(version / name, chosen)
        print(f"stage {name}: {folder.path}")
        status = _train(plan, folder, request)
        if status != 0:
            return status
        if first_rank():
            write_whole(version / name / FINISHED, "")
    return 0


@dataclass(frozen=True)
class Tree:
    """The stages of one experiment and how they hang together.

    Attributes:
        stages: overlays by name, in their order.
        request: of the command line.
        origins: which modules class paths may name.
    """

    stages: Mapping[str, dict[str, Any]]
    request: Request
    origins: Origins

    def plan(self, name: str, version: Path | None) -> Plan:
        """The checked experiment of a stage.

        Args:
            name: of the stage.
            version: the folder of the version, where checkpoints of other stages lie; None only checks.
        """
        config = compose(self.request.path, self.request.overrides, name)
        arguments = config["model"].setdefault("init_args", {})
        arguments.update(self._start(name, config))
        start = arguments.get("start")
        parent = self._parent(name, start)
        if parent is not None:
            arguments["start"] = {**start, "checkpoint": str(self._checkpoint(parent, version) if version else "-")}
        self._keep(name, config)
        return check(config, self.origins)

    def _start(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        """``start`` of a stage that says nothing of it: the end of the stage before."""
        names = list(self.stages)
        position = names.index(name)
        said = self._arguments(name)
        overridden = any(o.key.startswith(("model.start", "model.init_args.start")) for o in self.request.overrides)
        takes = "start" in accepted(find_class(config["model"]["class_path"], "model", self.origins))
        if position == 0 or "start" in said or overridden or not takes:
            return {}
        return {"start": {"checkpoint": f"{REFERENCE}{names[position - 1]}", "weights": "auto"}}

    def _arguments(self, name: str) -> dict[str, Any]:
        """What the overlay of a stage says of the model's arguments."""
        return (self.stages[name].get("model") or {}).get("init_args") or {}

    def _parent(self, name: str, start: Any) -> tuple[str, int | None] | None:
        """The stage, and its step if one is said, that a ``start`` refers to; None for a file or no start."""
        reference = start.get("checkpoint") if isinstance(start, dict) else None
        if not isinstance(reference, str) or not reference.startswith(REFERENCE):
            return None
        parent, at, step = reference.removeprefix(REFERENCE).partition("@")
        before = list(self.stages)[: list(self.stages).index(name)]
        if parent not in before or (at and not step.isdigit()):
            raise ConfigError(
                f"stages.{name}: start: {reference} is no stage before it, stages.NAME or stages.NAME@STEP"
                f"{nearest(parent, before)}"
            )
        return parent, int(step) if at else None

    def _checkpoint(self, parent: tuple[str, int | None], version: Path) -> Path:
        name, step = parent
        folder = version / name
        if step is not None:
            return find_checkpoint(folder / "checkpoints" / f"step-{step:08d}.ckpt", f"stages.{name}@{step}")
        newest = newest_checkpoint(folder)
        if newest is None or not (folder / FINISHED).exists():
            raise ConfigError(f"stage {name} is not finished in {version}: train it first (leave out --stage)")
        return newest

    def _keep(self, name: str, config: dict[str, Any]) -> None:
        """Has a stage keep the checkpoints that later ones start from."""
        steps = set()
        for other in self.stages:
            parent = self._parent(other, self._arguments(other).get("start")) if other != name else None
            if parent is not None and parent[0] == name and parent[1] is not None:
                steps.add(parent[1])
        if not steps:
            return
        for key, node in config["callbacks"].items():
            if issubclass(find_class(node.get("class_path"), f"callbacks.{key}", self.origins), Checkpoint):
                node.setdefault("init_args", {})["keep_steps"] = sorted(steps)
                return
        raise ConfigError(
            f"stages.{name}: another stage starts from its step {min(steps)}, but it keeps no checkpoints"
        )


def _train(plan: Plan, folder: RunFolder, request: Request) -> int:
    text = to_yaml(plan.config)
    return train(plan, text, folder, request.allow if folder.checkpoint else (), request.command)


def _version(plan: Plan, request: Request, stages: Mapping[str, Any]) -> tuple[Path, Path | None]:
    """The folder of the version, and the checkpoint that --resume names, if it names one."""
    versions = Path(plan.config["run"]["directory"]) / plan.name
    existing = sorted(
        (folder for folder in versions.glob("version_*") if any((folder / name).is_dir() for name in stages)),
        key=version_number,
    )
    if request.resume is None:
        begun = existing[-1] if existing and request.only else None
        if begun is not None and not (begun / str(request.only)).exists():
            return begun, None
        return new_version(versions), None
    if request.resume == "last":
        if not existing:
            raise ConfigError(f"--resume last: no version in {versions} holds a stage of this experiment")
        return existing[-1], None
    path = Path(request.resume)
    if any((path / name).is_dir() for name in stages):
        return path, None
    checkpoint = find_checkpoint(path, "--resume")
    stage = checkpoint.parent.parent
    if stage.name not in stages or checkpoint.parent.name != "checkpoints":
        raise ConfigError(
            f"--resume {path}: neither a version of this experiment nor a checkpoint of one of its stages"
        )
    (stage / FINISHED).unlink(missing_ok=True)
    return stage.parent, checkpoint


def _folder(path: Path, chosen: Path | None) -> RunFolder:
    """Where a stage is trained: on from its newest checkpoint, or anew; what is left without one is kept aside."""
    if chosen is not None and chosen.parent.parent.resolve() == path.resolve():
        return RunFolder(path, chosen, False)
    newest = newest_checkpoint(path)
    if newest is not None:
        return RunFolder(path, newest, False)
    if path.exists():
        count = sum(1 for _ in path.parent.glob(f"{path.name}.left-*"))
        path.rename(path.with_name(f"{path.name}.left-{count + 1}"))
    path.mkdir(parents=True)
    return RunFolder(path, None, True)
