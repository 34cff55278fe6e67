"""Muon: the iteration against its polynomial, the step against torch's, which parameters it takes, exact resume."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tiny
from t2ikit.optim import Muon, MuonAdam, hidden_groups, muon
from t2ikit.optim.muon import COEFFICIENTS, ITERATIONS, RMS_OF_ADAM, orthogonal


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _stepped(weights: list[Tensor], parts: int, steps: int = 3, **options: float) -> list[Tensor]:
    """The weights after steps with gradients that the step and the place in the list decide."""
    params = [nn.Parameter(weight.clone()) for weight in weights]
    optimizer = MuonAdam([{"params": params, "parts": parts, "weight_decay": 0.1}], lr=0.02, **options)
    for step in range(steps):
        for place, p in enumerate(params):
            p.grad = _random(*p.shape, seed=100 * step + place + 1, dtype=p.dtype)
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (2, 3, 7, 5)])
def test_the_iteration_maps_singular_values_and_keeps_vectors(shape: tuple[int, ...]) -> None:
    matrices = _random(*shape)
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    torch.testing.assert_close(orthogonal(matrices), u * s[..., None, :] @ vt, rtol=1e-9, atol=1e-9)


def test_singular_values_come_near_one_and_zeros_stay() -> None:
    values = torch.linalg.svdvals(orthogonal(_random(5, 64, 96, dtype=torch.float32)))
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(3, 2)), torch.zeros(3, 2))


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_a_step_is_that_of_torch(shape: tuple[int, int]) -> None:
    """Theirs iterates in bf16."""
    weight = nn.Parameter(_random(*shape, dtype=torch.float32))
    theirs = torch.optim.Muon([weight], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    (ours,) = _stepped([weight.detach()], 1, steps=1)
    before = weight.detach().clone()
    weight.grad = _random(*shape, seed=1, dtype=torch.float32)
    theirs.step()
    moved, expected = ours - before, weight.detach() - before
    assert (moved - expected).norm() < 0.05 * expected.norm()


def test_many_steps_are_those_of_the_definition() -> None:
    """In float64, matrix by matrix; two shapes, of which one occurs twice."""
    shapes, momentum = [(6, 4), (3, 8), (6, 4)], 0.9
    weights = [_random(*shape, seed=50 + i) for i, shape in enumerate(shapes)]
    ours = _stepped(weights, 1, steps=4, momentum=momentum)
    for place, (weight, result) in enumerate(zip(weights, ours, strict=True)):
        average = torch.zeros_like(weight)
        for step in range(4):
            gradient = _random(*weight.shape, seed=100 * step + place + 1)
            average = momentum * average + (1 - momentum) * gradient
            update = orthogonal(momentum * average + (1 - momentum) * gradient)
            weight = weight * (1 - 0.02 * 0.1) - 0.02 * RMS_OF_ADAM * max(weight.shape) ** 0.5 * update
        torch.testing.assert_close(result, weight, rtol=1e-9, atol=1e-9)


def test_stacked_projections_move_as_matrices_of_their_own() -> None:
    stacked = _random(12, 4)
    params = [nn.Parameter(part.clone()) for part in stacked.chunk(3)]
    together = nn.Parameter(stacked.clone())
    apart = MuonAdam([{"params": params, "parts": 1, "weight_decay": 0.0}], lr=0.1)
    whole = MuonAdam([{"params": [together], "parts": 3, "weight_decay": 0.0}], lr=0.1)
    for step in range(3):
        together.grad = _random(12, 4, seed=step)
        for p, gradient in zip(params, together.grad.chunk(3), strict=True):
            p.grad = gradient.clone()
        apart.step()
        whole.step()
    torch.testing.assert_close(together.detach(), torch.cat([p.detach() for p in params]), rtol=1e-12, atol=1e-12)


def test_matrices_that_do_not_fit_together_move_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [_random(4, 6, seed=place) for place in range(5)]
    whole = _stepped(weights, parts=2)
    monkeypatch.setattr(muon, "AT_ONCE", 2 * 4 * 6)
    torch.testing.assert_close(_stepped(weights, parts=2), whole, rtol=1e-12, atol=1e-12)


def test_the_rest_moves_as_by_adamw() -> None:
    network, other = nn.ModuleList([nn.Sequential(nn.Linear(4, 4))]), nn.Linear(5, 3)
    both = nn.ModuleDict({"blocks": network, "other": other})
    twin = copy.deepcopy(other)
    muon = Muon(lr=0.01, weight_decay=0.1).build(both)
    decays = [{"params": [twin.weight], "weight_decay": 0.1}, {"params": [twin.bias], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(decays, lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for step in range(5):
        for p, q in zip(other.parameters(), twin.parameters(), strict=True):
            p.grad = _random(*p.shape, seed=step, dtype=torch.float32)
            q.grad = p.grad.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(list(other.parameters()), list(twin.parameters()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", [tiny.cad_i, tiny.dit_i, tiny.uvit])
def test_matrices_of_blocks_are_muons_and_nothing_is_lost(build: Callable[[], nn.Module]) -> None:
    denoiser = build()
    groups = hidden_groups(denoiser, 0.1)
    parts = {id(p): group["parts"] for group in groups for p in group["params"]}
    assert len(parts) == sum(len(group["params"]) for group in groups) == len(list(denoiser.parameters()))
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    taken = {name for name, p in denoiser.named_parameters() if parts[id(p)]}
    outside = (
        "embed",
        "modulation",
        "latents",
        "registers",
        "final",
        "map_",
        "proj",
        "linear_previous",
        "shell",
        "time",
    )
    for name, p in denoiser.named_parameters():
        if parts[id(p)]:
            assert p.dim() == 2 and decays[id(p)] == 0.1 and not name.startswith(outside), name
            stacked = 3 if name.endswith("qkv.weight") else 2 if name.endswith("kv.weight") else 1
            assert parts[id(p)] == stacked, name
        elif p.dim() == 2:
            assert any(word in name for word in (*outside, "position", "table", "scales")), name
    assert len(taken) > 8


def test_half_precision_weights_keep_a_wide_copy_and_all_resumes() -> None:
    torch.manual_seed(0)
    denoiser = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(8, 8))])}).to(torch.bfloat16)

    def go_on(optimizer: torch.optim.Optimizer, first: int) -> None:
        for step in range(first, first + 3):
            for p in denoiser.parameters():
                p.grad = _random(*p.shape, seed=step, dtype=torch.bfloat16)
            optimizer.step()

    optimizer = Muon(lr=1e-4).build(denoiser)
    go_on(optimizer, 0)
    (linear,) = (m for m in denoiser.modules() if isinstance(m, nn.Linear))
    assert {value.dtype for value in optimizer.state[linear.weight].values()} == {torch.float32}
    master = optimizer.state[linear.weight]["master"]
    assert not torch.equal(master.bfloat16().float(), master)
    weights, states = copy.deepcopy(denoiser.state_dict()), copy.deepcopy(optimizer.state_dict())
    go_on(optimizer, 3)
    straight = copy.deepcopy(optimizer.state_dict())
    denoiser.load_state_dict(weights)
    again = Muon(lr=1e-4).build(denoiser)
    again.load_state_dict(states)
    go_on(again, 3)
    tiny.assert_same(straight, again.state_dict())


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="momentum"):
        Muon(momentum=1.0)
    with pytest.raises(ValueError, match="lr"):
        Muon(lr=-1.0)
    with pytest.raises(ValueError, match=r"inside blocks.*t2ikit\.optim\.AdamW"):
        Muon().build(nn.Linear(3, 3))
    flat = nn.Parameter(torch.zeros(6))
    flat.grad = torch.ones(6)
    with pytest.raises(RuntimeError, match=r"trainer\.strategy"):
        MuonAdam([{"params": [flat], "parts": 1, "weight_decay": 0.0}]).step()
    for parts in (-1, 4):
        with pytest.raises(ValueError, match=rf"parts is .*; got {parts} of \[\[6\]\]"):
            MuonAdam([{"params": [flat], "parts": parts, "weight_decay": 0.0}])
    with pytest.raises(ValueError, match="momentum"):
        MuonAdam([{"params": [flat], "momentum": 1.5}])
