"""What a run says of its model at the start."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from torch import nn

from t2ikit.run.parameters import ParameterCounts, described, with_parameter_counts


class Parts(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.denoiser = nn.Sequential(nn.Linear(1000, 2, bias=False), nn.Linear(3, 1, bias=False).requires_grad_(False))
        self.teacher = nn.Linear(9, 1).requires_grad_(False)
        self.act = nn.GELU()


def test_each_part_has_a_line_and_its_frozen_share() -> None:
    parts = Parts()
    assert described(parts.denoiser) == "2.0 K parameters, 3 of them frozen"
    assert described(parts.teacher) == "10 parameters, all frozen"
    assert described(nn.Linear(9, 1)) == "10 parameters"
    assert described(parts.act) == ""


def test_the_lines_are_said_at_the_start_of_training_only(caplog: pytest.LogCaptureFixture) -> None:
    trainer, counts = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), ParameterCounts()
    with caplog.at_level(logging.INFO):
        counts.setup(trainer, Parts(), "predict")
        assert "parameters" not in caplog.text
        counts.setup(trainer, Parts(), "fit")
    said = [record.getMessage() for record in caplog.records if "parameters" in record.getMessage()]
    assert said == [
        "denoiser: Sequential, 2.0 K parameters, 3 of them frozen",
        "teacher: Linear, 10 parameters, all frozen",
    ]


@pytest.mark.parametrize("given", [{}, {"enable_model_summary": True}, {"enable_model_summary": None}])
def test_it_takes_the_place_of_lightnings_table(given: dict[str, Any]) -> None:
    (counts,) = with_parameter_counts([], given)
    assert isinstance(counts, ParameterCounts)
    assert given["enable_model_summary"] is False


def test_a_summary_that_was_asked_for_stays_and_none_is_none() -> None:
    summary, options = ModelSummary(max_depth=2), {"enable_model_summary": True}
    assert with_parameter_counts([summary], options) == [summary]
    assert options == {"enable_model_summary": True}
    assert with_parameter_counts([], {"enable_model_summary": False}) == []
