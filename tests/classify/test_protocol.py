"""Judging a network, selecting weights, and the learning rate of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2ikit.classify import ClassFolders
from t2ikit.classify.protocol import Judged, Selection, judge
from t2ikit.optim import EpochCosine, epochs_factor


class Brightest(nn.Module):
    """Finds the class of the pictures of these tests: its channel is the brightest; the last class never."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x.mean((2, 3)) - torch.tensor([0.0, 0.0, 100.0])


@pytest.mark.parametrize("view", ["rgb", "texture"])
def test_a_network_is_judged_by_class(options: Callable[..., dict[str, object]], view: str) -> None:
    data = ClassFolders(**options(view=view, eval_batch_size=5))  # type: ignore[arg-type]
    network = Brightest().train()
    judged = judge(network, data.test_loader(data.sets.tests["real"]), 3, torch.device("cpu"))
    assert judged.correct == (4, 4, 0) and judged.counts == (4, 4, 4) and judged.accuracy == 2 / 3
    assert network.training and network.norm.training
    score = judged.score(data.class_list)
    assert score.images == 12 and list(score.per_class.values()) == [(4, 4), (4, 4), (0, 4)]


@pytest.mark.parametrize("count", [12, 1])
def test_two_ranks_judge_as_one(
    options: Callable[..., dict[str, object]], two_ranks: Callable[..., list[Any]], count: int
) -> None:
    data = ClassFolders(**options(eval_batch_size=2))  # type: ignore[arg-type]
    pictures = data.sets.tests["real"].rows(torch.arange(count).numpy())

    def work() -> Judged:
        return judge(Brightest(), data.test_loader(pictures), 3, torch.device("cpu"))

    [first, second], alone = two_ranks(work), work()
    assert first == second and first.correct == alone.correct and math.isclose(first.loss, alone.loss)


def test_the_lowest_validation_loss_is_selected_the_first_of_equal_ones() -> None:
    network = nn.Linear(1, 1)
    selection = Selection("lowest")
    for step, loss in ((10, math.nan), (20, 0.7), (30, 0.5), (40, 0.5), (50, math.nan), (60, 0.6)):
        with torch.no_grad():
            network.weight.fill_(step)
        selection.add(step, loss, network)
    assert selection.step == 30 and selection.weights is not None and selection.weights["weight"].item() == 30
    again = Selection("lowest")
    again.restore(selection.state())
    assert again.step == 30 and list(again.losses) == [10, 20, 30, 40, 50, 60]
    last = Selection("last")
    last.add(10, 0.5, network)
    assert last.step is None and last.weights is None
    last.refuse_none()
    broken = Selection("lowest")
    broken.add(10, math.nan, network)
    with pytest.raises(FloatingPointError, match="none of the 1 validation losses is finite"):
        broken.refuse_none()
    with pytest.raises(ValueError, match="lowest or last"):
        Selection("best")  # type: ignore[arg-type]


def rates(images: int, batch: int, epochs: int, counted: Callable[[float], int]) -> list[float]:
    """The factors of the steps that are made, where the schedule counts others."""
    total = epochs * counted(images / batch)
    return [EpochCosine(epochs, 5).factor(step, total) for step in range(1, epochs * math.ceil(images / batch) + 1)]


def test_the_learning_rate_is_that_of_the_paper() -> None:
    factors = rates(100_000, 1024, 80, math.ceil)
    assert (
        factors[0] == 1e-5
        and factors[490] == 1.0
        and factors[-1] == max(1e-8, 0.5 * (1 + math.cos(math.pi * 7349 / 7350)))
    )
    assert factors[245] == 0.5 * (1 - 1e-5) + 1e-5
    assert epochs_factor(7840, 490, 7840) == 1e-8


def test_the_released_rate_counts_too_few_steps() -> None:
    factors = rates(100_000, 1024, 80, math.floor)
    assert min(factors) == 1e-8 and math.isclose(factors[-1], 3e-4, rel_tol=0.05)
    assert round(rates(2000, 1024, 80, math.floor)[-1], 2) == 0.99
    assert rates(1000, 1024, 80, math.floor)[:4] == [1.0, 1e-8, 1.0, 1e-8]


def test_bad_rates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epochs must be at least 1 .* warmup_epochs at least 0; got 4 and -1"):
        EpochCosine(4, -1)
    assert math.isclose(EpochCosine(4, 5).factor(21, 20), 0.8, rel_tol=1e-5)  # a run that is shorter than its warm-up
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        EpochCosine(start_factor=2.0)
    with pytest.raises(ValueError, match=r"trainer\.max_epochs"):
        EpochCosine().factor(1, math.inf)
    assert EpochCosine(-1, 5).factor(6, 80) == 1.0  # a run that is limited by steps
