"""Order of convergence and marginal law of every solver on a normal distribution, whose ODE has a closed solution."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ikit.diffusion import GaussianDiffusion, Process, RectifiedFlow, sample
from t2ikit.diffusion.solvers import DDPM, SOLVERS, Grid, Solver

MEAN, STD = 0.7, 0.5
VP = (
    GaussianDiffusion("linear"),
    GaussianDiffusion("cosine_simple", prediction="v"),
    GaussianDiffusion("shifted_cosine", log_snr_shift=1.0),
)
FLOWS = (RectifiedFlow(), RectifiedFlow(shift=2.0))


def _exact(process: Process, x: Tensor) -> Tensor:
    """(x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant along the ODE."""
    start, end = (process.scales(torch.tensor(t, dtype=torch.float64)) for t in (1.0, 0.0))
    spread = [(alpha**2 * STD**2 + sigma**2).sqrt() for alpha, sigma in (start, end)]
    return end[0] * MEAN + spread[1] / spread[0] * (x - start[0] * MEAN)


def _error(make: Any, process: Process, method: str, steps: int) -> float:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(-1, 1, 1, 1)
    denoiser = make.normal(process, MEAN, STD)
    got = sample(denoiser, process, x, make.text(0.0), steps=steps, method=method, threshold="none")
    return float((got - _exact(process, x)).abs().max())


@pytest.mark.parametrize("process", [*VP, *FLOWS], ids=repr)
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(make: Any, process: Process, method: str, order: int) -> None:
    coarse, fine = (_error(make, process, method, steps) for steps in (80, 320))
    assert math.log(coarse / fine) / math.log(4) == pytest.approx(order, abs=0.2)
    assert fine < (0.01 if order == 1 else 5e-4)


@pytest.mark.parametrize("process", [*VP[1:], *FLOWS], ids=repr)
def test_ddim_is_of_first_order(make: Any, process: Process) -> None:
    coarse, fine = (_error(make, process, "ddim", steps) for steps in (40, 160))
    assert math.log(coarse / fine) / math.log(4) == pytest.approx(1.0, abs=0.3)


def test_ddim_with_the_linear_schedule_converges(make: Any) -> None:
    errors = [_error(make, GaussianDiffusion(), "ddim", steps) for steps in (16, 64, 256)]
    assert errors[0] > 1.8 * errors[1] > 3 * errors[2]


@pytest.mark.parametrize("process", [VP[0], FLOWS[0]], ids=repr)
def test_second_order_beats_ddim_250_in_a_fifth_of_the_steps(make: Any, process: Process) -> None:
    many = _error(make, process, "ddim", 250)
    assert _error(make, process, "dpmpp_2m", 50) < many
    assert _error(make, process, "heun", 25) < many


@pytest.mark.parametrize("process", [VP[0], VP[1], FLOWS[0]], ids=repr)
@pytest.mark.parametrize("method", ["ddim", "ddpm", "euler", "heun", "dpmpp_2m"])
def test_marginal_law(make: Any, process: Process, method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 10_000
    noise = torch.randn(1, 1, rows, 1, generator=generator, dtype=torch.float64)
    generators = [torch.Generator().manual_seed(1)]
    got = sample(
        make.normal(process, MEAN, STD),
        process,
        noise,
        make.text(0.0),
        steps=200,
        method=method,
        threshold="none",
        generators=generators,
    ).flatten()
    assert float(got.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(rows) + 0.003)
    # Ancestral steps leave out the variance of x_0 given x, an error of first order.
    assert float(got.std()) == pytest.approx(STD, rel=0.05 if method == "ddpm" else 0.02)
    standard = (got - got.mean()) / got.std()
    assert float(standard.pow(3).mean()) == pytest.approx(0.0, abs=0.08)
    assert float(standard.pow(4).mean()) == pytest.approx(3.0, abs=0.2)


def test_every_method_ends_finite_with_an_infinite_log_snr(make: Any) -> None:
    """gamma(0) = 1 of the linear schedule, and alpha(1) = 0 of a flow, in fp32 and in a single step too."""
    x = torch.randn(3, 1, 2, 2)
    for process in (VP[0], FLOWS[0]):
        for method in ("ddim", "ddpm", "euler", "heun", "dpmpp_2m", "dpm++2m"):
            for steps in (1, 2, 7):
                got = sample(make.normal(process), process, x, make.text(0.0), steps=steps, method=method)
                assert got.dtype == torch.float32 and torch.isfinite(got).all(), (process, method, steps)


def test_euler_on_a_flow_is_ddim(make: Any) -> None:
    flow = RectifiedFlow(shift=2.0)
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    results = [sample(make.normal(flow), flow, x, make.text(0.0), steps=7, method=each) for each in ("euler", "ddim")]
    torch.testing.assert_close(results[0], results[1])


def test_ddpm_adds_noise_between_two_bounds() -> None:
    process = GaussianDiffusion("shifted_cosine", "v", log_snr_shift=-2.0)
    grid = Grid.of(process, process.times(4))
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)

    def added(solver: Solver) -> float:
        """What the first step adds to an x of 0 whose x_0 is 0, for a normal number of 1."""
        return float(next(iter(solver.steps(lambda x, node, step: (zero, zero), grid, zero, lambda x: one))))

    ratio = grid.alpha[0] / grid.alpha[1]
    between = grid.sigma[0] ** 2 - (ratio * grid.sigma[1]) ** 2  # variance of q(x_t | x_s)
    low, high = math.sqrt(between) * grid.sigma[1] / grid.sigma[0], math.sqrt(between)
    assert added(DDPM(0.0)) == added(SOLVERS["ddpm"]) == pytest.approx(low)
    assert added(DDPM(1.0)) == pytest.approx(high)
    assert added(DDPM(0.2)) == pytest.approx(low**0.8 * high**0.2) and DDPM(0.2).name == "DDPM(variance=0.2)"
    for variance in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match="variance must be between 0 and 1"):
            DDPM(variance)


def test_the_upper_bound_is_right_for_standard_normal_data(make: Any) -> None:
    noise = torch.randn(1, 1, 10_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    deviations = []
    for variance in (0.0, 1.0):
        options: dict[str, Any] = {"threshold": "none", "generators": [torch.Generator().manual_seed(1)]}
        denoiser = make.normal(VP[1], 0.0, 1.0)
        got = sample(denoiser, VP[1], noise, make.text(0.0), steps=8, method=DDPM(variance), **options)
        deviations.append(float(got.std()))
    # The last of the steps adds none: x_0 has variance alpha^2 of the step before.
    expected = float(VP[1].scales(torch.tensor(1 / 8, dtype=torch.float64))[0])
    assert deviations[1] == pytest.approx(expected, rel=0.02) and deviations[0] < 0.95 * expected
