"""Bounds on x_0 from their definitions."""

from __future__ import annotations

import pytest
import torch

from t2ikit.diffusion.thresholds import threshold_function


def _bounded(threshold: tuple[str, float], x0: torch.Tensor) -> torch.Tensor:
    function = threshold_function(threshold)
    assert function is not None
    return function(x0)


def test_clamp() -> None:
    x0 = torch.tensor([-3.0, -0.5, 0.0, 2.0]).reshape(1, 1, 2, 2)
    assert _bounded(("clamp", 1.2), x0).flatten().tolist() == pytest.approx([-1.2, -0.5, 0.0, 1.2])


def test_dynamic_scales_a_sample_by_its_own_quantile() -> None:
    torch.manual_seed(0)
    x0 = torch.randn(3, 2, 8, 8, dtype=torch.float64) * torch.tensor([0.1, 2.0, 5.0]).reshape(3, 1, 1, 1)
    got = _bounded(("dynamic", 0.9), x0)
    torch.testing.assert_close(got[0], x0[0])
    for row in (1, 2):
        bound = max(1.0, float(torch.quantile(x0[row].abs(), 0.9)))
        torch.testing.assert_close(got[row], x0[row].clamp(-bound, bound) / bound)


def test_per_channel() -> None:
    torch.manual_seed(0)
    x0 = 3 * torch.randn(2, 3, 8, 8, dtype=torch.float64)
    got = _bounded(("per_channel", 0.995), x0)
    for row in range(2):
        for channel in range(3):
            alone = x0[row : row + 1, channel : channel + 1]
            torch.testing.assert_close(got[row, channel], _bounded(("dynamic", 0.995), alone)[0, 0])


def test_none_and_wrong_ones() -> None:
    assert threshold_function("none") is None
    for wrong in (
        "clamp",
        ("clamp", 0.0),
        ("dynamic", 1.5),
        ("per_channel", 0.0),
        ("static", 1.0),
        1.0,
        ("clamp", "1"),
    ):
        with pytest.raises(ValueError, match="threshold"):
            threshold_function(wrong)  # type: ignore[arg-type]
