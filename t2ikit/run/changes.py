"""What differs between the experiment of a checkpoint and the one that goes on from it, and what of it is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from t2ikit.callbacks import EMA, AugmentationCallback, ByTextLength, CutMix
from t2ikit.checkpoints import read_weights
from t2ikit.checkpoints.runs import latest_config
from t2ikit.config.errors import ConfigError
from t2ikit.config.imports import find_class
from t2ikit.config.merging import flatten
from t2ikit.config.sweep import READING
from t2ikit.config.values import parse_stored
from t2ikit.data import DataModule
from t2ikit.data.resume import Continuation, check_allowed, refuse
from t2ikit.module import TextToImage
from t2ikit.run.experiment import Plan

# Of TextToImage: without effect on the numbers; and on a resume, where a start is not used and the hash of the space is
# compared.
FREE_OF_MODEL, COMPARED_OF_MODEL = ("model.compile", "model.noise_bins"), ("model.start", "model.space")
# Names of options of any data module, and of ours.
FREE_OF_DATA = ("num_workers", "pin_memory")
DECIDING_OF_TRAINER = (
    "precision",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "overfit_batches",
    "sync_batchnorm",
    "plugins",
)
ENDS_OF_TRAINER = ("max_steps", "min_steps", "max_epochs", "min_epochs", "max_time")


@dataclass(frozen=True)
class Change:
    """One key of the experiment that differs; ``init_args`` is left out of it, as on the command line.

    What an experiment does about a step that is not finite (``callbacks.guard``) decides nothing: a run that it has
    stopped goes on with ``policy: skip``, and until such a step comes all policies make the same steps.

    Attributes:
        key: of the value, or of the class if that differs.
        before: in the checkpoint.
        now: in this experiment.
        decides: whether the rest of the run would be another.
    """

    key: str
    before: Any
    now: Any
    decides: bool


class Changes(Callback):
    """The differences of a resume: refuses those of the experiment and of its data in one list.

    As a callback, since augmentations add their streams to the data in their ``setup``; the weights come after it.

    Args:
        plan: the experiment that goes on.
        checkpoint: from which; None for a new run, which differs from nothing.
        allow: keys that may differ.

    Raises:
        ConfigError: ``allow`` has a key that nothing is called.
    """

    def __init__(self, plan: Plan, checkpoint: Path | None, allow: Sequence[str]) -> None:
        self.plan, self.allow = plan, allow
        content = {} if checkpoint is None else read_weights(checkpoint, mmap=True)
        # Not the content, whose file would take its room on the disk until the run ends.
        self._data: dict[str, Any] | None = content.get(plan.data.cls.__qualname__)
        self.before = {} if checkpoint is None else _experiment(content, checkpoint)
        self.listed = differing(self.before, plan) if self.before else []
        try:
            check_allowed(allow, {_short(key) for node in (self.before, plan.config) for key, _ in flatten(node)})
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what differs and is not allowed; new decays of the averages are, where this passes.

        Raises:
            ValueError: lists it, with the options that let it pass.
        """
        deciding = [(c.key, f"{c.key} was {c.before!r} and is {c.now!r} now") for c in self.listed if c.decides]
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, DataModule) and self._data is not None:
            data.allowed = frozenset(self.allow)
            options = [c.key for c in self.listed if c.key.startswith("data.")]
            Continuation.from_state(self._data).check(data.continuation(), self.allow, deciding, options)
        else:
            refuse(deciding, self.allow)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, EMA) and self.before:  # without the earlier experiment nothing was compared
                callback.begin_new = True


def differing(before: dict[str, Any], plan: Plan, *, ended: bool = False) -> list[Change]:
    """What differs between an earlier experiment and that of ``plan``, and whether it would make another run.

    Args:
        before: the earlier experiment.
        plan: the present one.
        ended: the run has come to its end and nothing is loaded: where it ends, its start and its data count, too.
    """
    pairs = list(_pairs(before, plan.config))
    return [Change(key, old, new, _decides(key, before, plan, ended)) for key, old, new in pairs]


def _decides(key: str, before: Mapping[str, Any], plan: Plan, ended: bool) -> bool:
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if group == "model":
        free_of_model = FREE_OF_MODEL if ended else (*FREE_OF_MODEL, *COMPARED_OF_MODEL)
        return not (issubclass(plan.model.cls, TextToImage) and key.startswith(free_of_model))
    if group == "data":
        ours = issubclass(plan.data.cls, DataModule) and key != "data"
        free_of_data = READING if ours else FREE_OF_DATA
        return name not in free_of_data and (ended or not ours)  # a Continuation compares ours
    if group == "trainer":
        return name in DECIDING_OF_TRAINER or (ended and name in ENDS_OF_TRAINER)
    if group == "callbacks":
        cls = _callback(name, before, plan)
        if issubclass(cls, ByTextLength):  # it moves the rounding, as another number of devices does
            return False
        return issubclass(cls, (EMA, AugmentationCallback)) and (ended or not issubclass(cls, CutMix))  # or by its gate
    return key == "seed_everything"


def _callback(name: str, before: Mapping[str, Any], plan: Plan) -> type:
    """The class of a callback of either experiment; ``object`` for one that is not there any more."""
    if name in plan.callbacks:
        return plan.callbacks[name].cls
    with suppress(ConfigError):
        return find_class(before["callbacks"][name]["class_path"], f"callbacks.{name}.class_path", plan.origins)
    return object


def _experiment(content: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The experiment in a checkpoint; of a module that keeps none in it, the one beside it."""
    stored = content.get("experiment")
    with suppress(OSError, ValueError, yaml.YAMLError):
        stored = stored or parse_stored(latest_config(checkpoint.parent.parent).read_text())
    return stored if isinstance(stored, dict) else {}


def _pairs(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, before, now) of what differs; where a class differs it stands for its arguments."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        if before != now:
            yield _short(key), _name(before), _name(now)
    elif before.get("class_path") != now.get("class_path"):
        yield _short(key), _name(before), _name(now)
    else:
        for name in sorted({*before, *now}):
            yield from _pairs(before.get(name), now.get(name), f"{key}.{name}" if key else name)


def _name(node: Any) -> Any:
    return node["class_path"] if isinstance(node, Mapping) and "class_path" in node else node


def _short(key: str) -> str:
    """A key as it may be typed: without ``init_args``, and a class by the key of its node."""
    return ".".join(part for part in key.split(".") if part != "init_args").removesuffix(".class_path")
