"""A part of an image: what a network gives for it is what it would give with the rest masked out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor

import tiny
from t2ikit.batch import Text
from t2ikit.denoisers import CADI, DiTI, cad_i_l
from t2ikit.denoisers.cad_i import RINBlock
from t2ikit.denoisers.dit_i import DiTBlock
from t2ikit.denoisers.layers import key_bias
from t2ikit.denoisers.windows import window_places


def cad_i(**options: object) -> CADI:
    return tiny.awake(tiny.cad_i(**options)).double()


def dit_i(**options: object) -> DiTI:
    return tiny.awake(tiny.dit_i(**options)).double()


both = pytest.mark.parametrize("build", [cad_i, dit_i])


def inputs() -> tuple[Tensor, Tensor, Text]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = Text(torch.randn(3, 5, 24, generator=generator).double(), torch.ones(3, 5, dtype=torch.bool))
    text.mask[1, 2:] = False
    return x, torch.rand(3, generator=generator).double(), text


WINDOW = torch.tensor([[0.25, 0.0, 1.0, 0.75], [0.0, 0.25, 0.75, 1.0], [0.0, 0.0, 0.75, 0.75]])
CORNERS = [(0, 2), (2, 0), (0, 0)]


def part_of(x: Tensor) -> Tensor:
    return torch.stack([x[i, :, r : r + 6, c : c + 6] for i, (r, c) in enumerate(CORNERS)])


def hide_the_rest(denoiser: CADI | DiTI) -> None:
    """Masks the patches outside of WINDOW as keys, in the attentions that look at the image."""
    seen = torch.zeros(3, 16, dtype=torch.bool)
    seen.scatter_(1, window_places(WINDOW, (4, 4), (3, 3)), True)
    bias = key_bias(seen, torch.empty(0, dtype=torch.float64))
    for block in denoiser.rin_blocks if isinstance(denoiser, CADI) else denoiser.blocks:
        looks = block.retriever_ca if isinstance(block, RINBlock) else cast(DiTBlock, block).self_attention
        looks.forward = partial(looks.forward, bias=bias)  # type: ignore[method-assign]


@both
def test_leaving_the_rest_out_is_masking_it(build: Callable[..., CADI | DiTI]) -> None:
    x, level, text = inputs()
    denoiser = build(window_tokens=True)
    context = denoiser.encode_text(text, window=WINDOW)
    keep = torch.ones(3, dtype=torch.bool)
    state = denoiser.self_condition(part_of(x), level, context, keep)
    part = denoiser(part_of(x), level, context, state).output
    assert part.shape == (3, 4, 6, 6)
    whole = denoiser(x, level, context).output
    assert not torch.allclose(part_of(whole), part, atol=1e-3)  # the rest does count
    hide_the_rest(denoiser)
    masked = denoiser(x, level, context, denoiser.self_condition(x, level, context, keep)).output
    torch.testing.assert_close(part, part_of(masked), rtol=1e-9, atol=1e-9)


@both
def test_the_network_is_told_the_window(build: Callable[..., CADI | DiTI]) -> None:
    x, level, text = inputs()
    denoiser = build(window_tokens=True)
    plain = denoiser(x, level, denoiser.encode_text(text)).output
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, -1)
    assert torch.equal(denoiser(x, level, denoiser.encode_text(text, window=whole)).output, plain)
    assert not torch.allclose(denoiser(x, level, denoiser.encode_text(text, window=WINDOW)).output, plain, atol=1e-4)
    context = denoiser.encode_text(text, window=WINDOW)
    rows = torch.tensor([2, 0])
    chosen = denoiser(part_of(x)[rows], level[rows], context.rows(rows)).output
    torch.testing.assert_close(chosen, denoiser(part_of(x), level, context).output[rows], rtol=1e-9, atol=1e-9)


@both
def test_gradients_reach_the_window_tokens_and_the_places_in_sight(build: Callable[..., CADI | DiTI]) -> None:
    x, level, text = inputs()
    denoiser = build(window_tokens=True)
    corner = torch.tensor([[0.0, 0.0, 0.75, 0.75]]).expand(3, -1)
    denoiser(x[..., :6, :6], level, denoiser.encode_text(text, window=corner)).output.square().mean().backward()
    assert denoiser.window_embed is not None
    assert all(p.grad is not None and p.grad.any() for p in denoiser.window_embed.parameters())
    if isinstance(denoiser, CADI):
        assert denoiser.data_pos_embedding.grad is not None
        reached = denoiser.data_pos_embedding.grad.any(1).view(4, 4)
        assert reached[:3, :3].all() and not reached[3].any() and not reached[:, 3].any()


def test_coherence_and_window_go_together() -> None:
    x, level, text = inputs()
    denoiser = cad_i(window_tokens=True, coherence=True)
    context = denoiser.encode_text(text, window=WINDOW, coherence=torch.rand(3).double())
    assert (
        context.mask.shape == (3, 1 + 1 + 3 + 5 + 4)
        and context.mask[1].tolist() == [True] * 7 + [False] * 3 + [True] * 4
    )
    assert denoiser(part_of(x), level, context).output.isfinite().all()


def test_the_size_of_the_paper_s_model() -> None:
    with torch.device("meta"):
        denoiser = cad_i_l(window_tokens=True)
    # As for DiT-I: 256 -> 1024 -> 1024 with biases, and four vectors of 1024.
    assert sum(p.numel() for p in denoiser.parameters()) == 330_235_152 + 1_316_864


@both
def test_what_does_not_fit_is_refused(build: Callable[..., CADI | DiTI]) -> None:
    x, level, text = inputs()
    with pytest.raises(ValueError, match="window_tokens=True"):
        build().encode_text(text, window=WINDOW)
    denoiser = build(window_tokens=True)
    with pytest.raises(ValueError, match=r"window \[3, 4\] was expected"):
        denoiser.encode_text(text, window=torch.zeros(4))
    context = denoiser.encode_text(text, window=WINDOW)
    for wrong in (torch.zeros(3, 3, 6, 6), torch.zeros(3, 4, 10, 6)):
        with pytest.raises(ValueError, match="or a window of it, was expected"):
            denoiser(wrong, level, context)
