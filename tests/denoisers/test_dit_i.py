"""DiT-I: parameter counts, options, windows, cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tiny
from t2ikit.batch import Text
from t2ikit.denoisers import DiTI
from t2ikit.denoisers.embeddings import sincos_grid


def small(**options: object) -> DiTI:
    """A small DiT-I whose output is not switched off."""
    torch.manual_seed(0)
    denoiser = tiny.dit_i(depth=2, **options)
    torch.nn.init.normal_(denoiser.final.weight)
    return denoiser


def inputs(rows: int = 3) -> tuple[Tensor, Tensor, Text]:
    generator = torch.Generator().manual_seed(1)
    text = Text(torch.randn(rows, 4, 24, generator=generator), torch.ones(rows, 4, dtype=torch.bool))
    return torch.randn(rows, 4, 8, 8, generator=generator), torch.rand(rows, generator=generator), text


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 431_859_984),
        ({"window_tokens": True}, 433_176_848),
        ({"time_conditioning": "adaln_single"}, 438_305_040),
    ],
)
def test_parameter_counts(options: dict[str, object], count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in DiTI(**options).parameters()) == count


@pytest.mark.parametrize(("size", "gigaflops"), [(32, 236.6), (64, 895.0)])
def test_a_forward_costs_what_the_arithmetic_says(size: int, gigaflops: float) -> None:
    with torch.device("meta"):
        denoiser = DiTI(size)
        text = Text(torch.empty(1, 256, 2048), torch.empty(1, 256).bool())
        x, level = torch.empty(1, 4, size, size), torch.empty(1)
    with FlopCounterMode(display=False) as counter:
        denoiser(x, level, denoiser.encode_text(text))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gigaflops, rel=0.01)


def test_a_fresh_network_predicts_zero() -> None:
    x, level, text = inputs()
    denoiser = tiny.dit_i(depth=2, num_registers=16)
    assert not denoiser(x, level, denoiser.encode_text(text)).output.any()


def test_there_is_no_state() -> None:
    x, level, text = inputs()
    denoiser = small()
    context = denoiser.encode_text(text)
    assert denoiser.self_condition(x, level, context, torch.ones(3, dtype=torch.bool)) is None
    assert denoiser(x, level, context).state is None


def test_layer_scale_init_reaches_every_branch() -> None:
    x, level, text = inputs()
    denoiser = small(layer_scale_init=0.0)
    tokens: list[Tensor] = []
    denoiser.final_norm.register_forward_pre_hook(lambda module, args: tokens.append(args[0]))
    denoiser(x, level, denoiser.encode_text(text))
    torch.testing.assert_close(tokens[0], denoiser.patch_embed(x) + denoiser._positions.flatten(0, 1))


def test_adaln_keeps_the_level_out_of_the_context() -> None:
    text = inputs()[2]
    assert small().encode_text(text).mask.shape == (3, 1 + 3 + 4)
    assert small(time_conditioning="adaln_single").encode_text(text).mask.shape == (3, 3 + 4)
    with pytest.raises(ValueError, match="time_conditioning"):
        small(time_conditioning="film")


def test_the_whole_window_is_the_default() -> None:
    x, level, text = inputs()
    denoiser = small(window_tokens=True)
    plain = denoiser(x, level, denoiser.encode_text(text)).output
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, -1)
    assert torch.equal(denoiser(x, level, denoiser.encode_text(text, window=whole)).output, plain)
    other = torch.tensor([[0.25, 0.0, 1.0, 1.0]]).expand(3, -1)
    assert not torch.allclose(denoiser(x, level, denoiser.encode_text(text, window=other)).output, plain)


def test_a_window_is_drawn_with_the_positions_of_the_whole_grid() -> None:
    x, level, text = inputs()
    denoiser = small(window_tokens=True, layer_scale_init=0.0)
    whole = denoiser(x, level, denoiser.encode_text(text)).output
    # With the branches off, tokens do not see each other: a part of x gives that part of the output.
    window = torch.tensor([[0.25, 0.0, 1.0, 0.75], [0.0, 0.25, 0.75, 1.0], [0.0, 0.0, 0.75, 0.75]])
    corners = [(0, 2), (2, 0), (0, 0)]
    part = torch.stack([x[i, :, r : r + 6, c : c + 6] for i, (r, c) in enumerate(corners)])
    found = denoiser(part, level, denoiser.encode_text(text, window=window)).output
    expected = torch.stack([whole[i, :, r : r + 6, c : c + 6] for i, (r, c) in enumerate(corners)])
    torch.testing.assert_close(found, expected)


def test_inputs_it_was_not_built_for_are_refused() -> None:
    x, level, text = inputs()
    with pytest.raises(ValueError, match="window_tokens=True"):
        small().encode_text(text, window=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="coherence"):
        small().encode_text(text, coherence=torch.ones(3))
    with pytest.raises(ValueError, match=r"window \[3, 4\] was expected"):
        small(window_tokens=True).encode_text(text, window=torch.zeros(4))
    with pytest.raises(ValueError, match="input_size"):
        denoiser = small()
        denoiser(x[..., :6, :6], level, denoiser.encode_text(text))


def test_sizes_that_are_not_square() -> None:
    denoiser = tiny.dit_i(input_size=(8, 12), in_channels=3, depth=1, num_registers=16)
    text = inputs(2)[2]
    x = torch.randn(2, 3, 8, 12)
    assert denoiser(x, torch.rand(2), denoiser.encode_text(text)).output.shape == x.shape


def test_position_table_stays_fp32_through_a_cast() -> None:
    denoiser = small()
    before = denoiser._positions.clone()
    assert torch.equal(denoiser.bfloat16()._positions, before)
    assert not [name for name in denoiser.state_dict() if "position" in name]


def test_other_sizes_leave_the_positions_of_the_input_size_as_they_were() -> None:
    """A stage on aspect buckets starts from a network of squares, and predicts the same for a square."""
    square, buckets = tiny.dit_i(), tiny.dit_i(other_sizes=[(12, 4), (4, 12)])
    buckets.load_state_dict(square.state_dict())
    assert buckets.grid == (6, 6) and square.grid == (4, 4)
    assert torch.equal(buckets._positions[1:5, 1:5], square._positions)
    step = 16 / 4
    columns = sincos_grid((1, 6), 64, torch.device("cpu"), whole=(1, 4))[0, :, :16]
    omega = torch.tensor([10000 ** (-i / 16) for i in range(16)])
    torch.testing.assert_close(columns, (torch.arange(-1, 5.0)[:, None] * step * omega).sin())
