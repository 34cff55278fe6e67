"""What every denoiser promises, held against each of them at a small size."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from t2ikit.batch import Text
from t2ikit.denoisers import Denoiser, DiTI, autocast
from t2ikit.denoisers.autocast import CACHE_IS_SAFE, kept_rows, without_graph
from tiny import awake, cad_i, dit_i

NAN = float("nan")
CADI_COUNTS = ("patch_size", "num_blocks", "latent_mlp_ratio", "data_mlp_ratio", "num_latents", "read_write_heads")
DITI_COUNTS = ("patch_size", "depth", "mlp_ratio", "num_heads")

BUILDERS: list[Callable[..., Denoiser]] = [
    cad_i,
    lambda **options: cad_i(coherence=True, **options),
    lambda **options: cad_i(window_tokens=True, **options),
    dit_i,
    lambda **options: dit_i(time_conditioning="adaln_single", **options),
    lambda **options: dit_i(window_tokens=True, **options),
]
NAMES = ["cad_i", "cad_i-coherence", "cad_i-window", "dit_i", "dit_i-adaln", "dit_i-window"]
every = pytest.mark.parametrize("build", BUILDERS, ids=NAMES)


def inputs(rows: int = 4, tokens: int = 5) -> tuple[Tensor, Tensor, Text]:
    generator = torch.Generator().manual_seed(0)
    text = Text(torch.randn(rows, tokens, 24, generator=generator), torch.ones(rows, tokens, dtype=torch.bool))
    text.mask[1, 2:] = False
    text.mask[rows - 1, 1:] = False
    return torch.randn(rows, 4, 8, 8, generator=generator), torch.rand(rows, generator=generator), text


@every
def test_output_has_the_shape_and_type_of_x(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    prediction = denoiser(x, level, denoiser.encode_text(text))
    assert denoiser.input_shape == (4, 8, 8)
    assert prediction.output.shape == x.shape
    assert prediction.output.dtype == x.dtype
    again = denoiser(x, level, denoiser.encode_text(text), prediction.state)
    assert (again.state is None) == (prediction.state is None) == isinstance(denoiser, DiTI)


@every
def test_padding_the_text_is_invisible(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    short = denoiser(x, level, denoiser.encode_text(text)).output
    padded = text.pad(17)
    padded.embeddings[:, 5:] = 3.0
    long = denoiser(x, level, denoiser.encode_text(padded)).output
    assert (long - short).abs().max() <= 1e-5 * short.abs().max()


@every
def test_real_tokens_and_level_matter(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    context = denoiser.encode_text(text)
    output = denoiser(x, level, context).output
    changed = Text(text.embeddings.clone(), text.mask)
    changed.embeddings[:, 0] += 1
    assert (denoiser(x, level, denoiser.encode_text(changed)).output - output).abs().amax((1, 2, 3)).min() > 1e-4
    assert (denoiser(x, level * 0.5, context).output - output).abs().amax((1, 2, 3)).min() > 1e-4


@every
def test_contexts_select_join_and_repeat_rows(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    whole = denoiser.encode_text(text)
    output = denoiser(x, level, whole).output
    order = torch.tensor([2, 0, 0, 3])
    chosen = denoiser(x, level, whole.rows(order)).output
    expected = denoiser(x, level, denoiser.encode_text(text.rows(order))).output
    torch.testing.assert_close(chosen, expected)
    # Alone, the last text is one token long; joined, it is padded.
    one = Text(text.embeddings[3:, :1], text.mask[3:, :1])
    head = denoiser.encode_text(text.rows(torch.arange(3)))
    joined = head.cat(denoiser.encode_text(one))
    assert len(joined) == 4
    torch.testing.assert_close(denoiser(x, level, joined).output, output, rtol=1e-4, atol=1e-5)
    repeated = denoiser.encode_text(one).rows(torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(denoiser(x, level, repeated).output[3], output[3], rtol=1e-4, atol=1e-5)


@every
def test_context_detaches(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    context = denoiser.encode_text(text)
    denoiser(x, level, context.detach()).output.sum().backward()
    refine = [p for name, p in denoiser.named_parameters() if name.startswith(("transformers_blocks", "refine_blocks"))]
    assert refine
    assert all(p.grad is None for p in refine)
    denoiser(x, level, context).output.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in refine if p.dim() > 1)


@every
def test_every_parameter_gets_a_gradient(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    context = denoiser.encode_text(text)
    state = denoiser(x, level, context).state
    denoiser(x, level, context, state).output.square().sum().backward()
    assert [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()] == []


@every
def test_wrong_inputs_are_refused_by_name(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = build()
    context = denoiser.encode_text(text)
    with pytest.raises(ValueError, match="text_dim"):
        denoiser.encode_text(Text(torch.zeros(4, 5, 7), text.mask))
    with pytest.raises(ValueError, match="in_channels"):
        denoiser(x[:, :3], level, context)
    with pytest.raises(ValueError, match=r"level \[4\] was expected"):
        denoiser(x, level[:, None], context)
    with pytest.raises(ValueError, match=r"context of 4 rows was expected, got 1; context\.rows"):
        denoiser(x, level, context.rows(torch.tensor([0])))
    with pytest.raises(ValueError, match="context of encode_text was expected, got Text"):
        denoiser(x, level, text)
    with pytest.raises(ValueError, match="level_kind must be one of gamma, t, log_snr"):
        build(level_kind="sigma")


@every
def test_checkpointing_changes_no_gradient(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    plain = awake(build())
    frugal = copy.deepcopy(plain)
    frugal.checkpoint_blocks = True
    for denoiser in (plain, frugal):
        denoiser(x, level, denoiser.encode_text(text)).output.square().sum().backward()
    for expected, found in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


@every
def test_copies_pickles_and_files_give_the_same_network(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    output = denoiser(x, level, denoiser.encode_text(text)).output
    stream = io.BytesIO()
    torch.save(denoiser.state_dict(), stream)
    stream.seek(0)
    fresh = build()
    fresh.load_state_dict(torch.load(stream), strict=True)
    for twin in (copy.deepcopy(denoiser), pickle.loads(pickle.dumps(denoiser)), fresh):
        assert torch.equal(twin(x, level, twin.encode_text(text)).output, output)
    assert not list(denoiser.buffers())


@every
def test_meta_construction_then_reset_is_a_fresh_network(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    with torch.device("meta"):
        denoiser = build()
    torch.manual_seed(0)  # the spread of 64 numbers differs by a third now and then
    denoiser.to_empty(device="cpu").reset_parameters()
    fresh = build()
    for (name, found), expected in zip(denoiser.named_parameters(), fresh.parameters(), strict=True):
        assert found.isfinite().all(), name
        assert found.detach().std().item() == pytest.approx(expected.detach().std().item(), rel=0.3, abs=1e-6), name
    assert denoiser(x, level, denoiser.encode_text(text)).output.isfinite().all()


@every
def test_weights_assigned_to_a_meta_network_run(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    with torch.device("meta"):
        lazy = build()
    lazy.load_state_dict(denoiser.state_dict(), strict=True, assign=True)
    expected = denoiser(x, level, denoiser.encode_text(text)).output
    assert torch.equal(lazy(x, level, lazy.encode_text(text)).output, expected)


@every
def test_bf16_weights_run_near_fp32(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    expected = denoiser(x, level, denoiser.encode_text(text)).output
    rounded = copy.deepcopy(denoiser).bfloat16()
    found = rounded(x, level, rounded.encode_text(text)).output
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()
    keep = torch.tensor([True, False, True, True])
    rounded.self_condition(x, level, rounded.encode_text(text), keep)


@every
def test_autocast_runs_near_fp32(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    expected = denoiser(x, level, denoiser.encode_text(text)).output
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = denoiser(x, level, denoiser.encode_text(text)).output
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("build", [BUILDERS[1], BUILDERS[4]], ids=[NAMES[1], NAMES[4]])
def test_compiles_without_a_graph_break(build: Callable[..., Denoiser]) -> None:
    x, level, text = inputs()
    denoiser = awake(build())
    state = denoiser(x, level, denoiser.encode_text(text)).state

    def whole(x: Tensor, level: Tensor, text: Text) -> Tensor:
        return denoiser(x, level, denoiser.encode_text(text), state).output

    expected = whole(x, level, text)
    torch._dynamo.reset()
    found = torch.compile(whole, backend="eager", fullgraph=True)(x, level, text)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("safe", [True, False])
def test_without_graph_keeps_autocast_and_a_cache_that_cuts_no_gradient(
    safe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocast, "CACHE_IS_SAFE", safe)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_graph("cpu"):
            assert not torch.is_grad_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") == torch.bfloat16
            assert torch.is_autocast_cache_enabled() is safe
        assert torch.is_grad_enabled()
        assert torch.is_autocast_cache_enabled()
    with without_graph("cpu"):
        assert not torch.is_autocast_enabled("cpu")
    with without_graph("meta"):
        assert not torch.is_grad_enabled()


@pytest.mark.skipif(not CACHE_IS_SAFE, reason="this PyTorch caches casts without a graph")
def test_a_weight_is_cast_once_for_both_passes() -> None:
    class Casts(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.of: Counter[int] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ == "_to_copy":
                self.of[args[0].data_ptr()] += 1
            return func(*args, **(kwargs or {}))

    denoiser = cad_i()
    x, level, text = inputs()
    with Casts() as casts, torch.autocast("cpu", dtype=torch.bfloat16):
        context = denoiser.encode_text(text)
        state = denoiser.self_condition(x, level, context, torch.ones(len(x), dtype=torch.bool))
        denoiser(x, level, context, state)
    counts = {name: casts.of[weight.data_ptr()] for name, weight in denoiser.named_parameters()}
    assert counts.pop("patch_extractor.weight") == 2  # a view of it is what is used, and views are not cached
    assert set(counts.values()) == {0, 1}, counts
    assert all(counts[name] for name in counts if name.endswith(("qkv.weight", "ffn.0.weight", "kv.bias")))


def test_kept_rows_are_the_true_ones() -> None:
    keep = torch.tensor([False, True, True, False, True])
    assert kept_rows(keep, torch.device("cpu")).tolist() == [1, 2, 4]


def test_contexts_of_unlike_denoisers_do_not_join() -> None:
    text = inputs()[2]
    one = cad_i().encode_text(text)
    with pytest.raises(ValueError, match="one denoiser"):
        one.cat(dit_i().encode_text(text))


@every
def test_a_mask_of_numbers_is_taken_as_bool(build: Callable[..., Denoiser]) -> None:
    denoiser = build()
    x, level, text = inputs()
    expected = denoiser(x, level, denoiser.encode_text(text)).output
    found = denoiser(x, level, denoiser.encode_text(Text(text.embeddings, text.mask.long()))).output
    assert torch.equal(found, expected)


@every
def test_the_wrong_number_of_texts_is_refused(build: Callable[..., Denoiser]) -> None:
    text = inputs()[2]
    with pytest.raises(ValueError, match=r"one text encoder.*text_dim.*that of 2"):
        build().encode_text((text, text))
    with pytest.raises(ValueError, match="a Text was expected, or a tuple.*got a Tensor"):
        build().encode_text(text.embeddings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 text encoders.*that of 1"):
        build(text_dim=[24, 6]).encode_text(text)
    with pytest.raises(ValueError, match="width 24 and 6 were expected.*got 24 and 24"):
        build(text_dim=[24, 6]).encode_text((text, text))


@pytest.mark.parametrize("build", [cad_i, dit_i])
def test_a_log_snr_becomes_a_number_in_0_to_1_by_one_rule(build: Callable[..., Denoiser]) -> None:
    x, _, text = inputs()
    log_snr = torch.tensor([-30.0, -20.0, 3.0, 30.0])
    torch.manual_seed(0)
    told = awake(build(level_kind="log_snr"))
    plain = build()
    plain.load_state_dict(told.state_dict())
    context = told.encode_text(text)
    expected = plain(x, torch.tensor([1.0, 1.0, 0.425, 0.0]), context).output
    torch.testing.assert_close(told(x, log_snr, context).output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        *((cad_i, {"drop_path": rate}, r"drop_path is a probability in \[0, 1\)") for rate in (1.0, -0.5, 1.5, NAN)),
        (cad_i, {"dropout": 1.0}, r"dropout is a probability in \[0, 1\)"),
        *((cad_i, {name: 0}, f"{name} must be at least 1, got 0") for name in CADI_COUNTS),
        *((dit_i, {name: 0}, f"{name} must be at least 1, got 0") for name in DITI_COUNTS),
        *((cad_i, {"latent_dim": width}, f"latent_dim .{width}. must be a multiple of 8") for width in (20, 36, 68)),
        (cad_i, {"num_registers": -1}, "num_registers must be at least 0, got -1"),
        (dit_i, {"layer_scale_init": NAN}, "layer_scale_init must be finite"),
    ],
)
def test_values_that_break_the_network_are_refused(
    build: Callable[..., Denoiser], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_no_registers_and_no_layers_over_the_latents_are_networks_too() -> None:
    x, level, text = inputs()
    for denoiser in (cad_i(num_registers=0, num_layers=0), dit_i(num_registers=0)):
        assert denoiser(x, level, denoiser.encode_text(text)).output.isfinite().all()
