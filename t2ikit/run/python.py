"""``t2ikit.train``: what ``t2ikit run`` does, called from Python, as in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint

from t2ikit import stopping
from t2ikit.config.errors import ConfigError
from t2ikit.config.overrides import overrides_of
from t2ikit.config.request import Request
from t2ikit.config.secrets import trust_names
from t2ikit.module import TextToImage
from t2ikit.run.request import Checked, begin, checked
from t2ikit.run.trained import TrainedModel, load

PROG = "t2ikit run"


def train(
    experiment: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: str | Path | None = None,
    stage: str | None = None,
    fork: bool = False,
    allow: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> TrainedModel:
    """Trains an experiment in this process, as ``t2ikit run`` does, and loads what was trained.

    One process trains, on one device: an experiment for several devices is changed to one, with as many micro-batches
    more, unless ``overrides`` says otherwise. Ctrl+C, or the stop button of a notebook, stops the run at the end of a
    step, with a checkpoint.

    Args:
        experiment: a file, or the name of one that comes with the kit, such as "quickstart".
        overrides: options by key, ``{"trainer.max_steps": 100, "callbacks.geneval": None}``, or nested mappings; paths
            and tuples may stand for text and lists.
        resume: "last", "auto" or a path, as ``--resume``.
        stage: the one stage that is trained; of several stages, the last one is loaded.
        fork: resume in a new version.
        allow: keys that may differ from the checkpoint of ``resume``.
        trust: modules that the experiment may name though they are not ours.

    Returns:
        The model at its last checkpoint, with averaged weights where there are any.

    Raises:
        ConfigError: the experiment is refused, before any data is touched.
        Failed: a full disk, or a loss that is not finite, ended the run.
        KeyboardInterrupt: it was stopped; its checkpoint stays.

    Example:
        >>> model = t2ikit.train("quickstart", {"trainer.max_steps": 200})  # doctest: +SKIP
    """
    trust_names(trust)
    given = overrides_of(overrides or {})
    again = None if resume is None else str(resume)
    request = Request(Path(experiment), given, again, fork, stage, tuple(allow), tuple(trust))
    stages = request.stages()
    run = checked(request, stages)
    request = _on_one_device(request, run)
    run = checked(request, stages)
    _refuse(run)
    with stopping.handled():
        try:
            status, folder = begin(request, run, PROG)
        except stopping.Stopped as error:
            raise KeyboardInterrupt(f"stopped by {error.reason} before the first step") from None
    if status == stopping.STATUS:
        raise KeyboardInterrupt(f"the run was stopped; t2ikit.train(..., resume={str(folder)!r}) goes on with it")
    if status:
        raise stopping.Failed(f"the run in {folder} ended with status {status}; what it printed says why")
    last = stage or next(reversed(list(stages)), None)
    return load(folder / last if last else folder, weights="auto", trust=trust)


def _on_one_device(request: Request, run: Checked) -> Request:
    """The same with one device, and with the micro-batches of the devices that are left out."""
    trainer, asked = run.plan.trainer, {override.key for override in request.overrides}
    devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
    count = len(devices) if isinstance(devices, list) else max(1, devices) if isinstance(devices, int) else 1
    if {"trainer.devices", "trainer.num_nodes"} & asked and (count > 1 or nodes > 1):
        raise ConfigError(
            f"trainer.devices {devices}: t2ikit.train trains in this process, on one device; for more: "
            f"{request.command(PROG)}"
        )
    if devices == 1 and nodes == 1:
        return request
    changes = {"trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto"}
    batches = int(trainer.get("accumulate_grad_batches", 1)) * count * nodes
    if count * nodes > 1:
        changes["trainer.accumulate_grad_batches"] = batches
        print(
            f"One process trains, on one device, {batches} micro-batches a step. On all {count * nodes} devices: "
            f"{request.command(PROG)}"
        )
    new = overrides_of({key: value for key, value in changes.items() if key not in asked})
    return replace(request, overrides=(*request.overrides, *new))


def _refuse(run: Checked) -> None:
    """Refuses a run after which there would be nothing to sample from.

    Raises:
        ConfigError: says what to change.
    """
    if not issubclass(run.plan.model.cls, TextToImage):
        raise ConfigError(
            f"model: t2ikit.train returns a model that samples images, {run.plan.model.class_path} is none: t2ikit run"
        )
    if run.plan.trainer.get("fast_dev_run"):
        raise ConfigError("trainer.fast_dev_run keeps no checkpoint to load: use `t2ikit run` to try an experiment")
    if not any(issubclass(component.cls, Checkpoint) for component in run.plan.callbacks.values()):
        raise ConfigError("callbacks: without a checkpoint callback there is nothing to load after the run")
