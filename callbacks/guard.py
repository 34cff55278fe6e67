"""Refuses the update of a step whose loss or gradient is not finite: the run stops before it, or goes on without it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from t2ikit import ranks
from t2ikit.callbacks.debug_bundle import StepFacts, write_bundle
from t2ikit.callbacks.late_verdict import LateVerdict
from t2ikit.callbacks.monitors import look_at_training
from t2ikit.stopping import Diverged

SKIPPED = "train/skipped_steps"
MOST_RECORDS = 20
LATE = 50
"""Optimizer steps between two looks on an accelerator."""


class NonFiniteGuard(L.Callback):
    """Looks at losses and gradients of all ranks between the backward pass and the update of every step.

    A bad step changes nothing: weights, moments, averages and learning rate stay those of before it. What happens then
    is the ``policy``:

    - ``stop`` ends the run with a debug bundle, ``debug/step-00001234/`` in the run folder, which holds the state of
      before the step, its records, and norms by layer; ``t2ikit replay`` makes the step again.
    - ``skip`` goes on with the next step, and logs ``train/skipped_steps``. The skipped step counts as a step: the
      learning rate of step k stays that of step k. With more of them than the bounds allow the run stops as above.

    The verdict is made on the device. To refuse an update the host must wait for it, once a step. On the CPU this costs
    nothing. On an accelerator the guard therefore looks every 50 steps only, and no step waits: it names the first bad
    step and its records then, all checkpoints are from before, and going on from the last one with
    ``every_n_steps: 1`` stops before the bad update and writes the bundle.

    With a gradient scaler (16-bit floats, ``16-mixed``) gradients are left to it, since it skips overflows by design.

    Args:
        every_n_steps: optimizer steps between two looks; 1 refuses the update itself, and looks at gradients too. None:
            1 on the CPU and with ``skip``, else 50; every checkpoint looks as well.
        policy: ``stop`` or ``skip``.
        max_skipped: skipped steps of a whole run, over all resumes; one more stops it.
        max_in_a_row: skipped steps one after the other; one more stops it.

    Raises:
        Diverged: names the optimizer step (1 is the first), the records with a loss that is not finite on
            whichever rank, and the bundle.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        policy: Literal["stop", "skip"] = "stop",
        max_skipped: int = 100,
        max_in_a_row: int = 5,
    ) -> None:
        super().__init__()
        if policy not in ("stop", "skip"):
            raise ValueError(f"callbacks.guard: policy must be stop or skip, not {policy!r}")
        if policy == "skip" and every_n_steps not in (None, 1):
            raise ValueError("callbacks.guard: policy skip looks at every step: leave out every_n_steps")
        bounds = {"every_n_steps": every_n_steps, "max_skipped": max_skipped, "max_in_a_row": max_in_a_row}
        for name, value in bounds.items():
            if value is not None and value < 1:
                raise ValueError(f"callbacks.guard: {name} must be at least 1, got {value}")
        self.every_n_steps = every_n_steps
        self.policy = policy
        self.max_skipped = max_skipped
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self.in_a_row = 0
        self._late: LateVerdict | None = None
        self._facts: StepFacts | None = None
        self._bad: Tensor | None = None
        self._step, self._every = 0, 1
        self._restore: Callable[[], None] | None = None

    @property
    def state_key(self) -> str:
        return "NonFiniteGuard"

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row} if self.skipped else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict.get("skipped", 0), state_dict.get("in_a_row", 0)

    def logged_names(self, experiment: Any) -> Collection[str]:
        """What it may log."""
        return (SKIPPED,) if self.policy == "skip" else ()

    # ------------------------------------------------------------------ the verdict, on the device

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        every = self.every_n_steps or (1 if self.policy == "skip" or pl_module.device.type == "cpu" else LATE)
        if every > 1:
            self._late, self._every = LateVerdict(), every
            return
        self._facts = StepFacts(pl_module)
        self._guard(trainer, pl_module, trainer.optimizers[0])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step + 1  # also where several batches make one step
        if self._facts is None:
            return
        if self._facts.step != trainer.global_step + 1:  # the first micro-batch of its step
            self._facts.begin(trainer.global_step + 1)
            self._bad = None
        self._facts.micro_batches += 1

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self._facts is None:
            return
        bad = ~torch.isfinite(loss.detach())
        self._bad = bad if self._bad is None else self._bad | bad

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if self._facts is None:
            return
        assert self._bad is not None
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._facts.gradient_norms = torch.stack(torch._foreach_norm(gradients)).float() if gradients else None
        if self._facts.gradient_norms is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._bad = self._bad | ~torch.isfinite(self._facts.gradient_norms).all()
        if ranks.count() > 1:
            verdict = self._bad.to(torch.int32)
            distributed.all_reduce(verdict, op=distributed.ReduceOp.MAX)
            self._bad = verdict > 0

    # ------------------------------------------------------------------ every few steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._late is None:
            return
        self._late.add(self._step, outputs["step"])
        if trainer.global_step >= self._step and trainer.global_step % self._every == 0:
            self._late.look(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._late is not None:
            self._late.look(trainer)

    # ------------------------------------------------------------------ what follows from it

    def _guard(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Puts the look before the update into ``optimizer.step``, as schedules of the learning rate count there."""
        update = optimizer.step

        @wraps(update)
        def step(closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            if self._bad is not None and bool(self._bad):
                self._refuse(trainer, pl_module)
                return loss
            self.in_a_row = 0
            update()
            return loss

        optimizer.step = step  # type: ignore[method-assign]
        self._restore = lambda: setattr(optimizer, "step", update)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._restore is not None:
            self._restore()
            self._restore = None

    def _refuse(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Counts a bad step and lets the run go on, or writes the bundle and stops it."""
        assert self._facts is not None
        step = self._facts.step
        if self.policy == "skip" and self.skipped < self.max_skipped and self.in_a_row < self.max_in_a_row:
            self.skipped += 1
            self.in_a_row += 1
            pl_module.skipped_step = step
            values = {SKIPPED: float(self.skipped)}
            pl_module.run_log.log(trainer, values, step)
            look_at_training(trainer, pl_module, values)
            return
        report = self._facts.report(trainer)
        bundle = write_bundle(trainer, self._facts, report)
        rows = [row for rows in report["records"] for row in rows if not row["finite"]]
        names = [row["record"] for row in rows[:MOST_RECORDS]] + (["..."] if len(rows) > MOST_RECORDS else [])
        what = f"the loss is not finite at optimizer step {step}; records (source[index]): {', '.join(names)}"
        if not rows:
            layers = [name for name, norms in report["norms"].items() if not norms["gradient_is_finite"]]
            what = f"a gradient is not finite at optimizer step {step}; first of {len(layers)}: {', '.join(layers[:3])}"
        again = "" if bundle is None else f" `t2ikit replay {bundle}` makes the step again."
        bounds = f" {self.skipped} steps were skipped before." if self.policy == "skip" else ""
        raise Diverged(
            f"{what}. No update was made.{bounds}{again} The last checkpoint is from before; lower the learning rate "
            "or trainer.gradient_clip_val, or look at these records with `t2ikit prepare check`"
        )
