"""The stages of an experiment as it is written: their order, and which stage each one starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ikit.callbacks import Checkpoint
from t2ikit.checkpoints.runs import find_checkpoint, is_finished, newest_checkpoint
from t2ikit.config.class_nodes import accepted
from t2ikit.config.compose import compose, stages_of
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.imports import find_class
from t2ikit.config.merging import Override
from t2ikit.config.origins import Origins
from t2ikit.run.experiment import Plan, check

REFERENCE = "stages."


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        path: the experiment.
        overrides: for every stage; those below ``stages.NAME`` for that one.
        only: one stage, or None for all of them.
        resume: None for a new version; "last"; "auto"; or a version, a stage folder or a checkpoint in one.
        allow: keys that may differ from the checkpoint that is resumed; ``stages.NAME`` lets a begun stage stay as it
            is though the experiment says another thing of it.
        command: as the user would type it again, without --resume.
    """

    path: Path
    overrides: Sequence[Override]
    only: str | None
    resume: str | None
    allow: Sequence[str]
    command: str


@dataclass(frozen=True)
class Source:
    """The stage that another one starts from, and at which of its steps; None = its end."""

    stage: str
    step: int | None

    def __str__(self) -> str:
        return f"{REFERENCE}{self.stage}" + ("" if self.step is None else f"@{self.step}")


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

    @classmethod
    def of(cls, request: Request, origins: Origins) -> Tree:
        """The tree of the experiment that ``request`` names."""
        return cls(stages_of(request.path, request.overrides), request, origins)

    def plan(self, name: str, start: Path | None = None) -> Plan:
        """The checked experiment of a stage.

        Args:
            name: of the stage.
            start: the checkpoint of another stage that it starts from; None only checks.

        Raises:
            ConfigError: what is wrong with it.
        """
        config = self._config(name)
        if self.source(name, config) is not None:
            arguments = config["model"]["init_args"]
            arguments["start"] = {**arguments["start"], "checkpoint": str(start) if start else "-"}
        self._keep(name, config)
        return check(config, self.origins)

    def source(self, name: str, config: dict[str, Any] | None = None) -> Source | None:
        """The stage that a stage starts from; None for a file or no start.

        Args:
            name: of the stage.
            config: its composed experiment, if that is known.

        Raises:
            ConfigError: it names no stage before it, or a step that this one does not reach.
        """
        config = self._config(name) if config is None else config
        start = config["model"]["init_args"].get("start")
        reference = start.get("checkpoint") if isinstance(start, dict) else None
        if not isinstance(reference, str) or not reference.startswith(REFERENCE):
            return None
        stage, at, step = reference.removeprefix(REFERENCE).partition("@")
        before = list(self.stages)[: list(self.stages).index(name)]
        if stage not in before or (at and not (step.isdigit() and int(step) > 0)):
            raise ConfigError(
                f"stages.{name}: start: {reference} is no stage before it, stages.NAME or stages.NAME@STEP"
                f"{nearest(stage, before)}"
            )
        if not at:
            return Source(stage, None)
        end = (self._config(stage).get("trainer") or {}).get("max_steps", -1)
        if isinstance(end, int) and 0 < end < int(step):
            raise ConfigError(
                f"stages.{name}: start: {reference}: stage {stage} ends at step {end} (its trainer.max_steps), before "
                f"step {int(step)}"
            )
        return Source(stage, int(step))

    def start(self, name: str, version: Path) -> Path | None:
        """The checkpoint of another stage that a stage starts from; None if it starts from none.

        Raises:
            ConfigError: the other stage is not finished in this version, or has not kept the checkpoint.
        """
        source = self.source(name)
        if source is None:
            return None
        folder = version / source.stage
        if source.step is not None:
            path = folder / "checkpoints" / f"step-{source.step:08d}.ckpt"
            if folder.is_dir():
                return find_checkpoint(path, f"stages.{name}: start: {source}:")
        newest = newest_checkpoint(folder)
        if newest is None or source.step is not None or not is_finished(folder):
            raise ConfigError(
                f"stage {name} starts from {source}, and stage {source.stage} is not finished in {version}: train it "
                f"first, with --stage {source.stage}, or with all others (leave out --stage)"
            )
        return find_checkpoint(newest, f"stages.{name}: start: {source}:")

    def with_sources(self, names: Sequence[str]) -> list[str]:
        """The given stages and those that they start from, near and far, in the order of the experiment."""
        needed = set(names)
        for name in reversed(list(self.stages)):
            source = self.source(name) if name in needed else None
            if source is not None:
                needed.add(source.stage)
        return [name for name in self.stages if name in needed]

    def _config(self, name: str) -> dict[str, Any]:
        """The composed experiment of a stage; one that says nothing of its start starts from the stage before."""
        config = compose(self.request.path, self.request.overrides, name)
        if isinstance(config["model"], str):
            config["model"] = {"class_path": config["model"]}
        arguments = config["model"].setdefault("init_args", {})
        position = list(self.stages).index(name)
        overlay = self.stages[name].get("model") or {}
        in_overlay = "start" in (overlay.get("init_args") or {} if isinstance(overlay, dict) else {})
        overridden = any(o.key.startswith(("model.start", "model.init_args.start")) for o in self.request.overrides)
        takes = "start" in accepted(find_class(config["model"]["class_path"], "model.class_path", self.origins))
        if position > 0 and takes and not in_overlay and not overridden:
            before = list(self.stages)[position - 1]
            arguments["start"] = {"checkpoint": f"{REFERENCE}{before}", "weights": "auto"}
        return config

    def _keep(self, name: str, config: dict[str, Any]) -> None:
        """Has a stage keep the checkpoints that later ones start from, beside those that it keeps anyway."""
        steps = set()
        for later in list(self.stages)[list(self.stages).index(name) + 1 :]:
            source = None
            with suppress(ConfigError):  # refused when that stage is trained
                source = self.source(later)
            if source is not None and source.stage == name and source.step is not None:
                steps.add(source.step)
        if not steps:
            return
        for key, node in config["callbacks"].items():
            node = {"class_path": node} if isinstance(node, str) else node
            config["callbacks"][key] = node
            if issubclass(find_class(node.get("class_path"), f"callbacks.{key}.class_path", self.origins), Checkpoint):
                arguments = node["init_args"] = node.get("init_args") or {}
                arguments["keep_steps"] = sorted({*(arguments.get("keep_steps") or ()), *steps})
                return
        raise ConfigError(
            f"stages.{name}: another stage starts from its step {min(steps)}, but it keeps no checkpoints"
        )
