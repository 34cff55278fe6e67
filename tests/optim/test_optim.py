"""LAMB against a plain per-tensor reference and timm's; groups, factories, learning rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from t2ikit.checkpoints.start import train_only
from t2ikit.optim import (
    LAMB,
    AdamW,
    Constant,
    EpochCosine,
    Lamb,
    LearningRate,
    Muon,
    WarmupCosine,
    lr_factor,
    matrix_groups,
    parameter_groups,
)
from t2ikit.optim.factories import OptimizerFactory
from t2ikit.optim.precision import wide_dtype, widened


class HeadNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Network(nn.Module):
    """One of every kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.q_norm = HeadNorm()
        self.position = nn.Parameter(0.02 * torch.randn(9, 4))
        self.layer_scale = nn.Parameter(torch.full((6,), 0.1))
        self.zero = nn.Parameter(torch.zeros(3, 3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def losses(self, x: Tensor) -> Tensor:
        y = self.norm(self.linear((x + self.position.mean(0)) * self.q_norm.weight)) * self.layer_scale
        return (y.square().mean() + (y.mean() - 1) * (1 + self.zero.sum())).float()


def _network(dtype: torch.dtype = torch.float64) -> Network:
    torch.manual_seed(0)
    network = Network().to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad and parameter is not network.zero:
                parameter.add_(0.05 * torch.randn(parameter.shape).to(dtype))
    return network


def _train(network: Network, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 4, generator=generator, dtype=torch.float64).to(network.linear.weight.dtype)
        optimizer.zero_grad()
        network.losses(x).backward()
        optimizer.step()


class PlainLamb:
    """The update as it is written down, one tensor at a time."""

    def __init__(self, network: Network, lr: float, wd: float) -> None:
        self.network, self.lr, self.wd, self.k = network, lr, wd, 0
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}

    def zero_grad(self) -> None:
        self.network.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.k += 1
        for name, p in self.network.named_parameters():
            if not p.requires_grad:
                continue
            g = p.grad
            assert g is not None
            m, v = self.moments.get(name, (torch.zeros_like(p), torch.zeros_like(p)))
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            self.moments[name] = (m, v)
            u = (m / (1 - 0.9**self.k)) / ((v / (1 - 0.999**self.k)).sqrt() + 1e-8)
            r = torch.ones((), dtype=torch.float64)
            if "norm" not in name and "bias" not in name:
                u = u + self.wd * p
                if p.norm() > 0 and u.norm() > 0:
                    r = p.norm() / u.norm()
            p -= self.lr * r * u


def test_lamb_is_the_plain_reference() -> None:
    ours, plain = _network(), _network()
    _train(ours, LAMB(parameter_groups(ours, 0.01), lr=1e-2), 5)
    _train(plain, PlainLamb(plain, 1e-2, 0.01), 5)  # type: ignore[arg-type]
    start = dict(_network().named_parameters())
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
        assert name == "frozen" or not torch.equal(a, start[name])


@pytest.mark.parametrize("steps", [1, 4])
def test_lamb_is_timms(steps: int) -> None:
    from timm.optim.lamb import Lamb as TimmLamb

    ours, theirs = _network(torch.float32), _network(torch.float32)
    _train(ours, LAMB(parameter_groups(ours, 0.01), lr=1e-2), steps)
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in parameter_groups(theirs, 0.01)]
    _train(theirs, TimmLamb(groups, lr=1e-2, eps=1e-8, max_grad_norm=None), steps)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_without_trust_ratio_it_is_adam() -> None:
    ours, theirs = _network(), _network()
    _train(ours, LAMB(ours.parameters(), lr=1e-2, weight_decay=0.0, trust_ratio=False), 4)
    _train(theirs, torch.optim.Adam(theirs.parameters(), lr=1e-2), 4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_parameter_without_gradient_waits() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = LAMB([a, b], lr=0.1)
    for step in range(3):
        a.grad = torch.ones(3)
        b.grad = torch.ones(3) if step == 2 else None
        optimizer.step()
        if step < 2:
            assert torch.equal(b, torch.ones(3))
    first = nn.Parameter(torch.ones(3))
    alone = LAMB([first], lr=0.1)
    first.grad = torch.ones(3)
    alone.step()
    torch.testing.assert_close(b, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_steps_are_the_same_bit_for_bit(dtype: torch.dtype) -> None:
    straight = _network(dtype)
    optimizer = LAMB(parameter_groups(straight, 0.01), lr=1e-2)
    _train(straight, optimizer, 3)
    resumed = copy.deepcopy(straight)
    stored = copy.deepcopy(optimizer.state_dict())
    again = LAMB(parameter_groups(resumed, 0.01), lr=1.0)
    again.load_state_dict(stored)
    _train(straight, optimizer, 3, first=3)
    _train(resumed, again, 3, first=3)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    for state in again.state.values():
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32


def test_sixteen_bit_weights_follow_their_fp32_master() -> None:
    low, high = nn.Parameter(torch.ones(64).bfloat16()), nn.Parameter(torch.ones(64))
    optimizers = [LAMB([each], lr=1e-3, weight_decay=0.0) for each in (low, high)]
    for _ in range(20):
        for parameter, optimizer in zip((low, high), optimizers, strict=True):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert float(high.detach()[0]) < 0.985
    torch.testing.assert_close(low.detach(), high.detach().bfloat16())


def test_a_step_is_a_fixed_number_of_calls_and_never_waits_for_the_device() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    counts = []
    for number in (3, 40):
        parameters = [nn.Parameter(torch.randn(4, 4)) for _ in range(number)]
        optimizer = LAMB(parameters)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.randn(4, 4)
            with Count() as count:
                optimizer.step()
        assert not any("item" in name or "_local_scalar_dense" in name for name in count.names), count.names
        counts.append(len(count.names))
    assert counts[0] == counts[1] <= 25


def test_widened_copies_16_bit_tensors_and_hands_on_the_others() -> None:
    kinds = (torch.bfloat16, torch.float32, torch.float64, torch.float16)
    tensors = [torch.randn(2, 3).to(kinds[0]), torch.randn(4), torch.randn(()).to(kinds[2]), torch.ones(0, 5).half()]
    found = widened(tensors)
    for tensor, wide in zip(tensors, found, strict=True):
        assert wide.dtype == wide_dtype(tensor) and torch.equal(wide, tensor.to(wide.dtype))
        assert (wide is tensor) == (tensor.dtype in kinds[1:3])
    assert widened(tensors[1:3]) == tensors[1:3]


def test_widened_leaves_sharded_tensors_sharded(two_ranks: Callable[[Callable[[], Any]], list[Any]]) -> None:
    def work() -> list[Any]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import Shard, distribute_tensor

        mesh = init_device_mesh("cpu", (2,))
        (wide,) = widened([distribute_tensor(torch.arange(6, dtype=torch.bfloat16), mesh, [Shard(0)])])
        return [str(wide.dtype), wide.to_local().tolist()]  # type: ignore[attr-defined]

    assert two_ranks(work) == [["torch.float32", [0.0, 1.0, 2.0]], ["torch.float32", [3.0, 4.0, 5.0]]]


def test_groups() -> None:
    network = _network()
    names = {id(p): name for name, p in network.named_parameters()}
    adapted, plain = parameter_groups(network, 0.02)
    assert [names[id(p)] for p in adapted["params"]] == ["position", "layer_scale", "zero", "linear.weight"]
    assert {names[id(p)] for p in plain["params"]} == {"linear.bias", "norm.weight", "norm.bias", "q_norm.weight"}
    assert (adapted["weight_decay"], adapted["trust_ratio"]) == (0.02, True)
    assert (plain["weight_decay"], plain["trust_ratio"]) == (0.0, False)
    matrices, rest = matrix_groups(network, 0.02)
    assert [names[id(p)] for p in matrices["params"]] == ["position", "zero", "linear.weight"]
    assert len(rest["params"]) == 5 and rest["weight_decay"] == 0.0


def test_factories() -> None:
    network = _network()
    lamb = Lamb(lr=0.3, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.05).build(network)
    assert isinstance(lamb, LAMB)
    first, second = lamb.param_groups
    assert (first["lr"], first["betas"], first["eps"], first["weight_decay"]) == (0.3, (0.8, 0.9), 1e-7, 0.05)
    assert second["weight_decay"] == 0.0 and not second["trust_ratio"]
    adamw = AdamW().build(network)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.01, 0.0]
    assert adamw.defaults["lr"] == 2e-4 and adamw.defaults["betas"] == (0.9, 0.99)
    _train(network, adamw, 1)


def test_warm_up_and_cosine() -> None:
    rate = WarmupCosine(5000, 0.7)
    total = 500_000
    assert rate.factor(1, total) == rate.factor(0, total) == pytest.approx(1 / 5000)
    assert rate.factor(2500, total) == pytest.approx(0.5)
    assert rate.factor(5000, total) == 1.0
    k = 123_456
    expected = 0.5 * (1 + math.cos(0.7 * math.pi * (k - 5000) / (total - 5000)))
    assert rate.factor(k, total) == pytest.approx(expected, rel=1e-12)
    assert rate.factor(total, total) == pytest.approx(0.2061, abs=5e-5)
    assert rate.factor(total + 7, total) == rate.factor(total, total)
    assert lr_factor(3, 0, 10, 1.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.3)))
    assert WarmupCosine(100).factor(50, 40) == 0.5
    assert WarmupCosine(100).factor(100, 100) == 1.0


@pytest.mark.parametrize("rate", [WarmupCosine(100), Constant(100)])
def test_a_warmup_without_end_is_said(rate: LearningRate) -> None:
    option = "model.init_args.learning_rate.init_args.warmup"
    assert option in str(rate.remark(100)) and option in str(rate.remark(30))
    assert rate.remark(101) is None
    assert Constant().remark(1) is None and EpochCosine(80, 5).remark(3) is None


def test_constant() -> None:
    assert Constant().factor(1, 10) == Constant().factor(10, 10) == 1.0
    assert [Constant(4).factor(step, 10) for step in (1, 2, 4, 9)] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("factory", [AdamW, Lamb, Muon])
def test_numbers_that_are_not_finite_are_refused(factory: type[AdamW] | type[Lamb], value: float) -> None:
    for option in ("lr", "weight_decay", "eps"):
        with pytest.raises(ValueError, match=f"^{option} must be .*, and finite"):
            factory(**{option: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale of core must be at least 0, and finite"):
        factory(scale={"core": value})


def test_wrong_options_are_refused() -> None:
    for options in ({"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Lamb(**options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=next(iter(options))):
            LAMB([nn.Parameter(torch.ones(2))], **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="warmup"):
        WarmupCosine(warmup=-1)
    with pytest.raises(ValueError, match="fraction"):
        WarmupCosine(fraction=0.0)
    with pytest.raises(ValueError, match="warmup"):
        Constant(warmup=-1)
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(RuntimeError, match="dense"):
        LAMB([parameter]).step()


# ------------------------------------------------------------------ rates by part


@pytest.mark.parametrize(("kind", "groups"), [(AdamW, 2), (Lamb, 2), (Muon, 5)])
def test_a_part_has_its_own_rate_and_the_rest_stays(kind: type[OptimizerFactory], groups: int) -> None:
    denoiser = tiny.uvit()
    whole = nn.ModuleDict({"denoiser": denoiser, "objective": nn.Linear(2, 2)})
    plain, scaled = kind(lr=0.5).build(whole), kind(lr=0.5, scale={"core": 0.1, "text": 0.0}).build(whole)
    rates = {id(p): group["lr"] for group in scaled.param_groups for p in group["params"]}
    decays = [
        {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (plain, scaled)
    ]
    assert decays[0] == decays[1]
    for name, parameter in whole.named_parameters():
        part = name.removeprefix("denoiser.").partition(".")[0]
        assert rates[id(parameter)] == pytest.approx({"core": 0.05, "text": 0.0}.get(part, 0.5))
    assert len(plain.param_groups) == groups


def test_scales_that_name_nothing_to_train_are_refused() -> None:
    denoiser = tiny.uvit()
    train_only(denoiser, ["time", "shell"])
    with pytest.raises(ValueError, match="'body' is no part of the denoiser .time, text, core, shell"):
        AdamW(scale={"body": 0.1}).build(denoiser)
    with pytest.raises(ValueError, match="the part core is not trained"):
        AdamW(scale={"core": 0.1}).build(denoiser)
    with pytest.raises(ValueError, match="it has none"):
        AdamW(scale={"core": 0.1}).build(_network())
    with pytest.raises(ValueError, match="scale of core must be at least 0"):
        AdamW(scale={"core": -1.0})
