"""Which attention kernels the denoisers leave open, and what text length costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import tiny
from t2ikit.batch import Text
from t2ikit.denoisers import CADI, Denoiser, DiTI
from t2ikit.denoisers.cad_i import cad_i_b, cad_i_l, cad_i_s
from t2ikit.denoisers.layers import key_bias

BUCKET = 16  # of the data module


@dataclass
class Call:
    """One attention: queries [B, heads, N, width], keys [B, heads, K, width], bias or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None


class Attentions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls.append(Call(*args[:3], (kwargs or {}).get("attn_mask")))
            assert set(kwargs or {}) <= {"attn_mask"} and len(args) == 3
        return func(*args, **(kwargs or {}))


def cad_i() -> CADI:
    return tiny.cad_i(data_dim=64, latent_dim=128)


def inputs(denoiser: Denoiser, rows: int, tokens: int, device: str) -> tuple[Tensor, Tensor, Text]:
    mask = torch.ones(rows, tokens, dtype=torch.bool, device=device)
    text = Text(torch.zeros(rows, tokens, denoiser.text_dim, device=device), mask)
    return torch.zeros(rows, *denoiser.input_shape, device=device), torch.full((rows,), 0.5, device=device), text


def step(denoiser: Denoiser, rows: int, tokens: int, device: str, keep: Tensor | None = None) -> Tensor:
    """Text, first pass and main pass, as the objective runs them."""
    x, level, text = inputs(denoiser, rows, tokens, device)
    context = denoiser.encode_text(text)
    state = denoiser.self_condition(x, level, context, torch.ones(rows, dtype=torch.bool) if keep is None else keep)
    return denoiser(x, level, context, state).output


@contextmanager
def on_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("build", [cad_i, tiny.dit_i])
@pytest.mark.parametrize("precision", ["autocast", "weights"])
def test_attention_gets_no_mask_or_a_bias_of_the_keys_alone(build: Callable[[], Denoiser], precision: str) -> None:
    denoiser = build().bfloat16() if precision == "weights" else build()
    with Attentions() as seen, torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        step(denoiser, 3, 21, "cpu")
    biased = [call for call in seen.calls if call.bias is not None]
    assert 0 < len(biased) < len(seen.calls)
    for call in seen.calls:
        # What the flash kernels ask for; grouped or causal attention is never asked of them.
        assert call.q.dtype == call.k.dtype == call.v.dtype == torch.bfloat16
        assert call.q.shape[3] == call.k.shape[3] == call.v.shape[3] and call.q.shape[3] % 8 == 0
        assert call.q.stride(3) == call.k.stride(3) == call.v.stride(3) == 1
    for call in biased:
        assert call.bias is not None
        rows, keys = call.q.shape[0], call.k.shape[2]
        assert call.bias.shape == (rows, 1, 1, keys) and call.bias.dtype == torch.bfloat16
        # The memory-efficient kernel reads this as it lies: rows 16 bytes apart, else it makes a padded copy each time.
        assert call.bias.stride(3) == 1 and all(stride % 8 == 0 for stride in call.bias.stride()[:3])
        assert call.bias.data_ptr() % 16 == 0
        assert call.bias.untyped_storage().nbytes() <= rows * (keys + 15) * 2


@pytest.mark.parametrize(
    ("build", "head_widths", "biased", "share"),
    [
        # Biased: 2 refine blocks, then one look at the condition a block and pass.
        (cad_i_l, {16, 64}, 2 + 2 * 4, 0.19),
        (cad_i_b, {16, 48, 64}, 2 + 2 * 4, 0.31),
        (cad_i_s, {32, 64}, 2 + 2 * 3, 0.40),
        (DiTI, {64}, 2 + 24, 0.47),
    ],
)
def test_most_attention_of_the_papers_models_can_run_in_flash(
    build: Callable[[], Denoiser], head_widths: set[int], biased: int, share: float
) -> None:
    """Flash takes no bias; ``share`` is the most that attention with one may take of all attention FLOPs."""
    with on_meta():
        denoiser = build()
    with Attentions() as seen:
        step(denoiser, 2, 192, "meta")
    assert {call.q.shape[3] for call in seen.calls} == head_widths
    assert all(width % 8 == 0 and width <= 256 for width in head_widths)
    assert sum(call.bias is not None for call in seen.calls) == biased
    cost = [(call.q.shape[1] * call.q.shape[2] * call.k.shape[2] * call.q.shape[3], call.bias) for call in seen.calls]
    found = sum(flops for flops, bias in cost if bias is not None) / sum(flops for flops, _ in cost)
    assert found <= share, found


class Square(TorchDispatchMode):
    """Results that end in [queries, keys] of an attention."""

    def __init__(self, shapes: set[tuple[int, int]]) -> None:
        super().__init__()
        self.shapes = shapes
        self.found: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, Tensor) and tuple(each.shape[-2:]) in self.shapes:
                self.found.append(str(func))
                self.bytes += each.nbytes
        return result


@pytest.mark.parametrize("build", [cad_i, tiny.dit_i])
def test_no_table_of_queries_by_keys_is_made(build: Callable[[], Denoiser]) -> None:
    denoiser = build()
    with Attentions() as seen:
        step(denoiser, 3, 22, "cpu")
    shapes = {(call.q.shape[2], call.k.shape[2]) for call in seen.calls if call.bias is not None}
    assert len(shapes) == 2 and not any(24 in shape or 64 in shape for shape in shapes)  # no width looks like it
    with Square(shapes) as table:
        step(denoiser, 3, 22, "cpu").sum().backward()
    assert table.bytes == 0, table.found
    with Square({(5, 9)}) as table:  # a dense mask would be seen
        key_bias(torch.ones(2, 9, dtype=torch.bool), torch.zeros(1)).expand(2, 1, 5, 9).contiguous()
    assert table.bytes > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are asked, which needs a GPU")
@pytest.mark.parametrize("build", [cad_i, tiny.dit_i])
def test_the_kernels_say_yes(build: Callable[[], Denoiser]) -> None:
    from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

    denoiser = build().cuda()
    with Attentions() as seen, torch.autocast("cuda", dtype=torch.bfloat16):
        step(denoiser, 3, 21, "cuda")
    for call in seen.calls:
        parameters = SDPAParams(call.q, call.k, call.v, call.bias, 0.0, False, False)
        assert can_use_efficient_attention(parameters, True)
        assert can_use_flash_attention(parameters, call.bias is None) == (call.bias is None)


def linear(tokens: float, width: int, out: int) -> float:
    return 2 * tokens * width * out


def cad_i_arithmetic(denoiser: CADI, text: float) -> tuple[float, float, float]:
    """FLOPs of one sample by hand, with ``text`` tokens: text path, the rest of a forward, the first pass."""
    rin = denoiser.rin_blocks
    m, d = denoiser.latents.shape
    n, dd = denoiser.data_pos_embedding.shape
    a, layers = min(d, dd), len(rin[0].processer_sa)
    ratio, data_ratio = rin[0].retrieve_cond.ffn[0].out_features // d, rin[0].writer_ca.ffn[0].out_features // dd
    s = text + denoiser.num_registers

    def mlp(tokens: float, width: int, times: int) -> float:
        return 2 * linear(tokens, width, times * width)

    def self_block(tokens: float, width: int, times: int) -> float:
        return linear(tokens, width, 4 * width) + 4 * tokens * tokens * width + mlp(tokens, width, times)

    path = linear(text, denoiser.text_dim, d) + 2 * self_block(s, d, 4) + len(rin) * linear(s, d, 2 * d)
    condition = linear(1, d, 2 * d) + linear(m, d, 2 * d) + 4 * m * (s + 1) * d + mlp(m, d, ratio)
    read = linear(m, d, 2 * a) + linear(n, dd, 2 * a) + 4 * m * n * a + mlp(m, d, ratio)
    write = linear(n, dd, 2 * a) + linear(m, d, 2 * a) + 4 * m * n * a + mlp(n, dd, data_ratio)
    block = condition + read + layers * self_block(m, d, ratio) + write
    ends = linear(n, 16, dd) + linear(n, dd, 16) + linear(1, d // 4, d) + linear(1, d, d) + mlp(m, d, 4)
    rest = len(rin) * block + ends
    # The first pass neither writes last nor makes an output, and its zero latents are one row for all.
    return path, rest, rest - write - linear(n, dd, 16) - mlp(m, d, 4)


def dit_i_arithmetic(denoiser: DiTI, text: float) -> tuple[float, float, float]:
    """The same for DiT-I, which has no first pass."""
    d, n = denoiser.hidden_size, denoiser.grid[0] * denoiser.grid[1]
    s, depth = text + denoiser.num_registers, len(denoiser.blocks)
    refine = linear(s, d, 4 * d) + 4 * s * s * d + 2 * linear(s, d, 4 * d)
    path = linear(text, denoiser.text_dim, d) + 2 * refine + depth * linear(s, d, 2 * d)
    attentions = linear(n, d, 4 * d) + 4 * n * n * d + linear(n, d, 2 * d) + linear(1, d, 2 * d) + 4 * n * (s + 1) * d
    ends = linear(n, 16, d) + linear(n, d, 16) + linear(1, d // 4, d) + linear(1, d, d)
    return path, depth * (attentions + 2 * linear(n, d, 4 * d)) + ends, 0.0


@pytest.mark.parametrize(
    ("build", "arithmetic"), [(cad_i_s, cad_i_arithmetic), (cad_i_l, cad_i_arithmetic), (DiTI, dit_i_arithmetic)]
)
def test_180_tokens_in_their_bucket_cost_what_180_tokens_cost(
    build: Callable[..., Any], arithmetic: Callable[[Any, float], tuple[float, float, float]]
) -> None:
    """A whole training step of ten rows, against arithmetic by hand: at most 1.03 x with the padding of the bucket."""
    with on_meta():
        denoiser = build()

    def by_hand(tokens: int) -> float:
        path, rest, first = arithmetic(denoiser, tokens)
        return 3 * (path + rest) + 0.9 * first  # a backward pass is two forward passes

    bucketed = -(-180 // BUCKET) * BUCKET
    assert bucketed == 192
    with FlopCounterMode(display=False) as counter:
        step(denoiser, 10, bucketed, "meta", torch.arange(10) < 9).sum().backward()
    measured = counter.get_total_flops() / 10
    assert measured == pytest.approx(by_hand(bucketed), rel=0.01)
    assert by_hand(180) < measured <= 1.03 * by_hand(180)
