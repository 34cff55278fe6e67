"""The objective: closed forms of the loss and its weights, the text encoded once, no side effects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from t2ikit.batch import Batch, Text
from t2ikit.diffusion import Denoising, GaussianDiffusion, MinSNR, NoiseError, RectifiedFlow, VelocityError
from t2ikit.diffusion.objectives.denoising import fixed_t_loss, fixed_times
from t2ikit.diffusion.terms import Term
from t2ikit.diffusion.time_laws import LogitNormal
from t2ikit.rng import Keyed
from tiny import awake, cad_i


class Nothing(Term):
    """A term that adds zero."""

    def forward(self, context: Any) -> torch.Tensor:
        return torch.zeros(4)


def _inputs(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, rows, 2, 2, 2, generator=generator, dtype=torch.float64)
    return x0, noise, torch.linspace(0.1, 0.9, rows, dtype=torch.float64)


def test_loss_is_the_mean_squared_error_of_the_main_pass(make: Any) -> None:
    denoiser = make.bookkeeping().eval()
    x0, noise, t = _inputs()
    keep = torch.tensor([True, False, True, True])
    text = make.text(0.1, 0.2, 0.3, 0.4)
    loss = Denoising(GaussianDiffusion()).loss(denoiser, x0, noise, t, text, keep)
    assert denoiser.books.encoded == 1 and len(denoiser.books.keeps) == 1
    assert denoiser.books.calls[0].states == [3.0, 0.0, 3.0, 3.0]
    gamma = (1 - t).reshape(-1, 1, 1, 1)
    y = gamma.sqrt() * x0 + (1 - gamma).sqrt() * noise
    shift = (torch.tensor([0.1, 0.2, 0.3, 0.4]) + 0.1 * torch.tensor([3.0, 0, 3, 3])).double().reshape(-1, 1, 1, 1)
    expected = (0.5 * y + shift * torch.tanh(y) - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)


def test_no_self_conditioning_without_keep(make: Any) -> None:
    denoiser = make.bookkeeping()
    x0, noise, t = _inputs()
    Denoising(RectifiedFlow()).loss(denoiser, x0, noise, t, make.text(0, 0, 0, 0))
    assert denoiser.books.keeps == [] and denoiser.books.calls[0].states is None


def test_the_window_reaches_the_denoiser(make: Any) -> None:
    denoiser = make.bookkeeping()
    x0, noise, t = _inputs()
    window = torch.full((4, 4), 0.25)
    Denoising(GaussianDiffusion()).loss(denoiser, x0, noise, t, make.text(0, 0, 0, 1), window=window)
    assert denoiser.books.calls[0].texts == [0.25, 0.25, 0.25, 1.25]


def test_no_side_effects(make: Any) -> None:
    denoiser = make.bookkeeping().eval()
    x0, noise, t = _inputs()
    before = [each.clone() for each in (x0, noise, t)]
    denoiser.gain.grad = torch.tensor(7.0, dtype=torch.float64)
    state = torch.random.get_rng_state()
    loss = Denoising(GaussianDiffusion(), offset_noise=0.1).loss(denoiser, x0, noise, t, make.text(0, 0, 0, 0))
    assert all(torch.equal(a, b) for a, b in zip(before, (x0, noise, t), strict=True))
    assert torch.equal(state, torch.random.get_rng_state()) and float(denoiser.gain.grad) == 7.0
    loss.mean().backward()
    assert float(denoiser.gain.grad) != 7.0


@pytest.mark.parametrize("process", [GaussianDiffusion(), GaussianDiffusion(prediction="v"), RectifiedFlow()], ids=repr)
def test_min_snr_weighs_the_error_of_x0(process: Any, make: Any) -> None:
    """min(SNR, 5) |x_0 estimate - x_0|^2 from its definition, for each parametrisation."""
    denoiser = make.bookkeeping().eval()
    x0, noise, t = _inputs()
    text = make.text(0.1, 0.2, 0.3, 0.4)
    loss = Denoising(process, weighting=MinSNR(5.0)).loss(denoiser, x0, noise, t, text)
    x_t = process.add_noise(x0, noise, t)
    output = denoiser(x_t, process.level(t, "gamma"), denoiser.encode_text(text)).output
    estimate, _ = process.split(x_t, output, t)
    snr = process.log_snr(t).exp()
    expected = snr.clamp(max=5.0) * (estimate - x0).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    assert torch.isfinite(MinSNR(5.0)(process, torch.tensor([0.0, 0.999]))).all()


def test_epsilon_space_of_a_v_prediction_is_the_error_of_the_noise(make: Any) -> None:
    process = GaussianDiffusion("shifted_cosine", prediction="v")
    denoiser = make.bookkeeping().eval()
    x0, noise, t = _inputs()
    text = make.text(0.1, 0.2, 0.3, 0.4)
    loss = Denoising(process, weighting=NoiseError()).loss(denoiser, x0, noise, t, text)
    x_t = process.add_noise(x0, noise, t)
    output = denoiser(x_t, process.level(t, "gamma"), denoiser.encode_text(text)).output
    _, estimate = process.split(x_t, output, t)
    torch.testing.assert_close(loss, (estimate - noise).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("process", [GaussianDiffusion(), GaussianDiffusion(prediction="v"), RectifiedFlow()], ids=repr)
def test_the_velocity_error_is_that_of_noise_less_x0(process: Any, make: Any) -> None:
    denoiser = make.bookkeeping().eval()
    x0, noise, t = _inputs()
    text = make.text(0.1, 0.2, 0.3, 0.4)
    loss = Denoising(process, weighting=VelocityError()).loss(denoiser, x0, noise, t, text)
    x_t = process.add_noise(x0, noise, t)
    x0_estimate, noise_estimate = process.split(
        x_t, denoiser(x_t, process.level(t, "gamma"), denoiser.encode_text(text)).output, t
    )
    error = (noise_estimate - x0_estimate) - (noise - x0)
    torch.testing.assert_close(loss, error.square().mean(dim=(1, 2, 3)), rtol=1e-9, atol=1e-12)


def test_offset_noise_has_the_law_of_a_constant_a_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 2, 4, 4, generator=generator, dtype=torch.float64)
    moved = Denoising(GaussianDiffusion(), offset_noise=0.3).offset(noise)
    means = moved.mean(dim=(2, 3))
    assert float(means.var()) == pytest.approx(1 / 16 + 0.09, rel=0.02)
    residual = moved - means[..., None, None]
    torch.testing.assert_close(residual, noise - noise.mean(dim=(2, 3), keepdim=True))
    assert abs(float((means[:, 0] * means[:, 1]).mean())) < 3e-3
    assert Denoising(GaussianDiffusion()).offset(noise) is noise


def test_wrong_options_are_refused() -> None:
    for options in ({"offset_noise": -0.1}, {"text_drop": 1.5}, {"self_condition_rate": -0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Denoising(GaussianDiffusion(), **options)
    for name in ("denoising", "items", "training", "a.b", ""):
        with pytest.raises(ValueError, match=f"terms: '{name}'"):
            Denoising(GaussianDiffusion(), terms={name: Nothing()})
    with pytest.raises(ValueError, match="limit"):
        MinSNR(0.0)


def test_shapes_that_would_broadcast_are_refused(make: Any) -> None:
    x0, noise, t = _inputs()
    objective, text = Denoising(GaussianDiffusion()), make.text(0.1, 0.2, 0.3, 0.4)
    for wrong in ((noise[:1], t), (noise, t[:1]), (noise, t[0])):
        with pytest.raises(ValueError, match=r"noise \[4, 2, 2, 2\] and t \[4\] were expected"):
            objective.loss(make.bookkeeping(), x0, *wrong, text)


@pytest.mark.parametrize("process", [GaussianDiffusion(), RectifiedFlow(shift=3.0, t_distribution="logit_normal")])
def test_the_loss_at_fixed_t_is_at_the_same_noise_in_every_process(process: Any, make: Any) -> None:
    times = fixed_times(process)
    flow = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    torch.testing.assert_close(process.log_snr(times), 2 * torch.log((1 - flow) / flow), rtol=1e-6, atol=1e-6)
    denoiser, count = make.bookkeeping().eval(), 9
    x0 = torch.randn(count, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    index = torch.arange(count)
    batch = Batch(x0, make.text(*[0.0] * count), torch.zeros(count), torch.zeros_like(index), index)
    whole = fixed_t_loss(denoiser, process, batch)
    parts = torch.cat([fixed_t_loss(denoiser, process, part) for part in (batch.part(0, 4), batch.part(4, count))])
    torch.testing.assert_close(whole, parts)
    assert whole.shape == (count,) and torch.isfinite(whole).all()


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="offset_noise"):
        Denoising(offset_noise=float("nan"))
    with pytest.raises(ValueError, match="LogitNormal: mean must be finite"):
        LogitNormal(mean=float("nan"))
    with pytest.raises(ValueError, match="weight of a term must be finite"):
        Nothing(weight=float("nan"))


def test_coherence_comes_from_the_array_that_the_objective_names() -> None:
    """In the loss that trains and in that of validation; each row has its own."""
    denoiser = awake(cad_i(coherence=True)).eval()
    objective = Denoising(coherence="clip", text_drop=0.0)
    assert objective.needs.arrays == ("clip",)
    values = torch.tensor([[0.0], [1.0], [0.5]])
    generator = torch.Generator().manual_seed(0)
    text = Text(torch.randn(3, 4, 24, generator=generator), torch.ones(3, 4, dtype=torch.bool))
    numbers = torch.arange(3)
    batch = Batch(
        torch.randn(3, 4, 8, 8, generator=generator), text, torch.tensor([0.2, 0.5, 0.8]), numbers, numbers,
        extra={"clip": values},
    )  # fmt: skip
    draws = objective.draw(batch, Keyed(0), 0)
    found = objective(denoiser, batch, draws).loss_B
    given = [
        Denoising().loss(denoiser, batch.latents, draws.noise, batch.t, text, draws.keep, coherence=coherence)
        for coherence in (values[:, 0], torch.ones(3))
    ]
    assert torch.equal(found, given[0])
    assert [a == b for a, b in zip(*given, strict=True)] == [False, True, False]
    full = replace(batch, extra={"clip": torch.ones(3, 1)})
    losses = [objective.validation(denoiser, each, Keyed(0)) for each in (batch, full)]
    assert [a == b for a, b in zip(*losses, strict=True)] == [False, True, False]
