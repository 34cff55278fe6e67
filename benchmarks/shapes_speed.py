"""CPU-seconds of a training step on shapes, by part: ``python -m benchmarks shapes_speed``.

The shipped experiments as they are, on one rank: its batch, its data and augmentations, its objective. "Text" and
"image tokens" are the forward pass that has a gradient; the backward pass of both and the pass of self-conditioning
stand by themselves. Where texts of about one length are computed together, a step without that stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.base import Benchmark, Measurement, Settings, cpu_seconds
from t2ikit.batch import Batch
from t2ikit.callbacks import AugmentationCallback, ByTextLength
from t2ikit.config.compose import compose
from t2ikit.config.files import shipped_experiments
from t2ikit.config.merging import Override
from t2ikit.data.datamodule import DataModule
from t2ikit.module import TextToImage
from t2ikit.run.experiment import check

_EXPERIMENTS = ("quickstart", "shapes_cad_i_cmall", "shapes_dit_i")
_SMALL = {"data.count": 2048, "data.val_count": 16}
_DECAY = 0.995


class _Step:
    """A training step of one rank of an experiment, part by part."""

    def __init__(self, name: str, settings: Settings, parts: int | None = None) -> None:
        overrides = [Override(key, str(value)) for key, value in _SMALL.items()]
        plan = check(compose(shipped_experiments() / f"{name}.yaml", overrides))
        ranks = plan.trainer["devices"]
        plan.config["data"]["init_args"]["batch_size"] //= 16 * ranks if settings.small else ranks
        self.module: TextToImage = plan.model.build()
        self.data: DataModule = check(plan.config).data.build()
        self.data.prepare_data()
        self.by_text_length = False
        for component in plan.callbacks.values():
            if issubclass(component.cls, AugmentationCallback):
                callback = component.build()
                if isinstance(callback, ByTextLength):
                    callback = callback if parts is None else ByTextLength(parts)
                    self.by_text_length = callback.parts > 1
                callback.register(self.data, self.module)
        self.data.setup()
        self.module.unconditional = self.data.unconditional()
        self.batches: Iterator[Any] = iter(self.data.train_dataloader())
        self.parts: tuple[Batch, ...] = self.ready()
        self.rows = sum(map(len, self.parts))
        self.parameters = [p for p in self.module.optimized.parameters() if p.requires_grad]
        self.optimizer = self.module.optimizer_factory.build(self.module.optimized)
        self.averages = [p.detach().clone() for p in self.parameters]
        self.contexts = self.text()

    def ready(self) -> tuple[Batch, ...]:
        """Reads a batch, draws its noise levels and posteriors, and augments it."""
        return self.module.on_after_batch_transfer(next(self.batches), 0)

    def whole(self) -> None:
        """Forward and backward pass, clipping, optimizer and EMA."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.update()

    def next(self) -> None:
        """Reads a batch and makes the whole step."""
        self.parts = self.ready()
        self.whole()

    def loss(self) -> torch.Tensor:
        """Every forward pass of the step."""
        objective, denoiser, rng = self.module.objective, self.module.denoiser, self.module.rng
        losses = [objective(denoiser, part, objective.draw(part, rng, 0)).loss_B for part in self.parts]
        return torch.cat(losses).mean()

    def text(self) -> list[Any]:
        """The text, forward."""
        return [self.module.denoiser.encode_text(part.text) for part in self.parts]

    def image(self) -> list[Any]:
        """The image tokens, forward."""
        denoiser = self.module.denoiser
        return [
            denoiser(part.latents, self.module.process.level(part.t, denoiser.level_kind), context)
            for part, context in zip(self.parts, self.contexts, strict=True)
        ]

    @torch.no_grad()
    def image_without_gradient(self) -> object:
        """The pass of self-conditioning over every sample."""
        return self.image()

    def update(self) -> None:
        """Clipping, optimizer, EMA."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - _DECAY)


def _measure(settings: Settings) -> Iterator[Measurement]:
    for name in _EXPERIMENTS:
        step = _Step(name, settings)
        step.whole()
        rows = step.rows
        parts: dict[str, Callable[[], object]] = {
            "data": step.ready,
            "text, forward": step.text,
            "image tokens, forward": step.image,
            "all forward passes": step.loss,
            "whole step without data": step.whole,
        }
        if step.image()[0].state is not None:
            parts["first pass of self-conditioning, all rows"] = step.image_without_gradient
        parts["clipping, optimizer, EMA"] = step.update
        seconds = cpu_seconds(parts, repeats=1 if settings.small else 7)
        for part, value in seconds.items():
            yield Measurement(f"{name}, {rows} samples: {part}", 1000 * value, "ms")
        total = seconds["data"] + seconds["whole step without data"]
        yield Measurement(f"{name}: samples of a CPU-second", rows / total, "samples/s")
        if step.by_text_length:
            undivided = _Step(name, settings, parts=1)
            both = cpu_seconds({"parts": step.next, "whole": undivided.next}, repeats=1 if settings.small else 15)
            yield Measurement(
                f"{name}, {rows} samples: step in {len(step.parts)} parts of about one text length",
                1000 * both["parts"],
                "ms",
                "the same in one part",
                1000 * both["whole"],
            )


BENCHMARKS = [
    Benchmark("shapes_speed", "CPU-seconds of a training step on shapes, by part", _measure),
]
