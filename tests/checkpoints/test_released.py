"""Released layouts: what is read, what is left out, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny
from t2ikit import hub
from t2ikit.batch import Text
from t2ikit.checkpoints import (
    NoiseError,
    coherence_is_trained,
    from_upstream,
    load_weights,
    read_upstream,
    read_weights,
)
from t2ikit.denoisers import CADI
from t2ikit.diffusion import GaussianDiffusion


def small(**options: object) -> CADI:
    return tiny.cad_i(num_blocks=1, num_layers=1, **options)


def released(denoiser: CADI, prefix: str = "") -> dict[str, Tensor]:
    """The state as released: with constant masks and frequencies."""
    state = {prefix + name: value.clone() for name, value in denoiser.state_dict().items()}
    for name in ("rin_blocks.0.retrieve_cond", "transformers_blocks.0"):
        state[f"{prefix}{name}.attention_mask_dummy"] = torch.ones(1, 1, dtype=torch.bool)
    state[f"{prefix}time_embedder.encode_time.freqs"] = torch.zeros(8)
    if denoiser.coherence:
        state[f"{prefix}coherence_embedder.encode_time.freqs"] = torch.zeros(8)
        state[f"{prefix}registers_coherence_mask"] = torch.ones(4, dtype=torch.bool)
        state[f"{prefix}cond_mask"] = torch.ones(5, dtype=torch.bool)
    return state


def assert_same(denoiser: CADI, weights: dict[str, Tensor]) -> None:
    twin = small(coherence=denoiser.coherence)
    twin.load_state_dict(weights, strict=True)
    for name, value in denoiser.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_bare_names_load_strictly_and_the_rest_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    denoiser = small()
    with caplog.at_level(logging.WARNING):
        assert_same(denoiser, from_upstream(released(denoiser)))
    assert "ignored 3 constants" in caplog.text
    assert "attention_mask_dummy" in caplog.text
    assert hub.from_upstream is from_upstream


@pytest.mark.parametrize("whole", [False, True])
def test_the_average_is_preferred(whole: bool) -> None:
    live, average = small(), small()
    state = released(live, "network.") | released(average, "ema_network.") | {"loss.weight": torch.ones(1)}
    checkpoint = {"state_dict": state, "epoch": 3, "optimizer_states": []} if whole else state
    read = read_upstream(checkpoint)
    assert read.prefix == "ema_network."
    assert "loss.weight" in read.ignored
    assert "network.latents" in read.ignored
    assert_same(average, from_upstream(checkpoint))


@pytest.mark.parametrize("mark", ["network._orig_mod.", "module.network.", "module.network._orig_mod."])
def test_compiled_and_distributed_checkpoints_have_the_same_names(mark: str) -> None:
    denoiser = small()
    assert_same(denoiser, from_upstream(released(denoiser, mark)))


def test_live_weights_alone() -> None:
    live = small()
    assert_same(live, from_upstream(released(live, "network.")))


def test_untrained_coherence_is_told_by_its_biases() -> None:
    fresh, trained = small(coherence=True), small(coherence=True)
    with torch.no_grad():
        trained.coherence_embedder.map_time[2].bias[3] = 1e-12
    assert not coherence_is_trained(released(fresh))
    assert coherence_is_trained(released(trained))
    with pytest.raises(ValueError, match=r"coherence_embedder\.map_time\.0\.bias"):
        coherence_is_trained(released(small()))


@pytest.mark.parametrize(
    ("trained", "choice", "held"),
    [
        (False, "keep", True),
        (False, "drop", False),
        (False, "auto", False),
        (True, "keep", True),
        (True, "drop", False),
        (True, "auto", True),
    ],
)
def test_coherence_choices(trained: bool, choice: str, held: bool) -> None:
    denoiser = small(coherence=True)
    if trained:
        torch.nn.init.ones_(denoiser.coherence_embedder.map_time[0].bias)
    read = read_upstream(released(denoiser), coherence=choice)
    assert read.coherence is held
    small(coherence=held).load_state_dict(read.weights, strict=True)
    assert ("coherence_positional_embedding" in read.ignored) is not held


@pytest.mark.parametrize("choice", ["keep", "drop", "auto"])
def test_every_choice_reads_a_file_without_coherence(choice: str) -> None:
    denoiser = small()
    assert_same(denoiser, from_upstream(released(denoiser), coherence=choice))


def test_other_layouts_are_refused_with_their_keys() -> None:
    state = released(small())
    with pytest.raises(ValueError, match=r"coherence must be one of keep, drop, auto; got 'on'"):
        from_upstream(state, coherence="on")
    with pytest.raises(ValueError, match=r"1 unknown keys \(blocks\.0\.attn\.qkv\.weight\)"):
        from_upstream(state | {"blocks.0.attn.qkv.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"nothing under \(latents\)"):
        from_upstream({name: value for name, value in state.items() if name != "latents"})
    with pytest.raises(ValueError, match="prefix network"):
        from_upstream({"network.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="not a CAD-I layout"):
        from_upstream({})
    with pytest.raises(ValueError, match="latents is a list"):
        from_upstream(state | {"latents": [1.0]})


def test_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    denoiser = small()
    state = released(denoiser)
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    for name in ("model.safetensors", "last.ckpt"):
        assert_same(denoiser, from_upstream(read_weights(tmp_path / name)))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*none\.ckpt"):
        read_weights(tmp_path / "none.ckpt")
    for name in ("broken.safetensors", "broken.ckpt"):
        (tmp_path / name).write_bytes(b"\x08\x00not weights")
        with pytest.raises(ValueError, match="not a readable weight file"):
            read_weights(tmp_path / name)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list"):
        read_weights(tmp_path / "list.pt")


def test_load_weights_loads_all_or_nothing() -> None:
    source, target = small(), small()
    load_weights(target, source.state_dict())
    assert torch.equal(target.latents, source.latents)
    before = target.data_ln.weight.clone()
    wrong = {name: value + 1 for name, value in source.state_dict().items() if name != "latents"}
    wrong["text_registers"] = torch.zeros(5, 64)
    wrong["extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"1 missing \(latents\); 1 unknown \(extra\); 1 of another shape \(text_reg"):
        load_weights(target, wrong)
    assert torch.equal(target.data_ln.weight, before)


@pytest.mark.parametrize("helps", [True, False])
def test_auto_takes_the_reading_that_predicts_better(helps: bool, caplog: pytest.LogCaptureFixture) -> None:
    denoiser = small(coherence=True)
    torch.nn.init.ones_(denoiser.coherence_embedder.map_time[0].bias)
    state = released(denoiser)
    assert coherence_is_trained(state)  # the biases alone would say "keep" both times

    def error(weights: dict[str, Tensor]) -> float:
        held = "coherence_positional_embedding" in weights
        small(coherence=held).load_state_dict(weights, strict=True)
        return 0.25 if held is helps else 0.5

    with caplog.at_level(logging.WARNING):
        read = read_upstream(state, "auto", error)
        assert from_upstream(state, "auto", error).keys() == read.weights.keys()
    assert read.coherence is helps
    assert read.choice in caplog.text
    assert ("0.25 with it, 0.5 without" in read.choice) is helps
    assert read_upstream(state, "keep", error).coherence


def test_noise_error_is_the_loss_of_the_network_that_the_weights_make() -> None:
    torch.manual_seed(0)
    latents, text = torch.randn(3, 4, 8, 8), Text(torch.randn(1, 5, 24), torch.ones(1, 5, dtype=torch.bool))
    state = released(small(coherence=True))
    seen: list[CADI] = []
    with pytest.raises(ValueError, match="3 texts or one for all"):
        NoiseError(lambda weights: small(), GaussianDiffusion(), latents, text.rows(torch.tensor([0, 0])))(
            small().state_dict()
        )

    def build(weights: Mapping[str, Tensor]) -> CADI:
        seen.append(small(coherence="coherence_positional_embedding" in weights))
        return seen[-1]

    error = NoiseError(build, GaussianDiffusion(), latents, text, levels=2, seed=3)
    found = read_upstream(state, "auto", error)
    assert [each.coherence for each in seen] == [True, False] and error(found.weights) == error(found.weights)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    for denoiser, choice in zip(seen, ("keep", "drop")):
        context = denoiser.encode_text(text.rows(torch.zeros(3, dtype=torch.int64)))
        errors = []
        for t in (0.25, 0.75):
            x = (1 - t) ** 0.5 * latents + t**0.5 * noise
            errors.append((denoiser(x, torch.full((3,), 1 - t), context).output - noise).square().mean())
        assert error(from_upstream(state, choice)) == pytest.approx(sum(each.item() for each in errors) / 2, rel=1e-5)
