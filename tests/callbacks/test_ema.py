"""EMA against its closed form, and the promises of `applied`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from t2ikit.callbacks import EMA
from t2ikit.learner import Averages, Learner


class Module(Learner):
    """The least that EMA asks for."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.denoiser = nn.Sequential(*(nn.Linear(size, size) for size in sizes))
        self.denoiser.register_buffer("counter", torch.tensor(3))

    @property
    def network(self) -> nn.Module:
        return self.denoiser


def averaging(module: Module, decay: float | list[float] = 0.9999, warmup: bool = True) -> EMA:
    """The callback at the start of a run."""
    ema = EMA(decay, warmup)
    ema.on_fit_start(None, module)  # type: ignore[arg-type]
    return ema


def update(module: Module) -> None:
    assert module.averages is not None
    module.averages.update()


def set_all(module: Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.denoiser.parameters():
            parameter.fill_(value)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_constant_weights_follow_the_closed_form(decay: float) -> None:
    module = Module(2)
    set_all(module, 0.0)
    averaging(module, decay=decay, warmup=False)
    set_all(module, 1.0)
    for _ in range(20):
        update(module)
    with module.averaged():
        averaged = next(module.denoiser.parameters())
        torch.testing.assert_close(averaged, torch.full_like(averaged, 1 - decay**20))


def test_a_sequence_of_weights_is_the_weighted_sum_in_float64() -> None:
    decay, values = 0.8, [0.3, -1.0, 2.0, 0.7, 5.0]
    module = Module(3)
    set_all(module, 1.5)
    averaging(module, decay=decay, warmup=False)
    for value in values:
        set_all(module, value)
        update(module)
    n = len(values)
    expected = decay**n * 1.5 + sum((1 - decay) * decay ** (n - 1 - i) * v for i, v in enumerate(values))
    with module.averaged():
        assert next(module.denoiser.parameters()).flatten()[0].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_averages_are_fp32_at_the_least(dtype: torch.dtype) -> None:
    module = Module(2)
    module.denoiser.to(dtype)
    set_all(module, 1.0)
    ema = averaging(module, decay=0.999, warmup=False)
    set_all(module, 2.0)
    for _ in range(3):
        update(module)
    averages = ema.state_dict()["profiles"]["0.999"]
    expected = 2.0 - 0.999**3  # bf16 would round each step of a thousandth away
    for average in averages.values():
        assert average.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(average.double(), torch.full_like(average.double(), expected), rtol=1e-6, atol=0)


def test_warmup_starts_with_short_averages_and_ends_at_the_decay() -> None:
    ema = Averages(nn.Linear(1, 1), [0.9999], warmup=True)
    assert ema.decay_at(0, 0.9999) == pytest.approx(0.1)
    assert ema.decay_at(90, 0.9999) == pytest.approx(0.91)
    assert ema.decay_at(10**7, 0.9999) == 0.9999


def test_applied_restores_the_raw_weights_bit_for_bit_even_after_an_error() -> None:
    module = Module(4, 4)
    averaging(module, decay=0.9)
    set_all(module, 0.123456789)
    update(module)
    raw = [p.detach().clone() for p in module.denoiser.parameters()]
    with pytest.raises(KeyError), module.averaged():
        assert not all(torch.equal(a, b) for a, b in zip(raw, module.denoiser.parameters()))
        raise KeyError("inside")
    assert all(torch.equal(a, b) for a, b in zip(raw, module.denoiser.parameters()))


def test_only_trainable_floating_weights_are_averaged() -> None:
    module = Module(2, 2)
    module.denoiser[0].weight.requires_grad_(False)
    ema = averaging(module)
    names = set(ema.state_dict()["profiles"]["0.9999"])
    assert names == {"0.bias", "1.weight", "1.bias"}


def test_several_profiles_live_side_by_side() -> None:
    module = Module(2)
    set_all(module, 0.0)
    averaging(module, decay=[0.9, 0.0], warmup=False)
    set_all(module, 1.0)
    update(module)
    with module.averaged(0.0):
        assert next(module.denoiser.parameters()).flatten()[0].item() == 1.0
    with module.averaged(0.9):
        assert next(module.denoiser.parameters()).flatten()[0].item() == pytest.approx(0.1)
    with pytest.raises(ValueError, match="0.5"), module.averaged(0.5):
        pass


def test_state_goes_through_a_checkpoint() -> None:
    module = Module(3)
    ema = averaging(module, decay=0.7)
    for value in (1.0, 2.0):
        set_all(module, value)
        update(module)
    other = EMA(decay=0.7)
    other.load_state_dict(ema.state_dict())
    other.on_fit_start(None, module)
    other.on_train_start(SimpleNamespace(global_step=2), module)
    assert other.state_dict()["step"] == 2
    for key, tensor in ema.state_dict()["profiles"]["0.7"].items():
        assert torch.equal(tensor, other.state_dict()["profiles"]["0.7"][key])


def test_another_decay_or_another_network_is_refused() -> None:
    module = Module(3)
    ema = averaging(module, decay=0.7)
    state = ema.state_dict()
    changed = EMA(decay=0.8)
    changed.load_state_dict(state)
    changed.on_fit_start(None, module)
    with pytest.raises(ValueError, match="callbacks.ema.init_args.decay"):
        changed.on_train_start(SimpleNamespace(global_step=2), module)
    same = EMA(decay=0.7)
    same.load_state_dict(state)
    deeper = Module(3, 3)
    same.on_fit_start(None, deeper)
    with pytest.raises(ValueError, match="another denoiser"):
        same.on_train_start(None, deeper)


def test_a_checkpoint_inside_applied_is_refused() -> None:
    module = Module(2)
    ema = averaging(module)
    with module.averaged(), pytest.raises(RuntimeError, match="averaged"):
        ema.on_save_checkpoint(None, module, {})


@pytest.mark.parametrize("decay", [1.0, -0.1, [], [0.9, 0.9]])
def test_bad_decays_are_refused(decay: object) -> None:
    with pytest.raises(ValueError, match="callbacks.ema"):
        EMA(decay=decay)  # type: ignore[arg-type]


def test_a_decay_that_a_checkpoint_lacks_begins_only_where_that_is_allowed() -> None:
    module, other = Module(2), Module(2)
    averaging(module, decay=0.5)
    averaging(other, decay=[0.5, 0.9])
    set_all(module, 1.0)
    update(module)
    set_all(other, 3.0)
    assert module.averages is not None and other.averages is not None
    with pytest.raises(ValueError, match=r"no average of decay 0.9 \(it has 0.5\)"):
        other.averages.restore(module.averages.state())
    assert other.averages.restore(module.averages.state(), begin_new=True) == [0.9]
    profiles = other.averages.state()["profiles"]
    for name, average in module.averages.state()["profiles"]["0.5"].items():
        assert torch.equal(profiles["0.5"][name], average)
        assert torch.equal(profiles["0.9"][name], torch.full_like(average, 3.0))
    assert other.averages.step == 1
