"""Builds a composed experiment: checks keys and types, builds the classes, refuses contradictions.

jsonargparse's parser is used directly instead of through LightningCLI. LightningCLI builds, saves and fits in one
constructor, merges the hyper-parameters of a checkpoint over the experiment, and reports a typo as a page of usage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from t2ikit.callbacks import CheckpointFiles
from t2ikit.callbacks.monitors import check_monitors
from t2ikit.checkpoints.runs import kept_plugins, run_folder_of
from t2ikit.checkpoints.start import Start
from t2ikit.config import class_nodes
from t2ikit.config.class_nodes import (
    Component,
    accepted,
    check_below,
    check_component,
    look_at,
    parse,
)
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.imports import find_class
from t2ikit.config.merging import INHERITED, merge
from t2ikit.config.messages import located
from t2ikit.config.origins import Origins, importable, printable
from t2ikit.config.secrets import refuse_literal, without_secrets
from t2ikit.config.values import plain
from t2ikit.diffusion.samplers import find_solver
from t2ikit.diffusion.solvers import Solver
from t2ikit.learner import Learner
from t2ikit.run.kept import print_unlike
from t2ikit.run.parameters import with_parameter_counts
from t2ikit.run.trainer_options import (
    count_from_this_start,
    refuse_callbacks,
    refuse_loggers,
    refuse_option,
    refuse_ranks,
    refuse_validation,
)

# Exceptions of a constructor over a mistake of the user; any other is a defect and keeps its traceback.
USER_ERRORS: tuple[type[Exception], ...] = (*class_nodes.USER_ERRORS, MisconfigurationException)

# Where a class that an experiment names without its module is looked for, to suggest its full path.
PACKAGES = (
    "t2ikit.callbacks",
    "t2ikit.denoisers",
    "t2ikit.diffusion",
    "t2ikit.optim",
    "t2ikit.data",
    "t2ikit.encoders",
    "t2ikit.metrics",
    "t2ikit.module",
    "t2ikit.shapes",
    "t2ikit.classify",
    "t2ikit.evaluation",
    "t2ikit.prompts",
)

ORIGINS = Origins(PACKAGES)

# Options of the Trainer that the run sets itself, and what to set instead.
TRAINER_OURS = {
    "callbacks": "name callbacks in the mapping `callbacks` at the top of the experiment",
    "default_root_dir": "set run.directory and run.name",
    "logger": "name loggers in the mapping `loggers` at the top of the experiment",
}


@dataclass(frozen=True)
class Plan:
    """A checked experiment, nothing built yet.

    Attributes:
        name: of the run.
        config: what is kept beside the run: with every default, and without secrets of the environment.
        trainer: typed options of the Trainer.
        model, data, callbacks: checked class nodes.
        loggers: class nodes, which are checked again for each run folder.
        origins: which modules its class paths may name.
    """

    name: str
    config: dict[str, Any]
    trainer: dict[str, Any]
    model: Component
    data: Component
    callbacks: dict[str, Component]
    loggers: dict[str, Any]
    origins: Origins = ORIGINS


@dataclass(frozen=True)
class Experiment:
    """What a run is made of."""

    trainer: Trainer
    model: LightningModule
    data: LightningDataModule
    callbacks: dict[str, Callback]


def check(config: dict[str, Any], origins: Origins = ORIGINS) -> Plan:
    """Checks every key and type of a composed experiment, and completes it with the defaults of its classes.

    Args:
        config: from ``t2ikit.config.compose``.
        origins: which modules its class paths may name; of :func:`importable`.

    Raises:
        ConfigError: an unknown key or class, a wrong type, a missing argument; with the path of the key.
    """
    refuse_literal(without_secrets(plain(config)))  # before a message shows what it refuses
    seed = config.get("seed_everything")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise ConfigError(f"seed_everything: expected an int from 0 up or null, got {seed!r}")
    name = config["run"]["name"]
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or printable(name) != name:
        raise ConfigError(f"run.name: expected the plain name of a folder, got {name!r}")
    if not isinstance(config["run"]["directory"], str):
        raise ConfigError(f"run.directory: expected a folder, got {config['run']['directory']!r}")
    if not config.get("data"):
        raise ConfigError("data: the experiment names no data module: {class_path: ..., init_args: ...}")
    _look_at_all(config, origins)
    trainer = _check_trainer(config.get("trainer") or {}, origins)
    model = check_component("model", _settled(config["model"], origins), LightningModule, origins=origins)
    data = check_component("data", config["data"], LightningDataModule, origins=origins)
    for group in ("callbacks", "loggers"):
        for entry, node in (config.get(group) or {}).items():
            node = {"class_path": node} if isinstance(node, str) else node
            if not isinstance(node, dict) or not isinstance(node.get("init_args") or {}, dict):
                raise ConfigError(f"{group}.{entry}: expected {{class_path: ..., init_args: ...}}, got {node!r}")
            if "class_path" not in node:  # an override of a name that is not there
                others = [name for name in config[group] if name != entry]
                raise ConfigError(
                    f"{group}.{entry}: expected {{class_path: ..., init_args: ...}}, since the experiment has no "
                    f"{group[:-1]} of this name to change{nearest(entry, others)}"
                )
    loggers = config.get("loggers") or {}
    loggers_of(loggers, Path(), 0, origins)
    callbacks = {
        callback: check_component(f"callbacks.{callback}", node, Callback, callback, origins)
        for callback, node in config["callbacks"].items()
    }
    kept = {
        "seed_everything": seed,
        "model": model.node(),
        "data": data.node(),
        "trainer": config.get("trainer") or {},
        "callbacks": {callback: component.node() for callback, component in callbacks.items()},
        "loggers": loggers,
        "run": config["run"],
    }
    kept = without_secrets(plain(kept))
    refuse_literal(kept)
    return Plan(name, kept, trainer, model, data, callbacks, loggers, origins)


def _look_at_all(config: dict[str, Any], origins: Origins) -> None:
    """Looks at every class that is named, before one of them is imported."""
    kinds = {"model": LightningModule, "data": LightningDataModule}
    for key in ("model", "data", "trainer"):
        node = {"class_path": config[key]} if isinstance(config.get(key), str) else config.get(key)
        look_at(node, key, origins, kinds.get(key, object))
    for group, kind in (("callbacks", Callback), ("loggers", Logger)):
        for entry, node in (config.get(group) or {}).items():
            look_at({"class_path": node} if isinstance(node, str) else node, f"{group}.{entry}", origins, kind)


def build(plan: Plan, folder: Path, step: int = 0) -> Experiment:
    """Builds data, model, callbacks and Trainer, and refuses contradictions between them.

    Args:
        plan: from ``check``.
        folder: the run folder, ``trainer.default_root_dir``.
        step: at which it resumes.

    Raises:
        ConfigError: a constructor refuses its arguments, or two options contradict each other.
    """
    data = plan.data.build(USER_ERRORS)
    find_data = getattr(data, "find_data", None)  # before a large network is initialised for missing data
    if callable(find_data):
        try:
            find_data()
        except USER_ERRORS as error:
            raise ConfigError(str(error)) from error
    model = plan.model.build(USER_ERRORS)
    start = getattr(model, "start", None)
    if isinstance(start, Start) and step == 0:  # a missing checkpoint is refused before data and weights are read
        start.path()
    if isinstance(model, Learner):
        model.experiment, model.origins = plan.config, plan.origins
    callbacks = {name: component.build(USER_ERRORS) for name, component in plan.callbacks.items()}
    nodes = loggers_of(plan.loggers, folder, step, plan.origins)
    loggers = [component.build((Exception,)) for component in nodes.values()]  # a place or a server that is not there
    refuse_loggers(dict(zip(nodes, loggers, strict=True)))
    options = dict(plan.trainer)
    refuse_validation(options, model)
    # Without a checkpoint callback Lightning would add one: only the callbacks of the experiment write files.
    options.setdefault("enable_checkpointing", any(isinstance(callback, Checkpoint) for callback in callbacks.values()))
    every = with_parameter_counts(list(callbacks.values()), options)
    try:
        trainer = Trainer(**options, callbacks=every, logger=loggers, default_root_dir=str(folder))
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the experiment names no other
            trainer.strategy.checkpoint_io = CheckpointFiles()
        count_from_this_start(trainer, options.get("max_time"), list(callbacks.values()))
    except USER_ERRORS as error:
        raise ConfigError(located("trainer", error)) from error
    experiment = Experiment(trainer, model, data, callbacks)
    validate(experiment)
    return experiment


def validate(experiment: Experiment) -> None:
    """Refuses contradictions between model, data, callbacks and Trainer, before any data is touched.

    A model, data module or callback with a method ``validate_experiment(experiment)`` refuses by raising ValueError.

    Raises:
        ConfigError: with the key of what refuses.
    """
    trainer = experiment.trainer
    if trainer.max_steps == -1 and trainer.max_epochs == -1 and not _timed(trainer):
        raise ConfigError("trainer.max_steps: the run would never end; set the number of optimizer steps")
    refuse_ranks(trainer)
    refuse_callbacks(experiment.callbacks)
    batch = getattr(experiment.data, "batch_size", None)
    micro_batches = trainer.world_size * trainer.accumulate_grad_batches
    if isinstance(batch, int) and batch % micro_batches:
        raise ConfigError(
            f"data.init_args.batch_size: {batch} samples a step cannot be divided among {trainer.world_size} devices "
            f"(trainer.devices x trainer.num_nodes) x {trainer.accumulate_grad_batches} micro-batches "
            "(trainer.accumulate_grad_batches)"
        )
    participants: dict[str, Any] = {"model": experiment.model, "data": experiment.data}
    participants |= {f"callbacks.{name}": callback for name, callback in experiment.callbacks.items()}
    for key, participant in participants.items():
        refuse = getattr(participant, "validate_experiment", None)
        if refuse is None:
            continue
        try:
            refuse(experiment)
        except ValueError as error:
            raise ConfigError(located(key, error)) from error
    try:
        check_monitors(experiment)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _timed(trainer: Trainer) -> bool:
    return any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def loggers_of(nodes: Mapping[str, Any], folder: Path, step: int, origins: Origins = ORIGINS) -> dict[str, Component]:
    """The loggers of an experiment for a run folder, checked and not built.

    A logger that takes ``folder``, ``save_dir`` or ``step`` and is given none gets those of the run.

    Args:
        nodes: ``loggers`` of the experiment.
        folder: of the run.
        step: at which it resumes.
        origins: which modules may be named.

    Raises:
        ConfigError: as :func:`check`.
    """
    given = {"folder": str(folder), "save_dir": str(folder), "step": step}
    components = {}
    for name, node in nodes.items():
        node = {"class_path": node} if isinstance(node, str) else node
        taken = accepted(find_class(node.get("class_path"), f"loggers.{name}.class_path", origins))
        own = {key: value for key, value in given.items() if key in taken}
        node = {**node, "init_args": {**own, **(node.get("init_args") or {})}}
        components[name] = check_component(f"loggers.{name}", node, Logger, origins=origins)
    return components


def _settled(node: Any, origins: Origins) -> Any:
    """The node of a model whose class was changed, with the arguments of the former class that it takes."""
    if not isinstance(node, dict) or not isinstance(node.get(INHERITED), dict):
        return node
    known = accepted(find_class(node.get("class_path"), "model.class_path", origins))
    kept = {name: value for name, value in node[INHERITED].items() if name in known}
    rest = {key: value for key, value in node.items() if key != INHERITED}
    return {**rest, "init_args": merge(kept, rest.get("init_args") or {})}


def _check_trainer(options: dict[str, Any], origins: Origins) -> dict[str, Any]:
    known = [name for name in accepted(Trainer) if name not in TRAINER_OURS]
    for name, value in options.items():
        if name in TRAINER_OURS:
            raise ConfigError(f"trainer.{name}: {TRAINER_OURS[name]}")
        if name not in known:
            raise ConfigError(f"trainer: unknown key '{name}'{nearest(name, known)}")
        refuse_option(name, value)
        check_below(value, f"trainer.{name}", origins)
    # Only nested classes (a strategy, a plugin) are built here, not the Trainer.
    typed = parse(Trainer, options, "trainer", origins).build(USER_ERRORS, whole=False)
    return {name: typed[name] for name in options}


def origins_of(
    *folders: Path, trusted: Sequence[str] = (), checkpoint: Path | None = None, experiment: Path | None = None
) -> Origins:
    """Makes the user's own modules importable, those in the current folder and in the given ones.

    Args:
        folders: whose files the experiment may name.
        trusted: further modules, as ``--trust`` names them.
        checkpoint: whose run has kept the plug-ins that are used where there are no others and they are trusted.
        experiment: a file whose folder is one of ``folders``, unless it is that of a run, which keeps plug-ins, too.
    """
    run = None if checkpoint is None else run_folder_of(checkpoint)
    kept = None if run is None else kept_plugins(run)
    strange = None if checkpoint is None or run == checkpoint.parent else run  # a lone file is in no run folder
    if strange is not None and strange.absolute().parent.name.startswith("version_"):  # a stage of a run
        strange = strange.absolute().parent
    if experiment is not None and experiment.name.startswith("config.") and kept_plugins(experiment.parent) is not None:
        strange, kept = experiment.parent, kept_plugins(experiment.parent)
    elif experiment is not None:
        folders = (*folders, experiment.parent)
    if kept is not None:
        print_unlike(kept)
    return importable(*folders, packages=PACKAGES, trusted=trusted, kept=kept, strange=strange)


def find_method(method: str, origins: Origins) -> str | Solver:
    """The sampler of ``--method``: a name as it is, or an instance of the class that a class path names.

    Raises:
        ConfigError: no such class, or it wants options; an experiment gives them.
        ValueError: an unknown name.
    """
    if "." in method:
        built: Solver = check_component("--method", method, Solver, origins=origins).build()
        return built
    find_solver(method)
    return method
