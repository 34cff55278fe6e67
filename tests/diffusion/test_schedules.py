"""Schedules against check vectors, closed forms and their own inverse."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from t2ikit.diffusion import GaussianDiffusion
from t2ikit.diffusion.schedules import SCHEDULES, GammaSchedule, check_schedule, gamma_schedule

NAMES = tuple(SCHEDULES)


@pytest.mark.parametrize(
    ("key", "name", "options"),
    [
        ("linear", "linear", {}),
        ("cosine_1_0_tau1", "cosine", {}),
        ("cosine_simple", "cosine_simple", {}),
        ("sigmoid_-3_3_tau0.9", "sigmoid", {"tau": 0.9}),
        ("sigmoid_-3_3_tau1", "sigmoid", {}),
        ("sigmoid_-3_3_tau1.1", "sigmoid", {"start": -3, "end": 3, "tau": 1.1}),
    ],
)
def test_check_vectors(sample_data: Path, key: str, name: str, options: dict[str, float]) -> None:
    vectors = load_file(sample_data / "vectors" / "gamma_schedules.safetensors")
    gamma = gamma_schedule(name, **options)(vectors["t"])
    assert gamma.dtype == torch.float32
    torch.testing.assert_close(gamma, vectors[key], rtol=1e-6, atol=1e-7)
    # At t = 1 the values are tiny; what cos rounds to there is the last digit of pi in fp32.
    torch.testing.assert_close(gamma[-1], vectors[key][-1], rtol=1e-3, atol=0.0)


def test_a_number_is_a_time_too() -> None:
    for name in NAMES:
        gamma = gamma_schedule(name)(0.25)
        assert gamma.dtype == torch.float64
        assert gamma == gamma_schedule(name)(torch.tensor(0.25, dtype=torch.float64))


def test_closed_forms() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    inner = t[1:-1]
    torch.testing.assert_close(gamma_schedule("linear")(inner), 1 - inner, rtol=1e-14, atol=0)
    torch.testing.assert_close(gamma_schedule("cosine")(inner), torch.cos(math.pi * inner / 2) ** 2)
    quartic = 1 - torch.sin(math.pi * inner / 2) ** 4
    torch.testing.assert_close(gamma_schedule("cosine", tau=2.0)(inner), quartic.clamp(max=1 - 1e-4))
    shifted = gamma_schedule("shifted_cosine")
    assert shifted.log_snr(t)[0] == pytest.approx(15.0) and shifted.log_snr(t)[-1] == pytest.approx(-15.0)
    angle = torch.atan(torch.exp(-0.5 * shifted.log_snr(t)))
    torch.testing.assert_close(angle.diff(), angle.diff()[:1].expand(100), rtol=1e-8, atol=0)
    assert float(gamma_schedule("linear")(t)[0]) == 1.0 and float(gamma_schedule("linear")(t)[-1]) == 1e-9
    assert float(gamma_schedule("sigmoid")(t)[0]) == 1 - 1e-4


@pytest.mark.parametrize(("side", "shift"), [(64, 0.0), (256, -2.7725887), (512, -4.1588831), (1024, -5.5451774)])
def test_the_shifted_cosine_of_a_resolution_and_its_v_target(side: int, shift: float) -> None:
    """Between its far ends it is -2 log tan(pi t / 2) + 2 log(64 / side); v turns (x_0, noise) by a right angle."""
    assert 2 * math.log(64 / side) == pytest.approx(shift, abs=1e-7)
    process = GaussianDiffusion("shifted_cosine", "v", log_snr_min=-200.0, log_snr_max=200.0, log_snr_shift=shift)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    log_snr = -2 * torch.log(torch.tan(math.pi * t / 2)) + shift
    torch.testing.assert_close(process.log_snr(t), log_snr, rtol=1e-12, atol=1e-12)
    alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    x_0, noise = torch.randn(2, 99, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = alpha * noise.flatten() - sigma * x_0.flatten()
    torch.testing.assert_close(process.target(x_0, noise, t).flatten(), v, rtol=1e-10, atol=1e-12)
    estimates = process.split(process.add_noise(x_0, noise, t), v.reshape(x_0.shape), t)
    torch.testing.assert_close(estimates, (x_0, noise), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(process.level(t, "log_snr"), log_snr.clamp(-30, 30).float())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [0.0, 2 * math.log(64 / 512), 1.3])
def test_log_snr_and_its_inverse(name: str, shift: float) -> None:
    schedule = gamma_schedule(name, log_snr_shift=shift)
    t = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(t), torch.logit(schedule(t)), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-12)
    assert schedule.quantile(float(schedule.log_snr(t)[20])) == pytest.approx(float(t[20]), abs=1e-12)
    plain = gamma_schedule(name)
    torch.testing.assert_close(schedule.log_snr(t), plain.log_snr(t) + shift, rtol=1e-12, atol=1e-12)


def test_inverse_beyond_the_ends() -> None:
    schedule = gamma_schedule("shifted_cosine")
    ends = torch.tensor([math.inf, 40.0, -40.0, -math.inf])
    torch.testing.assert_close(schedule.time(ends), torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_gamma_falls(name: str, dtype: torch.dtype) -> None:
    gamma = gamma_schedule(name, log_snr_shift=-1.0)(torch.linspace(0, 1, 200, dtype=dtype))
    assert gamma.dtype == dtype and torch.isfinite(gamma).all()
    assert (gamma.diff() <= 0).all() and gamma[0] > gamma[-1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sigmoid", {"tau": 0.0}),
        ("sigmoid", {"start": 1.0, "end": 1.0}),
        ("sigmoid", {"tau": -1.0, "start": 2.0, "end": 2.0}),
        ("cosine", {"start": -0.5, "end": 1.0}),
        ("cosine", {"start": 0.5, "end": 0.5}),
        ("cosine", {"tau": 0.0}),
        ("shifted_cosine", {"log_snr_min": 5.0, "log_snr_max": -5.0}),
        ("linear", {"log_snr_shift": math.nan}),
    ],
)
def test_schedules_that_do_not_fall_are_refused(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="not monotone"):
        gamma_schedule(name, **options)


def test_a_schedule_of_ones_own_is_checked() -> None:
    class Wave(GammaSchedule):
        def unshifted(self, t: Tensor) -> Tensor:
            return 0.5 + 0.4 * torch.cos(6.0 * t)

    with pytest.raises(ValueError, match=r"Wave.*not monotone.*t = 0\.5"):
        check_schedule(Wave())


def test_unknown_names_point_to_the_nearest() -> None:
    with pytest.raises(ValueError, match="nearest is 'cosine'"):
        gamma_schedule("cosin")
    with pytest.raises(ValueError, match="nearest is 'tau'"):
        gamma_schedule("sigmoid", tua=1.0)
    with pytest.raises(ValueError, match="option of the schedule linear 'tau'"):
        gamma_schedule("linear", tau=1.0)
