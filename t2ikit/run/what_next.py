"""The commands that people want at the end of a run, with its true paths."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2ikit.callbacks import Snapshot
from t2ikit.checkpoints.runs import newest_checkpoint
from t2ikit.checkpoints.saving import step_in_name
from t2ikit.module import TextToImage
from t2ikit.run.experiment import Plan

_PROMPT = "a large red circle"


def what_next(plan: Plan, folder: Path, command: str | None) -> Iterator[str]:
    """Sampling, evaluating, training longer; of a run that keeps no checkpoint nothing.

    Args:
        plan: the experiment.
        folder: of the run, which is as it is after it.
        command: that trained it; None where it is trained as a part of something larger, a stage or a cell.
    """
    newest = newest_checkpoint(folder)
    if newest is None or plan.trainer.get("fast_dev_run"):
        return
    where = shlex.quote(str(folder))
    if issubclass(plan.model.cls, TextToImage):
        yield f't2ikit sample {where} --prompt "{_PROMPT}" --out samples'
        snapshots = {name: entry for name, entry in plan.callbacks.items() if issubclass(entry.cls, Snapshot)}
        scored = [name for name, entry in snapshots.items() if entry.node().get("init_args", {}).get("metrics")]
        for name in [*scored, *snapshots][:1]:
            yield f"t2ikit evaluate {where} --snapshot {name}"
    if command is not None and (longer := _longer(shlex.split(command), plan.config["trainer"], step_in_name(newest))):
        yield f"{shlex.join(longer)} --resume {where}"


def _longer(words: list[str], trainer: dict[str, Any], step: int) -> list[str]:
    """The command with an option that doubles the length of its run; nothing for one that only a clock ends."""
    names = ("max_steps", "max_epochs")
    for name in names if step >= int(trainer.get("max_steps") or -1) else reversed(names):  # that which has ended it
        if int(trainer.get(name) or -1) > 0:
            option = f"--trainer.{name}"
            while option in words:  # with its value, which the new one replaces
                del words[words.index(option) : words.index(option) + 2]
            return [*words, option, str(2 * trainer[name])]
    return []
