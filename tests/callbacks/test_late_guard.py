"""The guard that looks every few steps: what it names, when it looks, and that every rank stops for one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from t2ikit import ranks
from t2ikit.batch import StepOutput
from t2ikit.callbacks import NonFiniteGuard


def trainer_at(step: int, others: int = 0) -> SimpleNamespace:
    """At ``step``, beside ``others`` ranks whose loss is not finite."""
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor + others)
    return SimpleNamespace(
        global_step=step, strategy=strategy, datamodule=SimpleNamespace(source_names=["raw", "cmall"])
    )


def late(every_n_steps: int) -> NonFiniteGuard:
    guard = NonFiniteGuard(every_n_steps)
    guard.on_train_start(trainer_at(0), SimpleNamespace(device=torch.device("cpu")))
    return guard


def batch(guard: NonFiniteGuard, step: int, losses: list[float], stepped: bool = True, others: int = 0) -> None:
    """One batch of optimizer step ``step``, which ends with it if it ``stepped``."""
    guard.on_train_batch_start(trainer_at(step - 1), None, None, 0)
    guard.on_train_batch_end(trainer_at(step if stepped else step - 1, others), None, outputs(losses), None, 0)


def outputs(losses: list[float]) -> dict[str, StepOutput]:
    count = len(losses)
    records = SimpleNamespace(source=torch.tensor([0, 1, 0][:count]), index=torch.arange(70, 70 + count))
    return {"step": StepOutput(torch.tensor(losses), {}, (records,))}


def test_finite_losses_pass() -> None:
    guard = late(2)
    for step in range(1, 4):
        batch(guard, step, [0.1, 2.0, 3.0])


def test_the_first_bad_step_and_its_records_are_named_later() -> None:
    guard = late(10)
    batch(guard, 3, [0.1, float("nan"), 0.2])
    batch(guard, 4, [float("inf"), 1.0, 1.0])
    with pytest.raises(FloatingPointError, match=r"step 3; records .*: cmall\[71\]\."):
        batch(guard, 10, [1.0, 1.0, 1.0])


def test_no_checkpoint_is_written_after_the_loss_broke() -> None:
    guard = late(1000)
    batch(guard, 7, [float("nan")])
    with pytest.raises(FloatingPointError, match="step 7"):
        guard.on_save_checkpoint(trainer_at(7), None, {})


def test_a_last_smaller_batch_is_watched_too() -> None:
    guard = late(1000)
    batch(guard, 1, [1.0, 1.0, 1.0])
    batch(guard, 2, [1.0, float("nan")])
    with pytest.raises(FloatingPointError, match=r"step 2; .*cmall\[71\]"):
        guard.on_save_checkpoint(trainer_at(2), None, {})


def test_the_step_is_the_one_that_the_batch_is_part_of_under_accumulation() -> None:
    guard = late(2)
    batch(guard, 1, [1.0], stepped=False)
    batch(guard, 1, [1.0])
    batch(guard, 2, [float("nan")], stepped=False)
    with pytest.raises(FloatingPointError, match="step 2;"):
        batch(guard, 2, [1.0])


def test_it_looks_once_a_step_and_only_every_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, looks = late(3), []
    monkeypatch.setattr(guard._late, "look", lambda trainer: looks.append(trainer.global_step))
    for step in range(1, 8):
        batch(guard, step, [1.0], stepped=False)
        batch(guard, step, [1.0])
    assert looks == [3, 6]


def test_a_rank_stops_for_the_loss_of_another_and_names_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = late(2)
    # The other rank's came a step later and one more a step earlier: the first step counts.
    monkeypatch.setattr(ranks, "together", lambda work: [work(), (2, [(0, 5)]), (1, [(1, 8), (0, 9)])])
    batch(guard, 1, [1.0, 2.0], others=2)
    with pytest.raises(FloatingPointError, match=r"step 1; .*: cmall\[8\], raw\[9\]\."):
        batch(guard, 2, [1.0, 2.0], others=2)


def test_by_default_an_accelerator_waits_for_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = NonFiniteGuard()
    guard.on_train_start(trainer_at(0), SimpleNamespace(device=torch.device("cuda")))
    assert guard._every == 50
    with pytest.raises(ValueError, match="leave out every_n_steps"):
        NonFiniteGuard(10, policy="skip")
