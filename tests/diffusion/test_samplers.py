"""``sample``: DDIM against a plain loop, texts encoded once, independence of rows, modes and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from t2ikit.diffusion import GaussianDiffusion, Guidance, RectifiedFlow, sample
from t2ikit.diffusion.solvers import Solver

METHODS = ("ddim", "ddpm", "euler", "heun", "dpmpp_2m")


def _noise(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, 2, 2, generator=generator, dtype=torch.float64)


def _plain_ddim(denoiser: Any, x: Tensor, text: Any, uncond: Any, steps: int, w: float, bound: float) -> list[Tensor]:
    """DDIM with the linear schedule, step by step as it is written down."""
    rows = x.shape[0]
    path = [x]
    cond_state = uncond_state = None
    for k in range(steps):
        gamma = max(k / steps, 1e-9)
        next_gamma = (k + 1) / steps
        level = torch.full((rows,), gamma, dtype=torch.float32)
        conditional = denoiser(x, level, denoiser.encode_text(text), cond_state)
        if k > 0 and w != 0.0:
            unconditional = denoiser(x, level, denoiser.encode_text(uncond), uncond_state)
            noise = (1 + w) * conditional.output - w * unconditional.output
            cond_state, uncond_state = conditional.state, unconditional.state
        else:
            noise = conditional.output
            cond_state = uncond_state = conditional.state
        x0 = ((x - (1 - gamma) ** 0.5 * noise) / gamma**0.5).clamp(-bound, bound)
        noise = (x - gamma**0.5 * x0) / (1 - gamma) ** 0.5
        x = next_gamma**0.5 * x0 + (1 - next_gamma) ** 0.5 * noise
        path.append(x)
    return path


@pytest.mark.parametrize("w", [0.0, 3.0])
@pytest.mark.parametrize(("threshold", "bound"), [(("clamp", 1.2), 1.2), (None, 4.0)])
def test_ddim_is_the_plain_loop(make: Any, w: float, threshold: Any, bound: float) -> None:
    denoiser = make.bookkeeping().eval()
    text, uncond = make.text(0.1, -0.3, 0.8), make.text(0.5, 0.5, 0.5)
    noise = _noise(3)
    x0, path = sample(
        denoiser,
        GaussianDiffusion(),
        noise,
        text,
        uncond,
        steps=10,
        guidance=w,
        threshold=threshold,
        trajectory=True,
    )
    expected = _plain_ddim(denoiser, noise, text, uncond, 10, w, bound)
    assert path.shape == (11, 3, 2, 2, 2)
    torch.testing.assert_close(path, torch.stack(expected), rtol=1e-6, atol=1e-7)
    assert torch.equal(x0, path[-1])


@pytest.mark.parametrize("method", METHODS)
def test_texts_are_encoded_once(make: Any, method: str) -> None:
    denoiser = make.bookkeeping()
    sample(
        denoiser, GaussianDiffusion(), _noise(3), make.text(1, 2, 3), make.text(0), steps=5, guidance=2.0, method=method
    )
    assert denoiser.books.encoded == 2
    evaluations = 9 if method == "heun" else 5
    unguided = 2 if method == "heun" else 1
    assert len(denoiser.books.calls) == 2 * evaluations - unguided


def test_no_unconditional_work_without_guidance(make: Any) -> None:
    denoiser = make.bookkeeping()
    sample(denoiser, GaussianDiffusion(), _noise(3), make.text(1, 2, 3), make.text(0), steps=5)
    assert denoiser.books.encoded == 1 and len(denoiser.books.calls) == 5


def test_a_single_text_and_a_ready_context_serve_all_rows(make: Any) -> None:
    denoiser = make.bookkeeping().eval()
    process = GaussianDiffusion()
    one = sample(denoiser, process, _noise(3), make.text(0.4), steps=4)
    three = sample(denoiser, process, _noise(3), make.text(0.4, 0.4, 0.4), steps=4)
    encoded = sample(denoiser, process, _noise(3), denoiser.encode_text(make.text(0.4, 0.4, 0.4)), steps=4)
    assert torch.equal(one, three) and torch.equal(one, encoded)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("process", [GaussianDiffusion(prediction="v"), RectifiedFlow()], ids=repr)
def test_a_row_does_not_depend_on_its_batch(make: Any, method: str, process: Any) -> None:
    denoiser = make.bookkeeping()
    values, noise = [0.1, -0.3, 0.8, 0.2], _noise(4)

    def draw(rows: list[int]) -> Tensor:
        return sample(
            denoiser,
            process,
            noise[rows],
            make.text(*(values[row] for row in rows)),
            make.text(0.5),
            steps=6,
            guidance=2.0,
            method=method,
            threshold=("dynamic", 0.9),
            generators=[torch.Generator().manual_seed(row) for row in rows],
        )

    together = draw([0, 1, 2, 3])
    apart = torch.cat([draw([0]), draw([1, 2]), draw([3])])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


def test_ddpm_noise_comes_from_the_generators(make: Any) -> None:
    denoiser = make.bookkeeping()

    def draw(seed: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed)]
        return sample(
            denoiser,
            GaussianDiffusion(),
            _noise(1),
            make.text(0.1),
            steps=4,
            method="ddpm",
            generators=generators,
        )

    state = torch.random.get_rng_state()
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(state, torch.random.get_rng_state())


def test_modes_are_restored_and_dropout_is_off(make: Any) -> None:
    denoiser = make.bookkeeping().train()
    denoiser.dropout.eval()
    first = sample(denoiser, GaussianDiffusion(), _noise(2), make.text(0.1), steps=3)
    assert denoiser.training and not denoiser.dropout.training
    denoiser.train()
    assert torch.equal(first, sample(denoiser, GaussianDiffusion(), _noise(2), make.text(0.1), steps=3))
    assert denoiser.dropout.training and not first.requires_grad

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(denoiser, GaussianDiffusion(), _noise(2), make.text(0.1), steps=3, progress=stop)
    assert denoiser.training


def test_progress_and_low_precision_noise(make: Any) -> None:
    steps: list[tuple[int, int]] = []
    got = sample(
        make.bookkeeping(),
        GaussianDiffusion(),
        _noise(1).bfloat16(),
        make.text(0.1),
        steps=3,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 3), (2, 3), (3, 3)] and got.dtype == torch.float32


def test_autoguidance_encodes_with_both(make: Any) -> None:
    denoiser, weaker = make.bookkeeping(), make.bookkeeping()
    rule = Guidance(1.5, weaker=weaker)
    sample(denoiser, GaussianDiffusion(), _noise(2), make.text(0.1), steps=4, guidance=rule)
    assert denoiser.books.encoded == weaker.books.encoded == 1
    assert len(denoiser.books.calls) == 4 and len(weaker.books.calls) == 3


def test_errors_say_what_was_expected(make: Any) -> None:
    denoiser, process, text = make.bookkeeping(), GaussianDiffusion(), make.text(0.1, 0.2)

    def refuse(match: str, noise: Tensor | None = None, **options: Any) -> None:
        arguments = {"steps": 2, **options}
        with pytest.raises(ValueError, match=match):
            sample(denoiser, process, _noise(2) if noise is None else noise, arguments.pop("text", text), **arguments)

    refuse("nearest is 'heun'", method="huen")
    refuse("steps", steps=0)
    refuse("whole number", steps=2.5)
    refuse("needs `uncond`", guidance=1.0)
    refuse("generators", generators=[torch.Generator()])
    refuse("one for each of the 2 rows", generators=torch.Generator())
    refuse(r"noise \[B, C, H, W\]", noise=torch.zeros(2, 3))
    refuse("text has 3 rows", text=make.text(1, 2, 3))
    refuse("threshold", threshold=("clamp", -1.0))
    refuse("give sample a Text", text=denoiser.encode_text(text), guidance=Guidance(1.0, weaker=make.bookkeeping()))


@pytest.mark.parametrize(("states", "message"), [(0, "but 0 came"), (3, "but 3 came"), (9, "but more than 4 came")])
def test_a_solver_that_does_not_yield_once_a_step_is_refused(make: Any, states: int, message: str) -> None:
    class Miscounts(Solver):
        def steps(self, estimate: Any, grid: Any, x: Tensor, normal: Any) -> Any:
            yield from [x] * states

    with pytest.raises(ValueError, match=f"Miscounts: yields x after each of the 4 steps, {message}"):
        sample(make.bookkeeping(), GaussianDiffusion(), _noise(1), make.text(0.1), steps=4, method=Miscounts())
