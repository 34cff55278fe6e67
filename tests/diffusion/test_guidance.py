"""The rule of guidance: where it is on, how strong, and what a projection keeps."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from t2ikit.diffusion import Denoising, GaussianDiffusion, Guidance, Projection, sample


def test_first_step_is_unguided_by_default() -> None:
    assert [Guidance(3.0).weights(k, 4, 0.0)[0] for k in range(4)] == [0.0, 3.0, 3.0, 3.0]
    assert Guidance(3.0, start_step=-1).weights(0, 4, 0.0) == (3.0, 0.0)
    assert [Guidance(3.0, start_step=2).weights(k, 4, 0.0)[0] for k in range(4)] == [0.0, 0.0, 0.0, 3.0]


def test_linear_guidance_grows_to_twice_the_weight() -> None:
    weights = [Guidance(3.0, schedule="linear").weights(k, 10, 0.0)[0] for k in range(10)]
    assert weights == pytest.approx([2 * 3.0 * k / 10 for k in range(10)])


def test_interval_is_in_log_snr() -> None:
    rule = Guidance(2.0, interval=(-1.0, 3.0), latent_weight=0.5)
    assert rule.weights(5, 9, 0.0) == (2.0, 0.5)
    assert rule.weights(5, 9, -1.1) == rule.weights(5, 9, 3.1) == (0.0, 0.0)


def test_wrong_rules_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="interval"):
        Guidance(1.0, interval=(2.0, 2.0))
    with pytest.raises(ValueError, match="schedule"):
        Guidance(1.0, schedule="cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="either"):
        Guidance(1.0, latent_weight=1.0, weaker=make.normal())
    with pytest.raises(ValueError, match="momentum"):
        Projection(momentum=1.0)
    for norm in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="max_norm"):
            Projection(max_norm=norm)
    for deviation in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="offset_noise is a standard deviation"):
            Denoising(offset_noise=deviation)


def test_projection_splits_along_the_conditional_estimate() -> None:
    torch.manual_seed(0)
    difference, conditional = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    orthogonal = Projection(parallel=0.0).project(difference, conditional)
    dots = (orthogonal * conditional).sum(dim=(1, 2, 3))
    torch.testing.assert_close(dots, torch.zeros_like(dots), atol=1e-12, rtol=0)
    torch.testing.assert_close(Projection(parallel=1.0).project(difference, conditional), difference)
    half = Projection(parallel=0.5).project(difference, conditional)
    torch.testing.assert_close(half, 0.5 * (orthogonal + difference))


def test_projection_cuts_the_norm_and_sums_the_past() -> None:
    torch.manual_seed(0)
    difference, conditional = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    cut = Projection(parallel=1.0, max_norm=2.5).project(difference, conditional)
    norms = cut.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 2.5))
    small = Projection(parallel=1.0, max_norm=1e3).project(difference, conditional)
    torch.testing.assert_close(small, difference)
    rule = Projection(momentum=-0.5)
    first = rule.running(difference, None)
    torch.testing.assert_close(rule.running(conditional, first), conditional - 0.5 * difference)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": float("nan")}, "guidance weight must be finite"),
        ({"latent_weight": float("inf")}, "guidance latent_weight must be finite"),
        ({"weight": 1.0, "start_step": -7}, "start_step must be at least -1"),
    ],
)
def test_numbers_that_are_none_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**values)
    for name in ("parallel", "max_norm", "momentum"):
        with pytest.raises(ValueError, match=name):
            Projection(**{name: float("nan")})


@pytest.mark.parametrize(
    ("steps", "rule", "said"),
    [
        (1, Guidance(2.0), "none of the 1 steps: it acts at steps k > start_step .0., counted from 0; change"),
        (4, Guidance(2.0, start_step=3), "none of the 4 steps: it acts at steps k > start_step .3."),
        (4, Guidance(2.0, interval=(50.0, 60.0)), "and at levels in interval .50.0, 60.0. of log-SNR; change"),
        (4, Guidance(2.0, start_step=2), None),
        (1, Guidance(2.0, start_step=-1), None),
        (1, Guidance(0.0), None),
    ],
)
def test_guidance_that_can_never_act_is_said(make: Any, steps: int, rule: Guidance, said: str | None) -> None:
    noise = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    arguments = (make.bookkeeping(), GaussianDiffusion(), noise, make.text(1.0, 2.0), make.text(0.0))
    if said is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sample(*arguments, steps=steps, guidance=rule)
        return
    with pytest.warns(UserWarning, match=said):
        sample(*arguments, steps=steps, guidance=rule)
