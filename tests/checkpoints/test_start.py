"""What a start reads of the checkpoint beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from t2ikit.checkpoints import start
from t2ikit.denoisers import Denoiser
from tiny import cad_i


def test_a_constructor_that_reads_the_value_of_a_tensor_says_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*_: Any) -> Denoiser:
        torch.linspace(0.0, 1.0, 3)[1].item()  # as of many rates of stochastic depth; impossible without values
        return cad_i()

    monkeypatch.setattr(start, "stored_denoiser", built)
    grid = cad_i().grid
    state = torch.random.get_rng_state()
    assert start._grid_of_positions({}, Path("a.ckpt"), None) == grid
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_class_that_cannot_be_built_says_no_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Denoiser:
        raise RuntimeError("gone")

    monkeypatch.setattr(start, "stored_denoiser", refused)
    assert start._grid_of_positions({}, Path("a.ckpt"), None) is None
