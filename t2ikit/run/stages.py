"""An experiment in stages: overlays that are trained one after the other, each in a folder of its own.

    runs/<experiment>/<version>/<stage>/          a run folder like any other
    runs/<experiment>/<version>/<stage>/finished  written at the end, as of any run: last checkpoint, experiment

A stage starts from the end of the one before, unless its ``model.init_args.start`` names another or is null: so stages
are a tree. ``--resume last`` skips a finished stage only while the experiment still says of it what was trained.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from lightning.pytorch import Trainer
from torch import distributed

from t2ikit import ranks
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.origins import Origins
from t2ikit.config.values import to_yaml
from t2ikit.launch import first_rank
from t2ikit.lock import lock
from t2ikit.run.experiment import Plan
from t2ikit.run.folder import FOLDER_VARIABLE, TRIAL, RunFolder, launch_id, new_version, print_unfinished, rank_folder
from t2ikit.run.loggers import quiet
from t2ikit.run.stage_folders import Version, folder_of, refuse_changed, requested_version, unfinished_version
from t2ikit.run.stage_tree import REFERENCE, Request, Tree
from t2ikit.run.train import train

Result = TypeVar("Result")


def train_stages(request: Request, origins: Origins) -> tuple[int, Path]:
    """Trains the stages of an experiment that are not finished; returns the exit status and the folder of the version.

    Raises:
        ConfigError: what one of the stages cannot do; all are checked before the first begins.
    """
    tree = Tree.of(request, origins)
    if request.only is not None and request.only not in tree.stages:
        raise ConfigError(
            f"--stage {request.only}: {request.path} has no such stage{nearest(request.only, tree.stages)}"
        )
    _check_allowed(tree)
    names = [request.only] if request.only else list(tree.stages)
    plans = {name: tree.plan(name) for name in names}
    if FOLDER_VARIABLE in os.environ:  # a rank that Lightning started, for one of the stages
        folder = rank_folder()
        plan = tree.plan(folder.path.name, tree.start(folder.path.name, folder.path.parent))
        return _train(plan, folder, request), folder.path.parent
    _join_ranks(plans)
    version = _agreed(partial(_version, tree, plans, names))
    for name in names:
        decision = _agreed(partial(_next, tree, version, name))
        if decision is None:
            continue
        start, folder = decision
        if not first_rank():
            folder = replace(folder, created=False)
        plan = tree.plan(name, start)
        with _ranks_of_this_stage():
            status = _train(plan, folder, request)
        if status != 0:
            return status, version.path
        gc.collect()  # a Trainer and its model refer to each other: two stages would lie in the memory of a GPU
    return 0, version.path


def _check_allowed(tree: Tree) -> None:
    for key in tree.request.allow:
        stage = key.removeprefix(REFERENCE)
        if stage != key and stage not in tree.stages and not stage.isidentifier():
            raise ConfigError(f"--allow {key}: expected stages.NAME{nearest(stage, tree.stages)}")


def _version(tree: Tree, plans: dict[str, Plan], names: list[str]) -> Version:
    """The version that is trained, which is made if it is a new one; nothing in it has changed yet."""
    plan = plans[names[0]]
    versions = Path(plan.config["run"]["directory"]) / plan.name
    trial = any(plan.trainer.get("fast_dev_run") for plan in plans.values())
    version = requested_version(tree, versions, names)
    if version is not None:
        if trial:
            raise ConfigError(
                f"--stage {tree.request.only}: trainer.fast_dev_run keeps nothing, and this stage would go to "
                f"{version.path}: leave out --stage"
            )
        refuse_changed(tree, version, names)
        return version
    if tree.request.only is not None:
        tree.start(tree.request.only, versions)  # refuses, if it needs another stage
    if tree.request.resume is None and not trial:
        print_unfinished(unfinished_version(tree, versions, names), tree.request.command)
    return Version(new_version(versions, TRIAL if trial else "version"), None)


def _next(tree: Tree, version: Version, name: str) -> tuple[Path | None, RunFolder] | None:
    """The checkpoint that a stage starts from and its folder, which is made; None if it is finished."""
    folder = version.path / name
    if version.stays(tree, name):
        print(f"stage {name}: finished before, in {folder}")
        return None
    start = tree.start(name, version.path)
    print(f"stage {name}: {folder}")
    if folder.exists():
        lock(folder)  # before what another process may be writing there is kept aside
    return start, folder_of(folder, version.checkpoint)


def _train(plan: Plan, folder: RunFolder, request: Request) -> int:
    text = to_yaml(plan.config)
    allow = [key for key in request.allow if not key.startswith(REFERENCE)]
    return train(plan, text, folder, allow if folder.checkpoint else (), request.command)


# ------------------------------------------------------------------ ranks


def _join_ranks(plans: dict[str, Plan]) -> None:
    """Joins ranks that torchrun or srun started, before the first stage: they agree on a version and on folders.

    They stay together for all stages. Ranks that Lightning starts itself are started for each stage.

    Raises:
        ConfigError: a stage is for another number of ranks, or Lightning would start ranks on several machines.
    """
    if not (launch_id() or "LOCAL_RANK" in os.environ):
        return
    quiet()
    trainers = {name: _bare_trainer(plan) for name, plan in plans.items()}
    started = int(os.environ.get("WORLD_SIZE", next(iter(trainers.values())).world_size))
    for name, trainer in trainers.items():
        if trainer.world_size != started:
            raise ConfigError(
                f"stages.{name}: {started} ranks are started, and trainer.devices x trainer.num_nodes is "
                f"{trainer.world_size}: set these, or start the ranks of each stage by themselves, with --stage {name}"
            )
    trainer = next(iter(trainers.values()))
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if started == 1 or environment is None:
        return
    if environment.creates_processes_externally:
        trainer.strategy.setup_environment()
    elif trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes is {trainer.num_nodes}: start the ranks of stages on several machines with torchrun or "
            "srun"
        )


def _bare_trainer(plan: Plan) -> Trainer:
    """A Trainer that knows the ranks of a stage, and is not used for more."""
    names = ("accelerator", "devices", "num_nodes", "strategy", "plugins", "precision")
    options = {name: plan.trainer[name] for name in names if name in plan.trainer}
    return Trainer(**options, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def _agreed(decide: Callable[[], Result]) -> Result:
    """What the first rank decides, on every rank; each raises what it refuses."""

    def decision() -> Result | ConfigError:
        try:
            return decide()
        except ConfigError as error:
            return error

    result = ranks.from_first(decision)
    if isinstance(result, ConfigError):
        raise result
    return result


@contextmanager
def _ranks_of_this_stage() -> Iterator[None]:
    """Where Lightning starts the other ranks, they end with the stage: the next one finds none, and starts its own."""
    before = dict(os.environ)
    try:
        yield
    finally:
        if "LOCAL_RANK" not in before and "LOCAL_RANK" in os.environ:
            if distributed.is_initialized():
                distributed.destroy_process_group()
            for variable in ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
                if variable not in before:
                    os.environ.pop(variable, None)
