"""How a classifier is judged: its losses and hits on a set, and which weights of a training are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from t2ikit import ranks
from t2ikit.classify.classes import ClassList
from t2ikit.classify.results import TestScore
from t2ikit.classify.streams import ClassBatch

Select = Literal["lowest", "last"]


@dataclass(frozen=True)
class Judged:
    """A network on a set.

    Attributes:
        loss: mean cross-entropy.
        correct: pictures whose class was found, by label.
        counts: pictures by label.
    """

    loss: float
    correct: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Share of the pictures whose class was found."""
        return sum(self.correct) / max(sum(self.counts), 1)

    def score(self, classes: ClassList) -> TestScore:
        """As it goes into the results, without classes of which the set has no picture."""
        pairs = zip(classes.classes, self.correct, self.counts, strict=True)
        per_class = {entry.key: (correct, count) for entry, correct, count in pairs if count}
        return TestScore(self.accuracy, sum(self.counts), per_class)


def training_losses(network: nn.Module, mix: nn.Module | None, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """One step of a training: cross-entropy loss_B [B], on mixed images where there is a ``mix``.

    Args:
        network: in training mode.
        mix: torchvision's ``v2.CutMix``, which gives images and soft labels, or None.
        images: [B, 3, S, S].
        labels: [B] int64.
        seed: of the box of CutMix and of dropped layers, which take from the global generator.
    """
    torch.manual_seed(seed)
    if mix is not None:
        images, labels = mix(images, labels)
    return functional.cross_entropy(network(images), labels, reduction="none")


@torch.no_grad()
def judge(network: nn.Module, batches: Iterable[ClassBatch], classes: int, device: torch.device) -> Judged:
    """Judges a network on the batches of all ranks, each with its share; every rank must call it.

    Where a picture has several crops, their logits are averaged. Mode and weights of the network stay as they are.

    Args:
        network: on its device.
        batches: of this rank, with images [B, K, 3, S, S].
        classes: number of them.
        device: of the network.
    """

    def work() -> np.ndarray:
        sums = torch.zeros(3, classes, dtype=torch.float64, device=device)
        for batch in batches:
            ranks.stop_if_asked()
            moved = batch.to(device, non_blocking=True)
            logits = crop_logits(network, moved.images)
            loss_B = functional.cross_entropy(logits, moved.labels, reduction="none")
            hits_B = logits.argmax(1) == moved.labels
            for row, values in enumerate((loss_B, hits_B, torch.ones_like(loss_B))):
                sums[row].index_add_(0, moved.labels, values.double())
        return sums.cpu().numpy()

    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        loss, correct, counts = sum(ranks.together(work), np.zeros((3, classes)))
    finally:
        for module, mode in modes.items():
            module.training = mode
    mean = float(loss.sum() / max(counts.sum(), 1))
    return Judged(mean, tuple(map(int, correct)), tuple(map(int, counts)))


def crop_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Mean logits [B, classes] over the crops of images [B, K, 3, S, S]."""
    logits: Tensor = network(images.flatten(0, 1)).float()
    return logits.unflatten(0, images.shape[:2]).mean(1)


@dataclass
class Selection:
    """Which weights of a training are tested.

    Attributes:
        rule: "lowest": those of the lowest validation loss, of equal ones the first; "last": those at the end.
        losses: validation loss by step.
        step: of the weights that are kept; None before there are any.
        weights: the kept weights, on the CPU; none for "last", which are the present ones.
    """

    rule: Select
    losses: dict[int, float] = field(default_factory=dict)
    step: int | None = None
    weights: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.rule not in ("lowest", "last"):
            raise ValueError(f"model.select must be lowest or last, not {self.rule!r}")

    def add(self, step: int, loss: float, network: nn.Module) -> None:
        """Takes the validation loss of the present weights; a loss that is not a number is never the lowest."""
        best = math.inf if self.step is None else self.losses[self.step]
        self.losses[step] = loss
        if self.rule == "lowest" and loss < best:
            self.step = step
            self.weights = {name: value.detach().to("cpu", copy=True) for name, value in network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"losses": self.losses, "step": self.step, "weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state` gave."""
        self.losses = {int(step): float(loss) for step, loss in state["losses"].items()}
        self.step, self.weights = state["step"], state["weights"]

    def refuse_none(self) -> None:
        """Refuses to test weights where no validation loss is a number.

        Raises:
            FloatingPointError: says so.
        """
        if self.rule == "lowest" and self.step is None:
            raise FloatingPointError(
                f"none of the {len(self.losses)} validation losses is finite, so there are no weights to test: lower "
                "model.optimizer.lr, or look at the pictures of the validation set"
            )
