"""States and texts of the branches of a guided step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from t2ikit.batch import Text
from t2ikit.diffusion import GaussianDiffusion, Guidance, Projection, sample
from t2ikit.diffusion.guidance import GuidedDenoiser, join_states, split_states
from t2ikit.diffusion.samplers import encode
from tiny import awake, cad_i

PROCESS = GaussianDiffusion()
CPU = torch.device("cpu")


def _noise(rows: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, 2, 2, generator=generator, dtype=torch.float64)


def _network(denoiser: Any, rule: Guidance, text: Any, uncond: Any, stacked: bool, steps: int = 4) -> GuidedDenoiser:
    contexts = (denoiser.encode_text(text), denoiser.encode_text(uncond))
    return GuidedDenoiser(denoiser.eval(), PROCESS, rule, PROCESS.times(steps), CPU, *contexts, stacked=stacked)


def test_each_branch_keeps_its_own_state_which_starts_from_the_conditional_one(make: Any) -> None:
    denoiser = make.bookkeeping()
    network = _network(denoiser, Guidance(2.0), make.text(0.25), make.text(-0.5), stacked=False)
    for k in range(3):
        network(_noise(), k, k)
    calls = [(call.texts[0], call.states) for call in denoiser.books.calls]
    # A state grows by 1 + text at each call.
    assert calls == [(0.25, None), (0.25, [1.25]), (-0.5, [1.25]), (0.25, [2.5]), (-0.5, [1.75])]


def test_latent_guidance_runs_a_third_branch_from_the_zero_state(make: Any) -> None:
    denoiser = make.bookkeeping()
    rule = Guidance(2.0, latent_weight=0.5)
    network = _network(denoiser, rule, make.text(0.25), make.text(-0.5), stacked=False)
    x = _noise()
    network(x, 0, 0)
    x0, noise = network(x, 1, 1)
    calls = [(call.texts[0], call.states) for call in denoiser.books.calls]
    assert calls[1:] == [(0.25, [1.25]), (-0.5, [1.25]), (-0.5, None)]
    level, context = torch.tensor([0.25]), denoiser.encode_text
    state = torch.tensor([[1.25]], dtype=torch.float64)
    c = denoiser(x, level, context(make.text(0.25)), state).output
    u = denoiser(x, level, context(make.text(-0.5)), state).output
    u0 = denoiser(x, level, context(make.text(-0.5))).output
    torch.testing.assert_close(noise, 3.0 * c + (0.5 - 2.0) * u - 0.5 * u0)
    torch.testing.assert_close(PROCESS.add_noise(x0, noise, torch.tensor([0.75]).double()), x)


@pytest.mark.parametrize("latent_weight", [0.0, 0.5])
@pytest.mark.parametrize("start_step", [0, -1])
def test_one_call_or_several_are_the_same(make: Any, latent_weight: float, start_step: int) -> None:
    rule = Guidance(2.0, latent_weight=latent_weight, start_step=start_step)
    results = []
    for stacked in (False, True):
        denoiser = make.bookkeeping()
        network = _network(denoiser, rule, make.text(0.25, 1.0), make.text(-0.5, -0.5), stacked)
        x = _noise(2)
        results.append(torch.stack([network(x, k, k)[0] for k in range(4)]))
    torch.testing.assert_close(results[0], results[1])


def test_autoguidance_runs_the_weaker_denoiser_on_the_same_text(make: Any) -> None:
    denoiser, weaker = make.bookkeeping().eval(), make.bookkeeping().eval()
    weaker.gain.data.fill_(0.1)
    times = PROCESS.times(3)
    text = make.text(0.25)
    contexts = (denoiser.encode_text(text), None, weaker.encode_text(text))
    network = GuidedDenoiser(denoiser, PROCESS, Guidance(2.0, weaker=weaker), times, CPU, *contexts)
    x = _noise()
    network(x, 0, 0)
    _, noise = network(x, 1, 1)
    assert [call.states for call in weaker.books.calls] == [None]
    assert weaker.books.calls[0].texts == [0.25]
    good = denoiser(x, torch.tensor([2 / 3]), denoiser.encode_text(text), torch.tensor([[1.25]]).double()).output
    bad = weaker(x, torch.tensor([2 / 3]), weaker.encode_text(text)).output
    torch.testing.assert_close(noise, 3.0 * good - 2.0 * bad)


def test_projection_that_keeps_everything_is_plain_guidance(make: Any) -> None:
    results = []
    for projection in (None, Projection(parallel=1.0)):
        rule = Guidance(2.0, projection=projection)
        network = _network(make.bookkeeping(), rule, make.text(0.25), make.text(-0.5), stacked=False)
        results.append([network(_noise(), k, k)[0] for k in range(3)])
    torch.testing.assert_close(results[0], results[1])


def test_interval_guidance_leaves_the_unconditional_branch_alone_outside(make: Any) -> None:
    denoiser = make.bookkeeping()
    rule = Guidance(2.0, interval=(-0.1, 0.1))
    sample(denoiser, PROCESS, _noise(), make.text(0.25), make.text(-0.5), steps=4, guidance=rule)
    # Of t = 1, 0.75, 0.5, 0.25 only t = 0.5 has log-SNR 0.
    assert [call.texts[0] for call in denoiser.books.calls] == [0.25, 0.25, 0.25, -0.5, 0.25]


def test_states_of_any_nesting_are_joined_and_split() -> None:
    one = {"latents": torch.ones(2, 3), "more": (torch.zeros(2), torch.full((2, 1), 2.0))}
    joined = join_states([one, None])
    assert joined["latents"].tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2
    first, second = split_states(joined, 2)
    assert torch.equal(first["more"][1], one["more"][1]) and second["more"][1].abs().sum() == 0
    assert join_states([None, None]) is None and split_states(None, 3) == [None] * 3


def test_coherence_is_1_with_the_text_and_0_without() -> None:
    """As CAD samples; a denoiser that knows none is not asked for it (its ``encode_text`` would refuse)."""
    denoiser = awake(cad_i(coherence=True)).eval()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    text = Text(torch.randn(2, 3, 24, generator=generator), torch.ones(2, 3, dtype=torch.bool))
    empty = Text(torch.zeros(1, 1, 24), torch.ones(1, 1, dtype=torch.bool))
    repeated = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        contexts = denoiser.encode_text(text, 1.0), denoiser.encode_text(empty, 0.0).rows(repeated)
        wrong = contexts[0], denoiser.encode_text(empty, 1.0).rows(repeated)
    results = [
        sample(denoiser, GaussianDiffusion(), noise, *given, steps=3, guidance=2.0)
        for given in ((text, empty), contexts, wrong)
    ]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    made = encode(denoiser, text, empty, 2.0, noise.device)
    assert torch.equal(sample(denoiser, GaussianDiffusion(), noise, made, steps=3, guidance=2.0), results[0])
