"""Texts of several encoders, and pooled vectors, in the denoisers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from t2ikit.batch import Text
from t2ikit.denoisers import Denoiser
from t2ikit.diffusion import Denoising, RectifiedFlow, sample
from tiny import awake, cad_i, dit_i

TWO: dict[str, Any] = {"text_dim": [24, 10], "pooled_dim": 7}
every = pytest.mark.parametrize("build", [cad_i, dit_i, lambda **o: dit_i(time_conditioning="adaln_single", **o)])


def inputs(rows: int = 4) -> tuple[Tensor, Tensor, tuple[Text, Text]]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.arange(1, rows + 1)[:, None]
    first = Text(
        torch.randn(rows, 5, 24, generator=generator),
        torch.arange(5) < lengths,
        torch.randn(rows, 7, generator=generator),
    )
    second = Text(torch.randn(rows, 6, 10, generator=generator), torch.arange(6) < lengths.flip(0))
    x = torch.randn(rows, 4, 8, 8, generator=generator)
    return x, torch.linspace(0.1, 0.9, rows), (first, second)


@every
@pytest.mark.parametrize("value", [1e4, float("nan"), float("inf")])
def test_what_either_mask_hides_changes_no_digit(build: Callable[..., Denoiser], value: float) -> None:
    denoiser = awake(build(**TWO)).eval()
    x, level, texts = inputs()
    expected = denoiser(x, level, denoiser.encode_text(texts)).output
    for index, text in enumerate(texts):
        garbage = torch.where(text.mask[..., None], text.embeddings, value)
        hidden = tuple(replace(text, embeddings=garbage) if k == index else other for k, other in enumerate(texts))
        output = denoiser(x, level, denoiser.encode_text(hidden)).output
        assert torch.equal(output, expected)
        denoiser.zero_grad()
        output.sum().backward()
        gradients = [parameter.grad for parameter in denoiser.parameters() if parameter.grad is not None]
        assert gradients and all(bool(gradient.isfinite().all()) for gradient in gradients)


@every
def test_a_fresh_network_ignores_pooled_vectors(build: Callable[..., Denoiser]) -> None:
    x, level, (first, second) = inputs()
    other = replace(first, pooled=first.pooled + 1.0)
    for denoiser, equal in ((build(**TWO).eval(), True), (awake(build(**TWO)).eval(), False)):
        if equal and hasattr(denoiser, "final"):  # which starts at zero and would hide any difference
            torch.nn.init.normal_(denoiser.final.weight)
        outputs = [denoiser(x, level, denoiser.encode_text((text, second))).output for text in (first, other)]
        assert torch.equal(*outputs) == equal


@every
def test_the_names_of_one_text_stay(build: Callable[..., Denoiser]) -> None:
    one, listed, two = build(), build(text_dim=[24]), build(**TWO)
    assert one.state_dict().keys() == listed.state_dict().keys() and listed.text_dim == 24
    assert "several_texts" in two.supports and "several_texts" not in one.supports
    (projection,) = (name for name in one.state_dict() if name in ("map_text_tokens.weight", "text_proj.weight"))
    name = projection.removesuffix(".weight")
    assert {f"{name}.0.weight", f"{name}.1.weight"} <= two.state_dict().keys()


@every
def test_rows_and_cat_of_a_context(build: Callable[..., Denoiser]) -> None:
    denoiser = awake(build(**TWO)).eval()
    x, level, texts = inputs()
    expected = denoiser(x, level, denoiser.encode_text(texts)).output
    short = tuple(
        Text(text.embeddings[:2, :4], text.mask[:2, :4], None if text.pooled is None else text.pooled[:2])
        for text in texts
    )
    context = denoiser.encode_text(texts)
    rows = torch.tensor([3, 1])
    torch.testing.assert_close(denoiser(x[rows], level[rows], context.rows(rows)).output, expected[rows])
    joined = denoiser.encode_text(short).cat(context.rows(rows)).detach()
    order = torch.tensor([0, 1, 3, 1])
    alone = denoiser(x[:2], level[:2], denoiser.encode_text(short)).output
    actual = denoiser(x[order], level[order], joined).output
    torch.testing.assert_close(actual, torch.cat([alone, expected[rows]]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="both have a pooled"):
        context.cat(replace(context, pooled=None))


@every
def test_wrong_pooled_vectors_are_refused(build: Callable[..., Denoiser]) -> None:
    first, second = inputs()[2]
    denoiser = build(**TWO)
    with pytest.raises(ValueError, match="pooled vectors of 7 numbers.*pooled_dim.*got 0"):
        denoiser.encode_text((replace(first, pooled=None), second))
    both = (first, replace(second, pooled=torch.ones(4, 2)))
    with pytest.raises(ValueError, match="got 9"):
        denoiser.encode_text(both)
    assert build(text_dim=[24, 10]).encode_text(both).pooled is None
    assert build(text_dim=[24, 10], pooled_dim=9).encode_text(both).pooled.shape == (4, 64)
    with pytest.raises(ValueError, match="same rows"):
        denoiser.encode_text((first, second.rows(slice(2))))
    with pytest.raises(ValueError, match="positive width"):
        build(text_dim=[])


@every
def test_loss_and_sampling_take_a_tuple(build: Callable[..., Denoiser]) -> None:
    denoiser = awake(build(**TWO))
    x, level, texts = inputs()
    keep = torch.tensor([True, False, True, True])
    loss_B = Denoising().loss(denoiser, x, torch.randn_like(x), level, texts, keep)
    loss_B.mean().backward()
    assert loss_B.shape == (4,) and all(parameter.grad is not None for parameter in denoiser.parameters())
    empty = tuple(text.rows(slice(1)) for text in texts)
    options: dict[str, Any] = {"steps": 3, "guidance": 2.0, "method": "euler"}
    images = sample(denoiser, RectifiedFlow(), x, texts, empty, **options)
    row = torch.tensor([2])
    alone = sample(denoiser, RectifiedFlow(), x[row], tuple(text.rows(row) for text in texts), empty, **options)
    torch.testing.assert_close(images[row], alone, rtol=1e-3, atol=1e-4)


@every
def test_operations_of_a_second_text_are_counted(build: Callable[..., Denoiser]) -> None:
    """Two texts of one width cost what one text of all their tokens costs."""
    x, level, (first, _) = inputs()
    first = replace(first, pooled=None)
    long = first.pad(10)
    counts = []
    for denoiser, text in ((build(), long), (build(text_dim=[24, 24]), (first, first))):
        with FlopCounterMode(display=False) as counter:
            denoiser(x, level, denoiser.encode_text(text))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
