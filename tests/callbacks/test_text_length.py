"""ByTextLength: parts of about one text length have the losses and gradients of the whole, with less padding."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from t2ikit.batch import Batch, StepOutput, Text
from t2ikit.callbacks import ByTextLength, Crop
from t2ikit.denoisers import DiTI
from t2ikit.diffusion import Denoising
from t2ikit.encoders import PixelSpace
from t2ikit.module import TextToImage

SIZES: dict[str, Any] = {"input_size": 8, "in_channels": 3, "patch_size": 2, "hidden_size": 32, "depth": 2}
LENGTHS = np.array([9, 2, 7, 3, 1, 8, 4, 2, 5, 9])


def batch(*widths: int, slot: int = 40) -> Batch:
    """Ten rows with captions of LENGTHS tokens; of several encoders each further one has a token more."""
    generator = torch.Generator().manual_seed(slot)
    texts, lengths = [], []
    for number, width in enumerate(widths):
        lengths.append(LENGTHS + number)
        states = [torch.randn(int(length), width, generator=generator) for length in lengths[-1]]
        texts.append(Text.from_rows(states).pad(16))
    x, t = torch.randn(10, 3, 8, 8, generator=generator), torch.rand(10, generator=generator)
    zeros, index = torch.zeros(10, dtype=torch.long), torch.arange(10)
    text = texts[0] if len(texts) == 1 else tuple(texts)
    return Batch(x, text, t, zeros, index, slot=slot, text_lengths=np.stack(lengths, axis=1))


def module(*callbacks: Any, text_dim: Any = 8, **options: Any) -> TextToImage:
    torch.manual_seed(0)
    denoiser = DiTI(**SIZES, num_heads=4, text_dim=text_dim, num_registers=2, **options)
    with torch.no_grad():
        denoiser.final.weight.normal_(std=0.1)  # it starts at zero, where nothing shows
    built = TextToImage(denoiser.double(), Denoising(text_drop=0.3), PixelSpace())
    empty = tuple(
        Text(torch.ones(1, 1, width), torch.ones(1, 1, dtype=torch.bool))
        for width in ([text_dim] if isinstance(text_dim, int) else text_dim)
    )
    built.unconditional = empty[0] if isinstance(text_dim, int) else empty
    for callback in callbacks:
        callback.register(SimpleNamespace(batch_size=10, length_bucket=4), built)
    return built


def step(built: TextToImage, whole: Batch) -> StepOutput:
    parts: tuple[Batch, ...] = (whole.to(torch.float64),)
    for transform in built._transforms:
        parts = tuple(part for one in parts for part in transform(one))
    output = built.training_step(parts, 0)
    output["loss"].backward()
    return output["step"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("widths", [(8,), (8, 5)], ids=["one encoder", "two encoders"])
def test_losses_and_gradients_are_those_of_the_whole(widths: tuple[int, ...]) -> None:
    text_dim = widths[0] if len(widths) == 1 else list(widths)
    plain, split = module(text_dim=text_dim), module(ByTextLength(3), text_dim=text_dim)
    expected, actual = step(plain, batch(*widths)), step(split, batch(*widths))
    assert sorted(actual.index.tolist()) == list(range(10))
    assert torch.allclose(actual.loss, expected.loss[actual.index], rtol=1e-12)
    pairs = zip(plain.denoiser.parameters(), split.denoiser.parameters(), strict=True)
    assert all(torch.allclose(b.grad, a.grad, rtol=1e-9, atol=1e-12) for a, b in pairs if a.grad is not None)


def test_each_part_is_padded_to_its_own_longest() -> None:
    callback = ByTextLength(3)
    module(callback)
    parts = callback.augment(batch(8))
    assert [len(part) for part in parts] == [4, 3, 3]
    assert [part.text.mask.shape[1] for part in parts] == [4, 8, 12]  # 3, 7 and 9 tokens in buckets of 4
    assert [part.text.mask.sum(1).tolist() for part in parts] == [[1, 2, 2, 3], [4, 5, 7], [8, 9, 9]]
    slots = np.concatenate([part.slots for part in parts])
    assert slots.tolist() == (40 + np.argsort(LENGTHS, kind="stable")).tolist()


def test_with_crop_windows_keep_their_texts() -> None:
    for callbacks in ((Crop(), ByTextLength(2)), (ByTextLength(2), Crop())):
        built = module(*callbacks, window_tokens=True)
        output = step(built, batch(8))
        expected = step(module(Crop(), window_tokens=True), batch(8))
        order = {int(index): row for row, index in enumerate(expected.index)}
        rows = torch.tensor([order[int(index)] for index in output.index])
        assert torch.allclose(output.loss, expected.loss[rows], rtol=1e-12)


def test_one_part_and_unknown_lengths_leave_the_batch_alone() -> None:
    whole = batch(8)
    assert ByTextLength(1).augment(whole) == (whole,)
    unknown = replace(whole, text_lengths=None)
    assert ByTextLength(3).augment(unknown) == (unknown,)


def test_fewer_rows_than_parts() -> None:
    callback = ByTextLength(5)
    module(callback)
    assert [len(part) for part in callback.augment(batch(8).part(0, 2))] == [1, 1]


class Compares(nn.Module):
    compares_rows = True


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        ByTextLength(0)
    objective = nn.ModuleList([Compares()])
    with pytest.raises(ValueError, match="by_text_length: a term of the objective compares the rows"):
        ByTextLength().validate_experiment(SimpleNamespace(model=SimpleNamespace(objective=objective)))
    compiled = SimpleNamespace(model=SimpleNamespace(compiled=object(), objective=objective))
    with pytest.raises(ValueError, match="compiled for every text length of every part: remove .* or --model.compile"):
        ByTextLength().validate_experiment(compiled)
    ByTextLength(1).validate_experiment(compiled)  # off
