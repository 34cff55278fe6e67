"""When a checkpoint is written besides every so many steps, and which ones stay besides the newest."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Iterable
from typing import Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from t2ikit import ranks
from t2ikit.callbacks.monitors import Names, snapshot_of

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(text: str) -> float:
    """The seconds of a time such as ``30 min``.

    Raises:
        ValueError: no number above 0, or no unit of s, min, h and d.

    Example:
        >>> seconds_of("1.5 h")
        5400.0
    """
    match = re.fullmatch(r"\s*([0-9]+|[0-9]*\.[0-9]+)\s*([a-z]+)\s*", text)
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise ValueError(f"callbacks.checkpoint: every must be a time such as 30 min (s, min, h, d), got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


class StepClock:
    """Whether so much time has passed since the last checkpoint, with one answer for all ranks.

    The clock of the first rank decides. Ranks ask it together, on the host, and not at every step: each answer says at
    which step to ask again, which is after half of the time that is left, as long as steps took before.

    Args:
        seconds: between two checkpoints.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since, self._from, self._ask = 0.0, 0, 0

    def start(self, step: int) -> None:
        """Counts from now; every rank calls it at the same step."""
        self._since, self._from, self._ask = time.monotonic(), step, step + 1

    def is_due(self, step: int) -> bool:
        """Whether the time is over; every rank must call it at the end of every step."""
        if step < self._ask:
            return False
        due, self._ask = ranks.from_first(lambda: self._answer(step))
        return due

    def _answer(self, step: int) -> tuple[bool, int]:
        passed = time.monotonic() - self._since
        left = self.seconds - passed
        steps_left = left / max(passed, 1e-6) * (step - self._from)
        return left <= 0, step + max(1, int(steps_left / 2))


class BestScores:
    """The best checkpoints by one score.

    Args:
        monitor: name of the score, as it is logged.
        mode: "min", "max", or None where a snapshot of the experiment says it.
        count: how many are best.
    """

    def __init__(self, monitor: str, mode: str | None, count: int) -> None:
        self.monitor, self.mode, self.count = monitor, mode, count
        self.scores: dict[int, float] = {}
        self.every_n_steps: int | None = None
        self._snapshot: str | None = None

    def find(self, callbacks: Iterable[Any]) -> None:
        """Looks for the snapshot that gives the score, which says whether less is better and at which steps it comes.

        Raises:
            ValueError: there is none, and ``mode`` is not given.
        """
        snapshots = {callback.name: callback for callback in callbacks if hasattr(callback, "evaluation")}
        self._snapshot = snapshot_of(self.monitor, snapshots)
        if self._snapshot is not None:
            snapshot = snapshots[self._snapshot]
            self.every_n_steps = snapshot.every_n_steps
            less = snapshot.evaluation.less_is_better(self.monitor.removeprefix(f"{self._snapshot}/"))
            self.mode = self.mode or ("min" if less else "max")
        elif self.mode is None:
            raise ValueError(f"say by mode (min or max) whether less of {self.monitor} is better")

    def check(self, experiment: Any, every_n_steps: int | None) -> None:
        """Refuses a score that nothing gives, or that is not logged at the steps of the checkpoints; see :meth:`find`.

        Args:
            experiment: trainer, model, data and named callbacks.
            every_n_steps: optimizer steps between two checkpoints.

        Raises:
            ValueError: names the options.
        """
        names = Names.of(experiment)
        names.refuse_unknown(self.monitor)
        self.find(experiment.callbacks.values())
        interval = experiment.trainer.log_every_n_steps
        if self.monitor in names.training and (every_n_steps is None or every_n_steps % interval):
            raise ValueError(
                f"every_n_steps is {every_n_steps}; it must be a multiple of trainer.log_every_n_steps ({interval}), "
                f"since a checkpoint has a {self.monitor} only where it is logged"
            )

    def look(self, trainer: Any, module: Any) -> bool:
        """Takes the score of the present step, where there is one now; whether there is.

        Raises:
            ValueError: the snapshot before the first step has no score of this name.
        """
        step = trainer.global_step
        if self._snapshot is None:
            if not trainer.validating or self.monitor not in trainer.callback_metrics:
                return False
            score = float(trainer.callback_metrics[self.monitor])
        else:
            history = module.run_log.scores.get(self._snapshot, {})
            name = self.monitor.removeprefix(f"{self._snapshot}/")
            # Steps without it are of before the snapshot got this score, on a resume.
            self.scores.update({past: scores[name] for past, scores in history.items() if name in scores})
            if step not in history:
                return False
            if name not in history[step]:
                message = (
                    f"callbacks.checkpoint: the snapshot {self._snapshot} has no score {name}; monitor one of "
                    f"{', '.join(f'{self._snapshot}/{score}' for score in history[step])}"
                )
                if step == 0:
                    raise ValueError(message)
                warnings.warn(message, stacklevel=2)  # does not end a run that has been trained for so long
                return False
            score = history[step][name]
        self.scores[step] = score
        return True

    def look_at_training(self, trainer: Any, module: Any, due: bool) -> int | None:
        """Takes a score that no snapshot gives, at the end of a step; of which step it is, None where there is none.

        Args:
            trainer: of the run.
            module: which it trains.
            due: whether this step gets a checkpoint; only then a value that the module itself has logged is read, which
                waits for the device.
        """
        if self._snapshot is not None:
            return None
        log = getattr(module, "run_log", None)
        if log is not None and self.monitor in log.steps:
            step, value = log.steps[self.monitor], float(log.latest[self.monitor])
        elif due and self.monitor in trainer.callback_metrics and not is_overridden("validation_step", module):
            step, value = trainer.global_step, float(trainer.callback_metrics[self.monitor])
        else:
            return None
        known = self.scores.get(step)
        if known == value or (known is not None and math.isnan(known) and math.isnan(value)):
            return None
        self.scores[step] = value
        return step

    def steps(self, present: Iterable[int]) -> set[int]:
        """The best of the steps that have a checkpoint; without a finite score a step is none of them.

        Scores of other steps are forgotten: what is logged every few steps would fill the checkpoints.
        """
        present = set(present)
        self.scores = {step: score for step, score in self.scores.items() if step in present}
        scored = [step for step in present if math.isfinite(self.scores.get(step, math.nan))]
        return set(sorted(scored, key=self.scores.__getitem__, reverse=self.mode == "max")[: self.count])
