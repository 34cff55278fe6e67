"""CAD-I: check vectors, parameter counts, self-conditioning, cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from t2ikit.batch import Text
from t2ikit.checkpoints import from_upstream
from t2ikit.denoisers import CADI, cad_i_b, cad_i_l, cad_i_s
from tiny import cad_i


def small(**options: object) -> CADI:
    """A small CAD-I with self-conditioning switched on."""
    torch.manual_seed(0)
    denoiser = cad_i(**options)
    torch.nn.init.normal_(denoiser.ln_previous.weight)
    return denoiser


def inputs(rows: int = 5) -> tuple[Tensor, Tensor, Text]:
    generator = torch.Generator().manual_seed(1)
    text = Text(torch.randn(rows, 4, 24, generator=generator), torch.ones(rows, 4, dtype=torch.bool))
    text.mask[0, 2:] = False
    return torch.randn(rows, 4, 8, 8, generator=generator), torch.rand(rows, generator=generator), text


def parameters(denoiser: torch.nn.Module) -> int:
    return sum(p.numel() for p in denoiser.parameters() if p.requires_grad)


def flops(denoiser: CADI, rows: int, tokens: int) -> tuple[int, int]:
    """Of the text path and of one forward, on the meta device."""
    text = Text(torch.empty(rows, tokens, 2048, device="meta"), torch.empty(rows, tokens, device="meta").bool())
    x, level = torch.empty(rows, *denoiser.input_shape, device="meta"), torch.empty(rows, device="meta")
    with FlopCounterMode(display=False) as encode:
        context = denoiser.encode_text(text)
    with FlopCounterMode(display=False) as forward:
        denoiser(x, level, context)
    return encode.get_total_flops(), forward.get_total_flops()


@pytest.fixture(scope="module")
def tiny(sample_data: Path) -> tuple[CADI, dict[str, Tensor]]:
    folder = sample_data / "vectors"
    config = json.loads((folder / "cadi_tiny.json").read_text())["config"]
    data = load_file(folder / "cadi_tiny.safetensors")
    denoiser = CADI(
        input_size=config["data_size"],
        data_dim=config["data_dim"],
        num_latents=config["num_latents"],
        latent_dim=config["latents_dim"],
        num_blocks=config["num_blocks"],
        num_layers=config["num_processing_layers"],
        read_write_heads=config["read_write_heads"],
        compute_heads=config["compute_heads"],
        data_mlp_ratio=config["data_mlp_multiplier"],
        text_dim=config["label_dim"],
    )
    weights = {name[2:]: value for name, value in data.items() if name.startswith("w.")}
    denoiser.load_state_dict(from_upstream(weights), strict=True)
    return denoiser.eval(), data


def assert_near(found: Tensor, expected: Tensor) -> None:
    """1e-5 relative to the largest number."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("level", "state", "out"),
    [("gamma", None, "zero_prev"), ("gamma", "prev", "prev"), ("gamma2", "prev", "prev_gamma2")],
)
def test_outputs_match_the_check_vectors(
    tiny: tuple[CADI, dict[str, Tensor]], level: str, state: str | None, out: str
) -> None:
    denoiser, data = tiny
    context = denoiser.encode_text(Text(data["in.text"], data["in.mask"].bool()))
    found = denoiser(data["in.x"], data[f"in.{level}"], context, None if state is None else data[f"in.{state}"])
    assert_near(found.output, data[f"out.{out}.eps"])
    if f"out.{out}.latents" in data:
        assert_near(found.state, data[f"out.{out}.latents"])


def test_every_step_matches_the_check_vectors(tiny: tuple[CADI, dict[str, Tensor]]) -> None:
    denoiser, data = tiny
    seen: dict[str, Tensor] = {}
    for number, block in enumerate(denoiser.rin_blocks):
        name = f"block{number}"

        def keep(module: torch.nn.Module, args: tuple[Tensor, ...], out: tuple[Tensor, Tensor], at: str = name) -> None:
            seen[f"{at}.latents_in"] = args[1]
            seen[f"{at}.data"], seen[f"{at}.latents"] = out

        block.register_forward_hook(keep)
        for part, label in (("retrieve_cond", "after_retrieve_cond"), ("retriever_ca", "after_retriever")):
            key = f"{name}.{label}"
            block.get_submodule(part).register_forward_hook(
                lambda module, args, out, at=key: seen.__setitem__(at, out)  # type: ignore[misc]
            )
    denoiser.transformers_blocks[-1].register_forward_hook(
        lambda module, args, out: seen.__setitem__("text_refined", out)
    )
    denoiser.time_embedder.register_forward_hook(lambda module, args, out: seen.__setitem__("time_token", out))
    mask = data["in.mask"].bool()
    denoiser(data["in.x"], data["in.gamma"], denoiser.encode_text(Text(data["in.text"], mask)), data["in.prev"])
    expected = {name.removeprefix("mid.prev."): value for name, value in data.items() if name.startswith("mid.")}
    assert expected.keys() == seen.keys()
    for name, value in expected.items():
        assert_near(seen[name], value)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (cad_i_s, 47_769_872),
        (cad_i_b, 188_372_752),
        (cad_i_l, 330_235_152),
        (lambda: cad_i_l(coherence=True), 331_548_944),
        (lambda: CADI(num_latents=128, latent_dim=512), 86_651_152),
    ],
)
def test_sizes_have_the_papers_parameter_counts(build: object, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build()) == count  # type: ignore[operator]


@pytest.mark.parametrize(
    ("key", "build"),
    [
        ("RINTextCond_S", cad_i_s),
        ("RINTextCond_base", cad_i_b),
        ("RINTextCond_L", cad_i_l),
        ("CADRINTextCond_L", lambda **options: cad_i_l(coherence=True, **options)),
    ],
)
def test_names_and_shapes_are_the_released_ones(sample_data: Path, key: str, build: object) -> None:
    listed = json.loads((sample_data / "vectors" / f"keymap_{key}.json").read_text())
    released = {entry["name"]: torch.empty(entry["shape"], device="meta") for entry in listed["keys"]}
    with torch.device("meta"):
        denoiser = build()  # type: ignore[operator]
    own = denoiser.state_dict()
    kept = from_upstream(released)
    assert {name: value.shape for name, value in kept.items()} == {name: value.shape for name, value in own.items()}
    assert parameters(denoiser) == listed["trainable_parameters"]


def test_initialisation_starts_without_self_conditioning() -> None:
    denoiser = cad_i(num_registers=16)
    x, level, text = inputs()
    context = denoiser.encode_text(text)
    first = denoiser(x, level, context)
    assert torch.equal(denoiser(x, level, context, first.state).output, first.output)
    for table in (denoiser.latents, denoiser.data_pos_embedding, denoiser.text_registers):
        assert table.abs().max() <= 0.04
        assert table.detach().std().item() == pytest.approx(0.0176, rel=0.15)
    assert denoiser.map_tokens_to_patches[1].weight.any()
    assert denoiser.transformers_blocks[0].layer_scale_1.unique().tolist() == pytest.approx([0.1])


def test_self_conditioning_is_the_state_of_a_first_pass_on_the_kept_rows() -> None:
    denoiser = small()
    x, level, text = inputs()
    context = denoiser.encode_text(text)
    full = denoiser(x, level, context).state
    keep = torch.tensor([True, False, True, True, False])
    state = denoiser.self_condition(x, level, context, keep)
    torch.testing.assert_close(state[keep], full[keep], rtol=1e-5, atol=1e-5)
    assert not state[~keep].any()
    everything = denoiser.self_condition(x, level, context, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(everything, full, rtol=1e-5, atol=1e-5)
    assert not denoiser.self_condition(x, level, context, torch.zeros(5, dtype=torch.bool)).any()
    with pytest.raises(ValueError, match=r"keep \[5\] bool was expected"):
        denoiser.self_condition(x, level, context, keep.float())


def test_no_gradient_flows_through_self_conditioning() -> None:
    denoiser = small()
    x, level, text = inputs()
    context = denoiser.encode_text(text)
    state = denoiser.self_condition(x, level, context, torch.ones(5, dtype=torch.bool))
    assert not state.requires_grad
    denoiser(x, level, context, state).output.square().sum().backward()
    found = [p.grad.clone() for p in denoiser.parameters()]
    denoiser.zero_grad()
    denoiser(x, level, denoiser.encode_text(text), state.clone()).output.square().sum().backward()
    for value, parameter in zip(found, denoiser.parameters(), strict=True):
        torch.testing.assert_close(value, parameter.grad)


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_self_conditioning_under_autocast_loses_no_weight_gradient(device: str) -> None:
    denoiser = small().to(device)
    x, level, text = (each.to(device) for each in inputs())
    keep = torch.tensor([True, True, True, False, True])

    def gradients(first_pass: bool) -> list[Tensor | None]:
        denoiser.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16):
            context = denoiser.encode_text(text)
            state = denoiser.self_condition(x, level, context, keep) if first_pass else stored
            loss = denoiser(x, level, context, state).output.float().square().mean()
        loss.backward()
        return [p.grad for p in denoiser.parameters()]

    with torch.autocast(device, dtype=torch.bfloat16):
        stored = denoiser.self_condition(x, level, denoiser.encode_text(text), keep)
    assert stored.dtype == torch.float32
    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert found is not None
        assert torch.equal(found, expected)


def test_a_wrong_state_is_refused() -> None:
    denoiser = small()
    x, level, text = inputs()
    with pytest.raises(ValueError, match=r"state \[5, 6, 64\] was expected"):
        denoiser(x, level, denoiser.encode_text(text), torch.zeros(5, 64, 6))


def test_window_and_unknown_coherence_are_refused() -> None:
    text = inputs()[2]
    with pytest.raises(ValueError, match="window_tokens=True"):
        small().encode_text(text, window=torch.zeros(5, 4))
    with pytest.raises(ValueError, match="coherence=True"):
        small().encode_text(text, coherence=torch.ones(5))
    with pytest.raises(ValueError, match=r"coherence \[5\] was expected"):
        small(coherence=True).encode_text(text, coherence=torch.ones(4))


def test_coherence_is_a_token_and_defaults_to_one() -> None:
    denoiser = small(coherence=True)
    x, level, text = inputs()
    plain = denoiser(x, level, denoiser.encode_text(text)).output
    assert torch.equal(denoiser(x, level, denoiser.encode_text(text, coherence=torch.ones(5))).output, plain)
    low = denoiser(x, level, denoiser.encode_text(text, coherence=0.0)).output
    assert (low - plain).abs().amax((1, 2, 3)).min() > 1e-5
    assert denoiser.encode_text(text).mask.shape == (5, 1 + 1 + 3 + 4)


def test_other_sizes_and_shapes() -> None:
    denoiser = cad_i(input_size=(8, 12), in_channels=3, num_blocks=1, num_layers=1, num_registers=16)
    text = inputs(2)[2]
    assert denoiser.input_shape == (3, 8, 12)
    x = torch.randn(2, 3, 8, 12)
    assert denoiser(x, torch.rand(2), denoiser.encode_text(text)).output.shape == x.shape
    with pytest.raises(ValueError, match=r"latent_dim \(72\) must be a multiple of refine_heads"):
        CADI(8, latent_dim=72)
    with pytest.raises(ValueError, match="read_write_heads"):
        CADI(8, data_dim=40, read_write_heads=16)


def test_dropout_and_stochastic_depth_act_in_training_only() -> None:
    denoiser = small(dropout=0.3, drop_path=0.3, checkpoint_blocks=True)
    x, level, text = inputs()
    context = denoiser.encode_text(text)
    assert not torch.equal(denoiser(x, level, context).output, denoiser(x, level, context).output)
    denoiser.eval()
    assert torch.equal(denoiser(x, level, context).output, denoiser(x, level, context).output)


@pytest.mark.parametrize(
    ("build", "tokens", "gigaflops"),
    [(cad_i_s, 256, 15.9), (cad_i_b, 256, 56.5), (cad_i_l, 256, 175.7), (cad_i_l, 128, 165.6)],
)
def test_a_forward_costs_what_the_arithmetic_says(build: object, tokens: int, gigaflops: float) -> None:
    with torch.device("meta"):
        denoiser = build()  # type: ignore[operator]
    assert sum(flops(denoiser, 1, tokens)) / 1e9 == pytest.approx(gigaflops, rel=0.01)


def test_a_training_step_costs_what_the_arithmetic_says() -> None:
    with torch.device("meta"):
        denoiser = cad_i_l()
    encode, forward = flops(denoiser, 10, 190)
    text = Text(torch.empty(10, 190, 2048, device="meta"), torch.empty(10, 190, device="meta").bool())
    x, level = torch.empty(10, *denoiser.input_shape, device="meta"), torch.empty(10, device="meta")
    keep = torch.arange(10) < 9
    with FlopCounterMode(display=False) as step:
        context = denoiser.encode_text(text)
        state = denoiser.self_condition(x, level, context, keep)
        denoiser(x, level, context, state).output.sum().backward()
    # Forward and backward, and on nine of ten samples a forward without the text path.
    expected = 3 * (encode + forward) + 0.9 * forward
    assert step.get_total_flops() == pytest.approx(expected, rel=0.01)


def test_spread_start_changes_three_tensors_and_sets_the_tokens_apart() -> None:
    def built(**options: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return dict(cad_i(data_dim=64, num_latents=32, **options).state_dict())

    before, spread = built(), built(spread_start=True)
    assert {name for name in before if not torch.equal(before[name], spread[name])} == {
        "data_pos_embedding",
        "latents",
        "patch_extractor.bias",
    }
    assert not before["patch_extractor.bias"].any()
    assert before["latents"].std() < 0.025 and before["data_pos_embedding"].std() < 0.025
    assert spread["latents"].std() == pytest.approx(1, abs=0.1)
    assert spread["data_pos_embedding"].std() == pytest.approx(1, abs=0.1)
    assert spread["patch_extractor.bias"].std() == pytest.approx(0.35, abs=0.1)


@pytest.mark.parametrize("awake", [False, True])
def test_no_first_pass_where_no_state_reaches_the_output(awake: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = small()
    x, level, text = inputs()
    with torch.no_grad():
        denoiser.ln_previous.bias.normal_()  # trained also without self-conditioning
        denoiser.ln_previous.weight.mul_(awake)
    context, keep = denoiser.encode_text(text), torch.ones(5, dtype=torch.bool)
    plain = denoiser(x, level, context, denoiser.self_condition(x, level, context, keep)).output
    passes, first = [], denoiser._first_latents

    def counted(*arguments: Any) -> Tensor:
        passes.append(1)
        return first(*arguments)

    monkeypatch.setattr(denoiser, "_first_latents", counted)
    with denoiser.fixed_weights():
        states = [denoiser.self_condition(x, level, context, keep) for _ in range(2)]
        assert len(passes) == (2 if awake else 0)
    assert torch.equal(denoiser(x, level, context, states[0]).output, plain)
    denoiser.self_condition(x, level, context, keep)
    assert len(passes) == (3 if awake else 1)
