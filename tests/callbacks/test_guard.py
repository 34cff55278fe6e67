"""The guard's verdict: what it looks at, and when it waits. Runs that stop or skip are in tests/test_divergence.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from t2ikit.callbacks import NonFiniteGuard


def verdict(losses: list[float], gradient: float = 1.0, scaler: Any = None) -> bool:
    """Of one step with a micro-batch for each loss."""
    module = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    plugin = SimpleNamespace(scaler=scaler)
    trainer = SimpleNamespace(global_step=4, optimizers=[optimizer], precision_plugin=plugin)
    guard = NonFiniteGuard(every_n_steps=1)
    guard.on_train_start(trainer, module)
    for loss in losses:
        guard.on_train_batch_start(trainer, module, None, 0)
        guard.on_before_backward(trainer, module, torch.tensor(loss))
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    guard.on_before_optimizer_step(trainer, module, optimizer)
    return bool(guard._bad)


def test_a_loss_of_any_micro_batch_and_a_gradient_count() -> None:
    assert not verdict([0.1, 0.2])
    assert verdict([float("nan"), 0.2]) and verdict([0.1, float("inf")])
    assert verdict([0.1], gradient=float("nan")) and verdict([0.1], gradient=float("inf"))


def test_gradients_are_left_to_a_gradient_scaler() -> None:
    assert not verdict([0.1], gradient=float("inf"), scaler=object())
    assert verdict([float("nan")], scaler=object())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"policy": "go"}, "policy must be stop or skip"), ({"max_skipped": 0}, "max_skipped must be at least 1")],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NonFiniteGuard(**options)
