"""What a run says of its model at the start."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn


class ParameterCounts(Callback):
    """Says how many parameters each part of the model has, a line each; ``trainer.enable_model_summary`` is its switch.

    In place of Lightning's table, whose FLOPs are 0 unless a forward pass of the module was counted: ``t2ikit plan``
    counts those of a step.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a strategy shards them."""
        if stage == "fit":
            for name, part in pl_module.named_children():
                if counts := described(part):
                    rank_zero_info(f"{name}: {type(part).__name__}, {counts}")


def with_parameter_counts(callbacks: list[Callback], options: dict[str, Any]) -> list[Callback]:
    """The callbacks and :class:`ParameterCounts`, unless the options of the Trainer or a ModelSummary say otherwise.

    Lightning's own table is switched off in ``options`` where this one takes its place.
    """
    if options.get("enable_model_summary") is False or any(isinstance(one, ModelSummary) for one in callbacks):
        return callbacks
    options["enable_model_summary"] = False
    return [*callbacks, ParameterCounts()]


def described(part: nn.Module) -> str:
    """Such as "431 M parameters" or "86.6 M parameters, all frozen"; empty without any."""
    every = sum(parameter.numel() for parameter in part.parameters())
    frozen = sum(parameter.numel() for parameter in part.parameters() if not parameter.requires_grad)
    if every == 0:
        return ""
    shares = {0: "", every: ", all frozen"}
    whole = f"{get_human_readable_count(every).strip()} parameters"
    return whole + shares.get(frozen, f", {get_human_readable_count(frozen).strip()} of them frozen")
