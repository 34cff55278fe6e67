"""Schedules of the learning rate over optimizer steps, as factors of the base rate."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


def lr_factor(step: int, warmup: int, total: float, fraction: float = 0.7) -> float:
    """Linear warm-up, then a cosine that stops at ``fraction`` of its half wave.

    k / warmup up to step k = warmup; then (1 + cos(fraction pi (k - warmup) / (total - warmup))) / 2, which ends at
    0.206 for a fraction of 0.7.

    Args:
        step: number of the optimizer step, 1 for the first (0 counts as 1).
        warmup: steps of warm-up; 0 is none.
        total: steps of the run; the factor stays at its last value beyond.
        fraction: part of the half wave that is used.
    """
    k = max(step, 1)
    if k < warmup:
        return k / warmup
    progress = min((k - warmup) / (total - warmup), 1.0) if total > warmup else 0.0
    return 0.5 * (1.0 + math.cos(fraction * math.pi * progress))


class LearningRate(ABC):
    """A schedule of the learning rate, as a factor of the base rate."""

    @abstractmethod
    def factor(self, step: int, total_steps: float) -> float:
        """The factor at optimizer step ``step`` (1 is the first) of ``total_steps`` (infinite: a clock ends it)."""

    def remark(self, total_steps: int) -> str | None:
        """What is strange about the schedule in a run of ``total_steps``; None where nothing is."""
        return None


@dataclass
class WarmupCosine(LearningRate):
    """Linear warm-up, then a cosine that stops before its end; see :func:`lr_factor`.

    Attributes:
        warmup: optimizer steps of warm-up.
        fraction: part of the cosine's half wave that is used, in (0, 1].

    Raises:
        ValueError: a value out of range.
    """

    warmup: int = 5000
    fraction: float = 0.7

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction is the part of the cosine that is used, in (0, 1]; got {self.fraction}")

    def factor(self, step: int, total_steps: float) -> float:
        """See :func:`lr_factor`.

        Raises:
            ValueError: the run has no last step that the cosine could end at.
        """
        if math.isinf(total_steps):
            raise ValueError(
                "learning_rate: a cosine ends at the last step, and trainer.max_time alone sets none: set "
                "trainer.max_steps as well, or --model.learning_rate t2ikit.optim.Constant"
            )
        return lr_factor(step, self.warmup, total_steps, self.fraction)

    def remark(self, total_steps: int) -> str | None:
        """See :meth:`LearningRate.remark`."""
        return _of_long_warmup(self.warmup, total_steps)


@dataclass
class Constant(LearningRate):
    """A constant rate, after a linear warm-up.

    Attributes:
        warmup: optimizer steps of warm-up; 0 is none.

    Raises:
        ValueError: a negative ``warmup``.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def factor(self, step: int, total_steps: float) -> float:
        """min(1, step / warmup)."""
        return min(1.0, max(step, 1) / self.warmup) if self.warmup else 1.0

    def remark(self, total_steps: int) -> str | None:
        """See :meth:`LearningRate.remark`."""
        return _of_long_warmup(self.warmup, total_steps)


def epochs_factor(
    step: int, warmup: float, total: float, start_factor: float = 1e-5, least_factor: float = 1e-8
) -> float:
    """A linear warm-up from ``start_factor`` to 1, then half a cosine wave down to ``least_factor``.

    s / w (1 - start) + start up to s = w; then max(least, (1 + cos(pi (s - w) / (n - w))) / 2). Beyond n the wave rises
    again, as in the released code of SynthReal (arXiv 2602.19946), whose runs make more steps than it counts.

    Args:
        step: s, steps made before this one, from 0.
        warmup: w, steps.
        total: n, steps.
        start_factor: factor of the first step.
        least_factor: the smallest factor of the cosine.
    """
    if step < warmup:
        return step / max(1, warmup) * (1.0 - start_factor) + start_factor
    return max(least_factor, 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


@dataclass
class EpochCosine(LearningRate):
    """Some epochs of linear warm-up, then half a cosine wave to the end of the run; see :func:`epochs_factor`.

    Attributes:
        epochs: of the whole run (``trainer.max_epochs``); -1, of a run that is limited by steps, counts it as 80.
        warmup_epochs: of the warm-up; a shorter run stays in it.
        start_factor: factor of the first step.
        least_factor: the smallest factor of the cosine.

    Raises:
        ValueError: a value out of range.
    """

    epochs: int = 80
    warmup_epochs: int = 5
    start_factor: float = 1e-5
    least_factor: float = 1e-8

    def __post_init__(self) -> None:
        if (self.epochs < 1 and self.epochs != -1) or self.warmup_epochs < 0:
            raise ValueError(
                f"epochs must be at least 1 (it is that of trainer.max_epochs) and warmup_epochs at least 0; got "
                f"{self.epochs} and {self.warmup_epochs}"
            )
        if not (0.0 <= self.start_factor <= 1.0 and 0.0 <= self.least_factor <= 1.0):
            raise ValueError(
                f"start_factor and least_factor lie in [0, 1]; got {self.start_factor} and {self.least_factor}"
            )

    @property
    def _counted(self) -> int:
        return 80 if self.epochs == -1 else self.epochs

    def factor(self, step: int, total_steps: float) -> float:
        """See :func:`epochs_factor`; the warm-up takes its share of ``total_steps``.

        Raises:
            ValueError: the run has no last step that the cosine could end at.
        """
        if math.isinf(total_steps):
            raise ValueError("learning_rate: a cosine over epochs needs trainer.max_epochs")
        warmup = round(total_steps * self.warmup_epochs / self._counted)
        return epochs_factor(max(step, 1) - 1, warmup, total_steps, self.start_factor, self.least_factor)


def _check_warmup(warmup: int) -> None:
    if warmup < 0:
        raise ValueError(f"warmup counts optimizer steps, at least 0; got {warmup}")


def _of_long_warmup(warmup: int, total_steps: int) -> str | None:
    if warmup == 0 or warmup < total_steps:
        return None
    return (
        f"the learning rate rises for {warmup} steps, and the run has {total_steps}: it never leaves the warm-up; set "
        "model.init_args.learning_rate.init_args.warmup below trainer.max_steps"
    )
