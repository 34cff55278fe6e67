from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from t2ikit.callbacks import NonFiniteGuard


def trainer_at(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, datamodule=SimpleNamespace(source_names=["raw", "cmall"]))


def outputs(losses: list[float]) -> dict[str, torch.Tensor]:
    count = len(losses)
    return {
        "loss_B": torch.tensor(losses),
        "source": torch.tensor([0, 1, 0][:count]),
        "index": torch.arange(70, 70 + count),
    }


def test_finite_losses_pass() -> None:
    guard = NonFiniteGuard(every_n_steps=1)
    for step in range(1, 4):
        guard.on_train_batch_end(trainer_at(step), None, outputs([0.1, 2.0, 3.0]), None, 0)


def test_the_first_bad_step_and_its_records_are_named_later() -> None:
    guard = NonFiniteGuard(every_n_steps=10)
    guard.on_train_batch_end(trainer_at(3), None, outputs([0.1, float("nan"), 0.2]), None, 0)
    guard.on_train_batch_end(trainer_at(4), None, outputs([float("inf"), 1.0, 1.0]), None, 0)
    with pytest.raises(FloatingPointError, match=r"step 3; records .*: cmall\[71\]\."):
        guard.on_train_batch_end(trainer_at(10), None, outputs([1.0, 1.0, 1.0]), None, 0)


def test_no_checkpoint_is_written_after_the_loss_broke() -> None:
    guard = NonFiniteGuard(every_n_steps=1000)
    guard.on_train_batch_end(trainer_at(7), None, outputs([float("nan")]), None, 0)
    with pytest.raises(FloatingPointError, match="step 7"):
        guard.on_save_checkpoint(trainer_at(7), None, {})


def test_a_last_smaller_batch_is_watched_too() -> None:
    guard = NonFiniteGuard(every_n_steps=1000)
    guard.on_train_batch_end(trainer_at(1), None, outputs([1.0, 1.0, 1.0]), None, 0)
    guard.on_train_batch_end(trainer_at(2), None, outputs([1.0, float("nan")]), None, 0)
    with pytest.raises(FloatingPointError, match=r"step 2; .*cmall\[71\]"):
        guard.check(trainer_at(2))
