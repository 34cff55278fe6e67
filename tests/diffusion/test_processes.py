"""Round trips between all parametrisations, levels, quantiles and grids, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jsonargparse
import pytest
import torch
from torch import Tensor

from t2ikit.diffusion import GaussianDiffusion, Process, RectifiedFlow
from t2ikit.diffusion.processes import Spacing
from t2ikit.diffusion.schedules import GammaSchedule

PROCESSES = (
    GaussianDiffusion("linear", "epsilon"),
    GaussianDiffusion("cosine_simple", "v"),
    GaussianDiffusion("shifted_cosine", "v", log_snr_shift=-2.0),
    GaussianDiffusion("sigmoid", "epsilon", tau=0.9),
    RectifiedFlow(),
    RectifiedFlow(shift=3.0, t_distribution="logit_normal"),
)


def _pair(rows: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, rows, 3, 4, 5, generator=generator, dtype=torch.float64)
    return x0, noise


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_split_undoes_target(process: Process) -> None:
    x0, noise = _pair()
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    x_t = process.add_noise(x0, noise, t)
    got = process.split(x_t, process.target(x0, noise, t), t)
    torch.testing.assert_close(got[0], x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got[1], noise, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(PROCESSES, 2)), ids=repr)
def test_round_trip_between_two_processes(one: Process, other: Process) -> None:
    """An output of one process, read as x_0 and noise, becomes the other's output at the same log-SNR, and back."""
    x0, noise = _pair()
    t = one.time(torch.linspace(-4.0, 4.0, 9, dtype=torch.float64))
    other_t = other.time(one.log_snr(t))
    torch.testing.assert_close(other.log_snr(other_t), one.log_snr(t), rtol=1e-9, atol=1e-9)
    x_t, output = one.add_noise(x0, noise, t), one.target(x0, noise, t)
    other_x = other.add_noise(*one.split(x_t, output, t), other_t)
    # The two x_t differ by the scale that makes the signal power plus noise power agree.
    scale = (other.scales(other_t)[0] / one.scales(t)[0]).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(other_x, scale * x_t, rtol=1e-9, atol=1e-9)
    other_output = other.target(*one.split(x_t, output, t), other_t)
    back = one.target(*other.split(other_x, other_output, other_t), t)
    torch.testing.assert_close(back, output, rtol=1e-8, atol=1e-8)


def test_closed_forms() -> None:
    x0, noise = _pair(1)
    t = torch.tensor([0.36], dtype=torch.float64)
    vp = GaussianDiffusion()
    torch.testing.assert_close(vp.add_noise(x0, noise, t), 0.8 * x0 + 0.6 * noise)
    torch.testing.assert_close(GaussianDiffusion(prediction="v").target(x0, noise, t), 0.8 * noise - 0.6 * x0)
    assert vp.target(x0, noise, t) is noise
    flow = RectifiedFlow()
    torch.testing.assert_close(flow.add_noise(x0, noise, t), 0.64 * x0 + 0.36 * noise)
    torch.testing.assert_close(flow.target(x0, noise, t), noise - x0)
    torch.testing.assert_close(flow.log_snr(t), 2 * torch.log(torch.tensor([0.64 / 0.36], dtype=torch.float64)))


def test_float32_times_leave_the_dtype_of_x() -> None:
    x0, noise = (each.float() for each in _pair(2))
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    for process in PROCESSES:
        x_t = process.add_noise(x0, noise, t)
        assert x_t.dtype == process.target(x0, noise, t).dtype == torch.float32
        assert process.add_noise(x0.bfloat16(), noise.bfloat16(), t).dtype == torch.float32
        for kind in ("gamma", "t", "log_snr"):
            assert process.level(t, kind).dtype == torch.float32


def test_the_gamma_that_a_denoiser_is_told_is_the_schedules_own() -> None:
    # sqrt(gamma)^2 / (sqrt(gamma)^2 + sqrt(1 - gamma)^2) is off by a rounding, which sin-cos of 1000 gamma makes 1e-4.
    t = torch.linspace(0.0, 1.0, 1001)
    for name in ("linear", "cosine_simple"):
        process = GaussianDiffusion(name)
        assert torch.equal(process.level(t, "gamma"), process.schedule(t))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_levels_agree_with_the_log_snr(process: Process) -> None:
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    gamma, log_snr = process.level(t, "gamma").double(), process.level(t, "log_snr").double()
    torch.testing.assert_close(gamma, torch.sigmoid(log_snr), rtol=1e-5, atol=1e-7)
    assert torch.isfinite(process.level(torch.tensor([0.0, 1.0]), "log_snr")).all()
    with pytest.raises(ValueError, match="level_kind"):
        process.level(t, "sigma")


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_error_gain(process: Process) -> None:
    x0, noise = _pair()
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x_t, target = process.add_noise(x0, noise, t), process.target(x0, noise, t)
    error = 0.01 * torch.ones_like(x0)
    estimate, _ = process.split(x_t, target - error, t)
    factor = (process.scales(t)[1] * process.error_gain(t)).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(estimate - x0, factor * error, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_tangent_is_the_derivative_by_the_coordinate(process: Process) -> None:
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    near = t + 1e-6
    span = process.coordinate(near) - process.coordinate(t)
    assert (span > 0).all()
    for before, after, slope in zip(process.scales(t), process.scales(near), process.tangent(t), strict=True):
        torch.testing.assert_close((after - before) / span, slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_quantile_is_where_t_of_u_has_the_log_snr(process: Process) -> None:
    for log_snr in (-3.0, -0.5, 0.0, 1.7):
        u = process.quantile(log_snr)
        assert 0.0 < u < 1.0
        t = process.t(torch.tensor([u], dtype=torch.float64))
        assert float(process.log_snr(t)) == pytest.approx(log_snr, abs=1e-9)
    assert process.quantile(math.inf) == pytest.approx(0.0, abs=1e-12)
    assert process.quantile(-math.inf) == pytest.approx(1.0, abs=1e-12)


def test_a_gate_in_t_of_the_linear_schedule() -> None:
    assert GaussianDiffusion().quantile(math.log(0.6 / 0.4)) == pytest.approx(0.4, abs=1e-12)
    u = torch.rand(5)
    assert GaussianDiffusion().t(u) is u


def test_law_of_t_of_a_flow() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logit = torch.logit(RectifiedFlow(t_distribution="logit_normal").t(u))
    assert float(logit.mean()) == pytest.approx(0.0, abs=1e-3) and float(logit.std()) == pytest.approx(1.0, abs=1e-3)
    shifted = RectifiedFlow(shift=3.0)
    drop = RectifiedFlow().log_snr(u) - shifted.log_snr(shifted.t(u))
    torch.testing.assert_close(drop, torch.full_like(drop, 2 * math.log(3.0)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("spacing", ["time", "ode", "angle"])
def test_grids_run_from_noise_to_clean(process: Process, spacing: Spacing) -> None:
    for steps in (1, 2, 7, 1000):
        grid = process.times(steps, spacing)
        assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
        assert grid[0] == 1.0 and grid[-1] == 0.0 and (grid.diff() < 0).all()
        assert (process.log_snr(grid).diff()[:-1] > 0).all()


def test_spacings() -> None:
    torch.testing.assert_close(GaussianDiffusion().times(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]).double())
    shifted = torch.tensor([1, 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5, 0]).double()
    torch.testing.assert_close(RectifiedFlow(shift=3.0).times(4), shifted)
    torch.testing.assert_close(RectifiedFlow(shift=3.0).times(4, "ode"), shifted)
    # By angle, the middle of the grid is where signal and noise are equal, moved by the shift.
    for process, shift in (
        (GaussianDiffusion(log_snr_shift=-1.5), -1.5),
        (RectifiedFlow(shift=2.0), -2 * math.log(2.0)),
    ):
        assert float(process.log_snr(process.times(10, "angle")[5])) == pytest.approx(shift, abs=1e-3)
    # The k-th of many angles from an end is like k^1.5.
    angle = GaussianDiffusion("linear").coordinate(GaussianDiffusion("linear").times(4000, "angle"))
    assert float(angle[-9] / angle[-3]) == pytest.approx(8.0, rel=0.01)


def test_default_thresholds() -> None:
    assert GaussianDiffusion().default_threshold(3) == ("clamp", 1.0)
    assert GaussianDiffusion(data_std=0.5).default_threshold(4) == ("clamp", 2.0)
    assert RectifiedFlow().default_threshold(4) == "none"


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction"):
        GaussianDiffusion(prediction="x0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="option of the schedule linear"):
        GaussianDiffusion("linear", tau=1.0)
    with pytest.raises(ValueError, match="data_std"):
        GaussianDiffusion(data_std=0.0)
    with pytest.raises(ValueError, match="shift"):
        RectifiedFlow(shift=0.0)
    with pytest.raises(ValueError, match="t_distribution"):
        RectifiedFlow(t_distribution="normal")  # type: ignore[arg-type]


def test_a_schedule_object_is_taken_and_checked() -> None:
    class Rising(GammaSchedule):
        def unshifted(self, t: Tensor) -> Tensor:
            return t

    with pytest.raises(ValueError, match="not monotone"):
        GaussianDiffusion(Rising())
    schedule = GaussianDiffusion("cosine").schedule
    assert GaussianDiffusion(schedule).schedule is schedule
    with pytest.raises(ValueError, match="tau"):
        GaussianDiffusion(schedule, tau=1.0)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"class_path": "GaussianDiffusion", "init_args": {"schedule": "sigmoid", "tau": 0.9}}, PROCESSES[3]),
        ({"class_path": "RectifiedFlow", "init_args": {"shift": 3, "t_distribution": "logit_normal"}}, PROCESSES[5]),
        (
            {
                "class_path": "GaussianDiffusion",
                "init_args": {
                    "schedule": {"class_path": "t2ikit.diffusion.schedules.Linear", "init_args": {"log_snr_shift": -2}}
                },
            },
            GaussianDiffusion("linear", log_snr_shift=-2.0),
        ),
    ],
    ids=["named", "flow", "object"],
)
def test_a_process_is_made_from_its_yaml(written: dict[str, Any], expected: Process) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--process", type=Process)
    written = {**written, "class_path": f"t2ikit.diffusion.{written['class_path']}"}
    made = parser.instantiate(parser.parse_object({"process": written})).process
    assert repr(made) == repr(expected)
