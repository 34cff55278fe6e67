"""What a training step of an experiment costs: parameters, FLOPs, bytes; counted, without data or weights.

The step is the one that the Trainer makes, of made-up records: :class:`Step` makes it in :func:`~t2ikit.run.counting.
imagined`, where nothing is computed, and on a device, where it is timed.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from t2ikit.batch import StoredBatch, StoredText, Text, Texts
from t2ikit.callbacks import EMA, AugmentationCallback
from t2ikit.config.errors import ConfigError
from t2ikit.data.datamodule import DataModule
from t2ikit.denoisers import Denoiser
from t2ikit.learner import Averages
from t2ikit.module import TextToImage
from t2ikit.records.states import GROUP
from t2ikit.run.counting import LiveBytes, flops, imagined, without_weights
from t2ikit.run.experiment import USER_ERRORS, Plan

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
WHOLE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


@dataclass(frozen=True)
class Inputs:
    """What a micro-batch holds.

    Attributes:
        rows: B, samples.
        tokens: L, to which the text of each text encoder is padded.
        arrays: shape of further arrays of a record that the objective reads, by name.
    """

    rows: int
    tokens: tuple[int, ...]
    arrays: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step on one device.

    Attributes:
        weights: parameters and buffers, frozen ones too.
        gradients: of what is trained.
        optimizer: its state.
        averages: of the EMA callback.
        step: the most that lives beside these during a step: activations and whatever is temporary.
        counted: during the step.
        rows: of its micro-batch.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    step: int
    counted: LiveBytes
    rows: int

    @property
    def kept(self) -> int:
        """What lives between two steps."""
        return self.weights + self.gradients + self.optimizer + self.averages

    def peak(self, rows: int) -> int:
        """Bytes of the whole step with so many rows in a micro-batch."""
        return self.counted.peak(rows / self.rows)


@dataclass(frozen=True)
class StepCost:
    """Of one micro-batch with its update.

    Attributes:
        flops: of both passes of the micro-batch.
        update: FLOPs of clipping, optimizer and averages, once a step on every device.
        memory: of both.
    """

    flops: int
    update: int
    memory: Memory


def build_model(plan: Plan) -> TextToImage:
    """The model of an experiment, in whatever way tensors are made at present.

    Raises:
        ConfigError: a constructor refuses its arguments, or it is no text-to-image model.
    """
    model = plan.model.build(USER_ERRORS)
    if not isinstance(model, TextToImage):
        raise ConfigError(f"model: {type(model).__name__} makes no images; a plan is one of t2ikit.module.TextToImage")
    whole = WHOLE.get(str(plan.trainer.get("precision")))
    return model if whole is None else model.to(whole)


def imagined_model(plan: Plan) -> TextToImage:
    """The same without weights, for use inside :func:`~t2ikit.run.counting.imagined`."""
    with torch.device("meta"):
        model = build_model(plan)
    without_weights(model)
    model.compiled = None
    return model


def widths(denoiser: Denoiser) -> tuple[int, ...]:
    """Width of the states of each text encoder."""
    return (denoiser.text_dim,) if isinstance(denoiser.text_dim, int) else tuple(denoiser.text_dim)


def stored_batch(model: TextToImage, inputs: Inputs, device: torch.device, slot: int = 0) -> StoredBatch:
    """Made-up records as the loader hands them over; ``slot`` is that of the first."""
    rows, (channels, height, width) = inputs.rows, model.denoiser.input_shape
    texts = {}
    for index, (columns, length) in enumerate(zip(widths(model.denoiser), inputs.tokens, strict=True)):
        count = rows * length
        states = torch.ones(count, columns, dtype=torch.int8, device=device)
        scales = torch.ones(count, -(-columns // GROUP), dtype=torch.float16, device=device)
        # The width of all pooled vectors together is known, and no other.
        pooled_dim = model.denoiser.pooled_dim if index == 0 else 0
        pooled = torch.ones(rows, pooled_dim, dtype=torch.float16, device=device) if pooled_dim else None
        positions, lengths = torch.arange(count, device=device), np.full(rows, length)
        texts[str(index)] = StoredText(states, scales, positions, rows, length, GROUP, pooled, lengths)
    pixels = model.space.kind == "pixels"
    shape = (rows, channels, height, width) if pixels else (rows, 2, channels, height, width)
    image = torch.ones(shape, dtype=torch.uint8 if pixels else torch.float16, device=device)
    arrays = {name: torch.ones(rows, *axes, dtype=torch.float16, device=device) for name, axes in inputs.arrays.items()}
    slots = torch.arange(rows, device=device)
    return StoredBatch(image, texts, (slots + 0.5) / rows, torch.zeros_like(slots), slots, slot, arrays)


def empty_prompt(denoiser: Denoiser, device: torch.device) -> Texts:
    """One row, one token."""
    texts = []
    for index, columns in enumerate(widths(denoiser)):
        pooled = torch.zeros(1, denoiser.pooled_dim, device=device) if denoiser.pooled_dim and index == 0 else None
        texts.append(Text(torch.zeros(1, 1, columns, device=device), torch.ones(1, 1, device=device).bool(), pooled))
    return texts[0] if len(texts) == 1 else tuple(texts)


class Step:
    """One micro-batch and the update, as the Trainer makes them.

    Args:
        model: on the device.
        trainer: options of the experiment.
        decays: of the averages; none for a run without them.
        inputs: of the micro-batch.
        device: where it is computed.
        batch_size: samples of a step on all devices, of which its slots follow.
    """

    def __init__(
        self,
        model: TextToImage,
        trainer: Mapping[str, Any],
        decays: Sequence[float],
        inputs: Inputs,
        device: torch.device,
        batch_size: int = 1,
    ) -> None:
        self.model, self.inputs, self.device, self.batch_size = model.train(), inputs, device, batch_size
        self.number = 0
        self.accumulate = int(trainer.get("accumulate_grad_batches") or 1)
        self.clip = trainer.get("gradient_clip_val")
        self.clip_each = trainer.get("gradient_clip_algorithm") == "value"
        self.dtype = AUTOCAST.get(str(trainer.get("precision")))
        model.unconditional = empty_prompt(model.denoiser, device)
        self.trained = [p for p in model.optimized.parameters() if p.requires_grad]
        self.optimizer = model.optimizer_factory.build(model.optimized)
        self.averages = Averages(model.network, decays) if decays else None

    def autocast(self) -> AbstractContextManager[Any]:
        """What the precision of the Trainer wraps a step in."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, dtype=self.dtype)

    def backward(self, number: int = 0) -> None:
        """Both passes of a micro-batch of a step; the gradients of the step before live until the loss is there."""
        stored = stored_batch(self.model, self.inputs, self.device, number * self.batch_size)
        parts = self.model.on_after_batch_transfer(stored, 0)
        with self.autocast():
            loss: Tensor = self.model.training_step(parts, 0)["loss"] / self.accumulate
        if self.accumulate == 1:
            self.optimizer.zero_grad()
        loss.backward()

    def update(self) -> None:
        """Clipping, the optimizer, the averages."""
        if self.clip and self.clip_each:
            nn.utils.clip_grad_value_(self.trained, self.clip)
        elif self.clip:
            nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        if self.averages is not None:
            self.averages.update()

    def __call__(self) -> None:
        self.backward()
        self.update()

    def whole(self) -> None:
        """All micro-batches of the next step, and the update."""
        for _ in range(self.accumulate):
            self.backward(self.number)
        self.update()
        self.number += 1


def decays_of(plan: Plan) -> list[float]:
    """The decay of every average that the experiment keeps."""
    averages = [component.build(USER_ERRORS) for component in plan.callbacks.values() if issubclass(component.cls, EMA)]
    return [decay for average in averages for decay in average.decays]


def augment(plan: Plan, model: TextToImage) -> tuple[Sequence[int], int]:
    """Registers the transforms of the experiment's augmentations; a stored stream, which needs its data, costs none.

    Returns:
        Numbers of steps that together cost what all do on average, and the samples of a step on all devices.
    """
    data: DataModule = plan.data.build(USER_ERRORS)
    steps: Sequence[int] = (0,)
    for component in plan.callbacks.values():
        if issubclass(component.cls, AugmentationCallback):
            augmentation = component.build(USER_ERRORS)
            try:
                augmentation.register(data, model)
            except (FileNotFoundError, ValueError):  # its set is not prepared yet, or does not fit: a run refuses that
                continue
            steps = max(steps, augmentation.unlike_steps(), key=len)
    return steps, data.batch_size


def count_step(plan: Plan, inputs: Inputs, checkpointed: bool = False) -> StepCost:
    """FLOPs and bytes of a micro-batch and its update, counted on tensors without data.

    Where steps have unlike shapes, FLOPs are the mean over some of them and bytes the most of any.

    Raises:
        ConfigError: as :func:`build_model`, or the model asks a tensor for its value.
    """
    model = imagined_model(plan)
    steps, batch_size = augment(plan, model)
    if checkpointed:
        model.denoiser.checkpoint_blocks = True
    live = LiveBytes()
    try:
        with imagined(), live:
            for tensor in (*model.parameters(), *model.buffers()):
                live.hold(tensor)
            weights = live.fixed
            step = Step(model, plan.trainer, decays_of(plan), inputs, torch.device("cpu"), batch_size)
            averages = live.fixed + live.rows - weights
            for parameter in step.trained:
                parameter.grad = torch.empty_like(parameter)
                parameter.register_post_accumulate_grad_hook(lambda p: live.hold(cast(Tensor, p.grad)))
            gradients = live.fixed + live.rows - weights - averages
            step.optimizer.step()
            kept = live.fixed + live.rows
            optimizer = kept - weights - averages - gradients
            live.restart()
            passes = round(sum(flops(partial(step.backward, number)) for number in steps) / len(steps))
            update = flops(step.update)
    except (RuntimeError, NotImplementedError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"model: a step of it cannot be counted without its data: {line}") from error
    memory = Memory(weights, gradients, optimizer, averages, live.peak() - kept, live, inputs.rows)
    return StepCost(passes, update, memory)


def can_checkpoint(plan: Plan) -> bool:
    """Whether the denoiser has the option ``checkpoint_blocks``, and it is off."""
    with torch.device("meta"):
        denoiser = build_model(plan).denoiser
    return "checkpoint_blocks" in inspect.signature(type(denoiser)).parameters and not denoiser.checkpoint_blocks


@dataclass(frozen=True)
class Parameters:
    """Numbers of a network, by part: those that are trained, and those that are frozen."""

    trained: Mapping[str, int]
    frozen: Mapping[str, int]


def count_parameters(model: TextToImage) -> Parameters:
    """By the parts that the denoiser names; "other" for the rest of it, "objective" for what is trained beside it."""
    counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    prefixes = {prefix: part for part, names in model.denoiser.parts.items() for prefix in names}
    named = [(name, parameter) for name, parameter in model.denoiser.named_parameters()]
    for name, parameter in [*named, *((None, parameter) for parameter in model.objective.parameters())]:
        part = "objective" if name is None else next((p for x, p in prefixes.items() if name.startswith(x)), "other")
        count = counts[0 if parameter.requires_grad else 1]
        count[part] = count.get(part, 0) + parameter.numel()
    return Parameters(*counts)
