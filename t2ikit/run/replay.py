"""Makes a step again that was refused, from its debug bundle, and finds the layer where the first bad value appears."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn

from t2ikit.callbacks import NonFiniteGuard, ScoreTable, Snapshot, StepProgress
from t2ikit.callbacks.debug_bundle import CHECKPOINT, REPORT
from t2ikit.checkpoints.files import read_weights
from t2ikit.config.compose import changed
from t2ikit.config.errors import ConfigError
from t2ikit.files import parse_json
from t2ikit.launch import first_rank
from t2ikit.run.experiment import build, check, origins_of
from t2ikit.run.loggers import quiet

# Callbacks that do not belong to a step, or would end it early.
LEFT_OUT = (Checkpoint, NonFiniteGuard, ScoreTable, Snapshot, StepProgress)


class StepMade(Exception):
    """Ends the fit when the step is made."""


class Finder(Callback):
    """Notes where values that are not finite appear in one step, in the order in which they do, and the losses.

    Attributes:
        forward, backward: where, in the order of computation; outputs of layers, then gradients of these outputs.
        losses: of the samples of this rank.
    """

    def __init__(self) -> None:
        self.forward: list[str] = []
        self.backward: list[str] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module.step_outputs = []
        for name, parameter in pl_module.named_parameters():
            if not bool(parameter.detach().isfinite().all()):
                self.forward.append(f"{name} (a weight of before the step)")
        for name, layer in pl_module.named_modules():
            if name:
                layer.register_forward_hook(partial(self._look, f"{name} ({type(layer).__name__})"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        names = trainer.datamodule.source_names  # type: ignore[attr-defined]
        for part in batch:
            rows = ~part.latents.flatten(1).isfinite().all(1)
            for source, index in zip(part.source[rows].tolist(), part.index[rows].tolist(), strict=True):
                self.forward.append(f"the batch: the image of {names[source]}[{index}]")

    def _look(self, name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in tensors(output):
            if not bool(tensor.detach().isfinite().all()):
                self.forward.append(name)
            if tensor.requires_grad:
                tensor.register_hook(partial(self._look_back, name))

    def _look_back(self, name: str, gradient: Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            self.backward.append(name)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
                self.backward.append(f"{name} (gradient of a weight)")
        self.losses = [loss for output in pl_module.step_outputs for loss in output.loss.tolist()]
        raise StepMade


def tensors(value: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in an output of a layer: tensors, tuples, lists, mappings, dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from tensors(entry)
    elif is_dataclass(value):
        yield from tensors([getattr(value, entry.name) for entry in fields(value)])


def replay(bundle: Path, trust: Sequence[str]) -> int:
    """Makes the step again and prints what it finds; 0 if the losses are those of the bundle, else 1.

    Raises:
        ConfigError: it is no bundle, or its experiment is refused.
    """
    if not (bundle / CHECKPOINT).is_file() or not (bundle / REPORT).is_file():
        raise ConfigError(f"{bundle}: no debug bundle: {CHECKPOINT} and {REPORT} are missing")
    report = parse_json((bundle / REPORT).read_text())
    config = changed({**read_weights(bundle / CHECKPOINT, mmap=True)["experiment"], "loggers": {}})
    origins = origins_of(trusted=trust)
    plan = check(config, origins)
    kept = {name: entry for name, entry in plan.callbacks.items() if not issubclass(entry.cls, LEFT_OUT)}
    config = {**plan.config, "callbacks": {name: plan.config["callbacks"][name] for name in kept}}
    config["trainer"] = {**config["trainer"], "enable_progress_bar": False, "enable_model_summary": False}
    if config["model"]["init_args"].get("compile") is not None:  # a layer inside a compiled graph cannot be looked at
        config["model"]["init_args"]["compile"] = None
    finder = Finder()
    quiet()
    with tempfile.TemporaryDirectory(prefix="t2ikit-replay-") as folder:
        experiment = build(check(changed(config), origins), Path(folder), report["step"] - 1)
        experiment.trainer.callbacks.append(finder)  # type: ignore[attr-defined]
        try:
            path = str(bundle / CHECKPOINT)
            experiment.trainer.fit(experiment.model, datamodule=experiment.data, ckpt_path=path, weights_only=True)
        except StepMade:
            pass
    expected = [row["loss"] for row in report["records"][experiment.trainer.global_rank]]
    equal = [repr(loss) for loss in finder.losses] == expected
    if first_rank():
        _print(report, finder, equal, len(report["records"]))
    return 0 if equal else 1


def _print(report: Mapping[str, Any], finder: Finder, equal: bool, ranks: int) -> None:
    count = sum(len(rows) for rows in report["records"])
    print(f"step {report['step']}: {count} records on {ranks} rank{'s' if ranks > 1 else ''}")
    bad = [row for rows in report["records"] for row in rows if not row["finite"]]
    for row in bad:
        print(f"  {row['record']}  t {row['t']}  loss {row['loss']}")
    print(
        f"losses{' of rank 0' if ranks > 1 else ''}: {'equal to' if equal else 'NOT those of'} the bundle, bit for bit"
    )
    for way, names in (("forward", finder.forward), ("backward", finder.backward)):
        shown = f"{names[0]}, then {len(names) - 1} more" if names else "all values are finite"
        print(f"first value that is not finite, {way}: {shown}")
