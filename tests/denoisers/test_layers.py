"""Attention blocks: norms, masks, initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from t2ikit.denoisers.layers import (
    MLP,
    CrossAttention,
    DropPath,
    HeadNorm,
    LayerNorm,
    Linear,
    SelfAttention,
    SelfBlock,
    check_divides,
    key_bias,
)


@pytest.mark.parametrize("norm", [LayerNorm(64), HeadNorm(64)])
def test_norms_keep_fp32_statistics_with_bf16_weights(norm: nn.Module) -> None:
    # Statistics in bf16 could not resolve a spread of 1 around 100.
    x = (torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) + 100).bfloat16()
    expected = norm.float()(x.float())
    found = norm.bfloat16()(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)


def test_self_attention_is_softmax_attention_with_fused_rows() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    q, k, v = (x @ part.T for part in layer.qkv.weight.chunk(3))
    heads = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        scores = q[..., rows] @ k[..., rows].mT / math.sqrt(4)
        scores = scores.masked_fill(~mask[:, None], -math.inf)
        heads.append(scores.softmax(-1) @ v[..., rows])
    expected = torch.cat(heads, -1) @ layer.out.weight.T
    torch.testing.assert_close(layer(x, key_bias(mask, layer.qkv.weight)), expected)


def test_cross_attention_width_is_the_smaller_of_the_two() -> None:
    layer = CrossAttention(32, 16, 4)
    assert layer.q.weight.shape == (16, 32)
    assert layer.kv.weight.shape == (32, 16)
    assert layer.out.weight.shape == (32, 16)
    assert layer(torch.randn(2, 3, 32), layer.keys_values(torch.randn(2, 5, 16))).shape == (2, 3, 32)


def test_qk_norm_makes_attention_blind_to_the_scale_of_its_keys() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(32, 32, 4, qk_norm=True)
    x, source = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    before = layer(x, layer.keys_values(source))
    with torch.no_grad():
        layer.kv.weight[:32] *= 50
    torch.testing.assert_close(layer(x, layer.keys_values(source)), before, rtol=1e-3, atol=1e-4)


def test_xavier_bound_follows_the_stored_tensor_or_its_parts() -> None:
    torch.manual_seed(0)
    fused, apart = Linear(64, 192), Linear(64, 192, parts=3)
    assert math.sqrt(6 / 256) * 0.97 < fused.weight.abs().max() <= math.sqrt(6 / 256)
    assert math.sqrt(6 / 128) * 0.97 < apart.weight.abs().max() <= math.sqrt(6 / 128)
    assert not fused.bias.any()


def test_layer_scale_of_zero_makes_a_block_the_identity() -> None:
    x = torch.randn(2, 5, 16)
    assert torch.equal(SelfBlock(16, 2, layer_scale=0.0)(x), x)


def test_drop_path_keeps_the_mean_and_acts_only_in_training() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 1, 1))
    assert sorted(set(out.flatten().tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(layer.eval()(torch.ones(3, 1, 1)), torch.ones(3, 1, 1))


def test_mlp_uses_the_gelu_asked_for() -> None:
    torch.manual_seed(0)
    exact, tanh = MLP(8, 2), MLP(8, 2, approximate="tanh")
    tanh.load_state_dict(exact.state_dict())
    x = torch.randn(4, 8)
    hidden = exact[0](x)
    expected = exact[3](hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))
    torch.testing.assert_close(exact(x), expected)
    assert not torch.equal(tanh(x), exact(x))


def test_check_divides_names_both_options() -> None:
    with pytest.raises(ValueError, match=r"latent_dim \(30\) must be a multiple of heads \(16\)"):
        check_divides("latent_dim", 30, 16, "heads")
