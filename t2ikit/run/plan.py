"""What an experiment will cost: counted by :mod:`t2ikit.run.cost`, measured by :mod:`t2ikit.run.speed`, or arithmetic.

Neither the data root nor weights nor a GPU need exist. What is there is read: the shapes of the records, their number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from t2ikit.callbacks import CutMix, Snapshot
from t2ikit.config.errors import ConfigError
from t2ikit.data.datamodule import DataModule
from t2ikit.evaluation.settings import Sampling
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet
from t2ikit.run.cost import (
    Inputs,
    Parameters,
    StepCost,
    can_checkpoint,
    count_parameters,
    count_step,
    imagined_model,
    widths,
)
from t2ikit.run.experiment import USER_ERRORS, Plan
from t2ikit.run.gpus import GPU, USABLE, UTILISATION
from t2ikit.run.plan_data import (
    IMAGES,
    TOKENS,
    first_set,
    folder_bytes,
    longest_captions,
    record_bytes,
    shapes_of,
    stored_manifest,
)
from t2ikit.run.sample_cost import count_sample


@dataclass(frozen=True)
class Assumptions:
    """What is not known from the experiment.

    Attributes:
        tokens: of a caption, one number a text encoder; empty takes those of the data, or :data:`TOKENS`.
        images: of the training set; None takes those of the data, or :data:`IMAGES`.
        gpus: for which time, energy and micro-batch are computed.
        utilisation: share of a GPU's peak that a step reaches.
    """

    tokens: tuple[int, ...] = ()
    images: int | None = None
    gpus: tuple[GPU, ...] = ()
    utilisation: float = UTILISATION


@dataclass(frozen=True)
class OnGPU:
    """Arithmetic for one GPU: FLOPs over a share of its peak.

    Attributes:
        images_a_second: of training, of one GPU.
        hours: of all GPUs together.
        kilowatt_hours: with all boards at their limit.
        micro_batch: the largest that fits and divides the samples of a step on a device; 0 where none does.
        checkpointed: the same with checkpointed blocks; None for a denoiser without that option.
    """

    images_a_second: float
    hours: float
    kilowatt_hours: float
    micro_batch: int
    checkpointed: int | None


@dataclass(frozen=True)
class Estimate:
    """What one run costs.

    Attributes:
        name: of the experiment, stage or cell.
        steps: optimizer steps; None where only a clock ends the run.
        batch: samples of a step over all devices.
        devices: of all machines; 1 where the experiment leaves it to the machine.
        inputs: of a micro-batch.
        parameters: by part.
        step: FLOPs and memory of a micro-batch and its update.
        checkpointed: the same with checkpointed blocks; None for a denoiser without that option.
        samples: FLOPs of an image by the name of the snapshot that makes it.
        disk: bytes of the prepared sets by name.
        prepared: whether ``disk`` is read from the data rather than computed.
        gpus: by the name of the GPU.
        measured: images/s on this machine, with what was measured; None where it was not.
        notes: what could not be counted, and why.
    """

    name: str
    steps: int | None
    batch: int
    devices: int
    inputs: Inputs
    parameters: Parameters
    step: StepCost
    checkpointed: StepCost | None
    samples: Mapping[str, int]
    disk: Mapping[str, int]
    prepared: bool
    gpus: Mapping[str, OnGPU]
    measured: Mapping[str, Any] | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def image_flops(self) -> float:
        """FLOPs of the training step of one sample, with its share of the update, which every device computes."""
        return self.step.flops / self.inputs.rows + self.step.update * self.devices / self.batch

    @property
    def total_flops(self) -> float | None:
        """FLOPs of all training steps."""
        return None if self.steps is None else self.image_flops * self.batch * self.steps

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; bytes and FLOPs are whole numbers."""
        kinds = {"plain": self.step, "checkpointed": self.checkpointed}
        memory = {name: memory_of(step) for name, step in kinds.items() if step is not None}
        return {
            "name": self.name,
            "steps": self.steps,
            "batch": self.batch,
            "devices": self.devices,
            "micro_batch": self.inputs.rows,
            "tokens": list(self.inputs.tokens),
            "parameters": {"trained": dict(self.parameters.trained), "frozen": dict(self.parameters.frozen)},
            "step_flops": round(self.image_flops * self.batch),
            "total_flops": self.total_flops,
            "sample_flops": dict(self.samples),
            "memory": memory,
            "disk": dict(self.disk),
            "disk_is_read": self.prepared,
            "gpus": {name: _known(vars(entry)) for name, entry in self.gpus.items()},
            "measured": self.measured,
            "notes": list(self.notes),
        }


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """NaN, which JSON has not, as None: hours of a run that only a clock ends."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def memory_of(step: StepCost) -> dict[str, int]:
    """Bytes by part, and their peak."""
    memory = step.memory
    return {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "averages": memory.averages,
        "activations": memory.step,
        "peak": memory.kept + memory.step,
    }


class Estimator:
    """Estimates the runs of an experiment; those that differ in nothing that costs are counted once.

    Args:
        assumptions: what is not known from the experiment.
        measure: images/s of a checked experiment on this machine; None does not measure.
    """

    def __init__(
        self, assumptions: Assumptions, measure: Callable[[Plan, Inputs], Mapping[str, Any]] | None = None
    ) -> None:
        self.assumptions, self.measure = assumptions, measure
        self._known: dict[str, Estimate] = {}

    def estimate(self, name: str, plan: Plan) -> Estimate:
        """The cost of one run, of :func:`t2ikit.run.experiment.check`.

        Raises:
            ConfigError: a constructor refuses its arguments, or the model cannot be counted.
        """
        costs = {key: value for key, value in plan.config.items() if key not in ("run", "loggers", "seed_everything")}
        for part in ("model", "data"):
            costs[part] = {**costs[part], "init_args": {**costs[part].get("init_args", {}), "seed": None}}
        key = json.dumps(costs, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._estimate(name, plan)
        return replace(self._known[key], name=name)

    def _estimate(self, name: str, plan: Plan) -> Estimate:
        data = plan.data.build(USER_ERRORS)
        if not isinstance(data, DataModule):
            raise ConfigError(f"data: {type(data).__name__} is no t2ikit.data.DataModule, whose records a plan counts")
        model = imagined_model(plan)
        stored = stored_manifest(data)
        captions = self._tokens(data, stored, len(widths(model.denoiser)))
        bucket = data.length_bucket
        devices = _devices(plan.trainer)
        rows = max(data.batch_size // devices // int(plan.trainer.get("accumulate_grad_batches") or 1), 1)
        arrays = shapes_of(model.objective.needs.arrays, stored)
        inputs = Inputs(rows, tuple(-(-count // bucket) * bucket for count in captions), arrays)
        step = count_step(plan, inputs)
        checkpointed = count_step(plan, inputs, checkpointed=True) if can_checkpoint(plan) else None
        samples, notes = self._samples(plan, inputs)
        image = record_bytes(model, captions)
        prepared = stored is not None
        counts = self._counts(data, prepared)
        sets = self._disk(plan, data, image, counts, prepared)
        estimate = Estimate(
            name,
            _steps(plan.trainer, max(sum(count // data.batch_size for count in counts["train"]), 1)),
            data.batch_size,
            devices,
            inputs,
            count_parameters(model),
            step,
            checkpointed,
            samples,
            sets,
            prepared,
            {},
            None if self.measure is None else self.measure(plan, inputs),
            notes,
        )
        narrow = "16" in str(plan.trainer.get("precision"))
        gpus = {gpu.name: self._on(gpu, estimate, narrow) for gpu in self.assumptions.gpus}
        return replace(estimate, gpus=gpus)

    def _tokens(self, data: DataModule, stored: Manifest | None, encoders: int) -> tuple[int, ...]:
        """Tokens of a caption by each text encoder."""
        given = self.assumptions.tokens
        if given:
            if len(given) != encoders:
                raise ConfigError(f"--tokens: {len(given)} numbers, but the denoiser has {encoders} text encoders")
            return given
        if stored is not None and isinstance(data.folder, Path):
            return longest_captions(RecordSet(first_set(data)))
        return tuple(TOKENS[min(index, 1)] for index in range(encoders))

    def _samples(self, plan: Plan, inputs: Inputs) -> tuple[dict[str, int], list[str]]:
        """FLOPs of an image of every snapshot; those that are sampled alike are counted once."""
        flops: dict[str, int] = {}
        notes = []
        known: dict[str, int] = {}
        for name, component in plan.callbacks.items():
            if not issubclass(component.cls, Snapshot):
                continue
            try:
                sampling: Sampling = component.build(USER_ERRORS).sampling
                candidates = 1 if sampling.search is None else sampling.search.candidates
                key = repr((sampling.steps, sampling.method, sampling.guidance, candidates))
                if key not in known:
                    known[key] = count_sample(plan, sampling, inputs)
                flops[name] = known[key]
            except USER_ERRORS as error:
                notes.append(f"snapshot {name}: {error}")
        return flops, notes

    def _counts(self, data: DataModule, prepared: bool) -> dict[str, list[int]]:
        """Records of each aspect bucket of a split: as the data says, else as the experiment or ImageNet does."""
        options = {name: getattr(data, option.partition(".")[2]) for name, option in data.size_options.items()}
        counts = {name: [count] for name, count in {**IMAGES, **options}.items()}
        if prepared:
            counts["train"] = [manifest.count for manifest in data.manifests]
        if self.assumptions.images is not None:
            counts["train"] = [self.assumptions.images]
        return counts

    @staticmethod
    def _disk(
        plan: Plan, data: DataModule, image: int, counts: Mapping[str, Sequence[int]], prepared: bool
    ) -> dict[str, int]:
        """Bytes of every set: of the folders that are there, else of so many images."""
        streams = [str(c.build(USER_ERRORS).folder) for c in plan.callbacks.values() if issubclass(c.cls, CutMix)]
        names = ["train", "val", *streams]
        if prepared:
            return {name: folder_bytes(Path(data.folder) / name) for name in names}
        return {name: image * sum(counts.get(name, counts["train"])) for name in names}

    def _on(self, gpu: GPU, estimate: Estimate, narrow: bool) -> OnGPU:
        rate = (gpu.tflops if narrow else gpu.tflops_fp32) * 1e12 * self.assumptions.utilisation / estimate.image_flops
        hours = math.nan if estimate.steps is None else estimate.steps * estimate.batch / rate / 3600
        most = estimate.batch // estimate.devices
        fits = [
            None if step is None else _largest(step, most, gpu.gigabytes * 1e9 * USABLE)
            for step in (estimate.step, estimate.checkpointed)
        ]
        return OnGPU(rate, hours, hours * gpu.watts / 1000, fits[0] or 0, fits[1])


def _largest(step: StepCost, most: int, limit: float) -> int:
    """The largest divisor of ``most`` whose step fits."""
    for rows in range(most, 0, -1):
        if most % rows == 0 and step.memory.peak(rows) <= limit:
            return rows
    return 0


def _devices(trainer: Mapping[str, Any]) -> int:
    devices = trainer.get("devices", 1)
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) and devices > 0 else 1
    return count * int(trainer.get("num_nodes") or 1)


def _steps(trainer: Mapping[str, Any], steps_an_epoch: int) -> int | None:
    steps, epochs = int(trainer.get("max_steps") or -1), int(trainer.get("max_epochs") or -1)
    ends = [steps, epochs * steps_an_epoch]
    return min((end for end in ends if end >= 0), default=None)
