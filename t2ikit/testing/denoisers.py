"""Checks of a denoiser: what it says of itself, its output, taps, windows and parts.

Texts are tried in ``denoiser_texts``; training, compiled code and copies in ``denoiser_training``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from t2ikit.batch import Prediction, Text, Texts, map_texts
from t2ikit.denoisers.base import Denoiser, LevelKind
from t2ikit.diffusion import GaussianDiffusion
from t2ikit.testing.base import (
    ROUNDING,
    Check,
    NotApplicable,
    Subject,
    expect,
    expect_same,
    random_state_kept,
)
from t2ikit.testing.trial import trial_text, windows

ABILITIES = frozenset({"window", "taps", "routes", "several_texts", "coherence"})
PARTS = frozenset({"time", "text", "core", "shell"})


@dataclass(frozen=True)
class Inputs:
    """Of one call: x [B, C, H, W], level [B] of the denoiser's kind, B texts."""

    x: Tensor
    level: Tensor
    text: Texts

    @staticmethod
    def of(denoiser: Denoiser, rows: int = 4, tokens: int = 5, seed: int = 0) -> Inputs:
        """Random ones, the same each time."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, *denoiser.input_shape, generator=generator)
        level = GaussianDiffusion().level(torch.linspace(0.1, 0.9, rows), denoiser.level_kind)
        return Inputs(x, level, trial_text(denoiser, rows, tokens, seed))

    def rows(self, *indices: int) -> Inputs:
        """The given rows."""
        index = torch.tensor(indices)
        return Inputs(self.x[index], self.level[index], map_texts(lambda text: text.rows(index), self.text))


@torch.no_grad()
def output(denoiser: Denoiser, inputs: Inputs, context: Any = None, state: Any = None) -> Tensor:
    """[B, C, H, W] without a graph."""
    context = denoiser.encode_text(inputs.text) if context is None else context
    prediction = denoiser(inputs.x, inputs.level, context, state)
    expect(
        isinstance(prediction, Prediction),
        f"forward must return a Prediction(output, state, features), but returned a {type(prediction).__name__}",
    )
    return prediction.output


def ready(subject: Subject[Denoiser]) -> tuple[Denoiser, Inputs]:
    """A new one in evaluation mode, and inputs for it."""
    denoiser = subject.fresh().eval()
    return denoiser, Inputs.of(denoiser)


# ------------------------------------------------------------------ what it says, and its output


def description(subject: Subject[Denoiser]) -> str:
    """Shape, width, kind of level and abilities are said in words that others know."""
    denoiser = subject.fresh()
    shape, kinds = denoiser.input_shape, get_args(LevelKind)
    sizes = isinstance(shape, tuple) and len(shape) == 3 and all(isinstance(size, int) and size > 0 for size in shape)
    expect(sizes, f"input_shape must be three sizes (C, H, W), as a batch without its first axis; it is {shape!r}")
    width = getattr(denoiser, "text_dim", None)
    given = [width] if isinstance(width, int) else list(width or [])
    expect(
        bool(given) and all(isinstance(size, int) and size > 0 for size in given),
        f"text_dim must be the width of the text states, set in the constructor; it is {width!r}",
    )
    expect(denoiser.level_kind in kinds, f"level_kind must be one of {', '.join(kinds)}; it is {denoiser.level_kind!r}")
    unknown = set(denoiser.supports) - ABILITIES
    expect(not unknown, f"supports may name {', '.join(sorted(ABILITIES))}; it names {', '.join(sorted(unknown))}")
    return f"x [B, {', '.join(map(str, shape))}], text {width}, level {denoiser.level_kind}"


def shape_and_dtype(subject: Subject[Denoiser]) -> None:
    """The output is finite and like x."""
    denoiser, inputs = ready(subject)
    for rows in (inputs, inputs.rows(1)):
        _expect_like(output(denoiser, rows), rows.x, "the output")


def bf16(subject: Subject[Denoiser]) -> None:
    """Under bf16 autocast, too."""
    denoiser, inputs = ready(subject)
    with torch.autocast("cpu", torch.bfloat16):
        actual = output(denoiser, inputs)
    _expect_like(actual, inputs.x, "under bf16 autocast the output")


def _expect_like(actual: Tensor, x: Tensor, what: str) -> None:
    expect(
        actual.shape == x.shape and actual.dtype == x.dtype,
        f"{what} must have shape and dtype of x, {list(x.shape)} {x.dtype}; it has {list(actual.shape)} "
        f"{actual.dtype}: end forward with output.to(x.dtype)",
    )
    expect(bool(actual.isfinite().all()), f"{what} must be finite; {int((~actual.isfinite()).sum())} numbers are not")


def rows_independent(subject: Subject[Denoiser]) -> None:
    """Row i alone is row i of a batch."""
    denoiser, inputs = ready(subject)
    whole = output(denoiser, inputs)
    for row in range(len(inputs.x)):
        expect_same(
            output(denoiser, inputs.rows(row)),
            whole[row : row + 1],
            f"row {row} alone must give what it gives in a batch: take no statistics over the batch (no batch norm)",
            ROUNDING,
        )


def arguments_unchanged(subject: Subject[Denoiser]) -> None:
    """Nothing is changed in place."""
    denoiser, inputs = ready(subject)
    before = Inputs(inputs.x.clone(), inputs.level.clone(), map_texts(_cloned, inputs.text))
    output(denoiser, inputs)
    expect_same(inputs, before, "x, level and text must stay as they are: change nothing in place")


def _cloned(text: Text) -> Text:
    return Text(text.embeddings.clone(), text.mask.clone(), None if text.pooled is None else text.pooled.clone())


def evaluation_repeats(subject: Subject[Denoiser]) -> None:
    """In evaluation mode nothing is random and nothing is remembered."""
    denoiser, inputs = ready(subject)
    with random_state_kept("a call in evaluation mode"):
        first = output(denoiser, inputs)
        output(denoiser, Inputs.of(denoiser, seed=9))
    sentence = "in evaluation mode the same call must give the same output: keep nothing from call to call"
    expect_same(output(denoiser, inputs), first, sentence)


def flops(subject: Subject[Denoiser]) -> str:
    """A figure: operations of one call on one row."""
    denoiser = subject.fresh().eval()
    inputs, counter = Inputs.of(denoiser, rows=1), FlopCounterMode(display=False)
    with counter:
        output(denoiser, inputs)
    return f"{counter.get_total_flops() / 1e6:,.2f} MFLOP a row, text of 5 tokens included"


# ------------------------------------------------------------------ taps, windows, parts


def taps(subject: Subject[Denoiser]) -> str:
    """Features after the blocks that were asked for; the output stays digit for digit."""
    denoiser, inputs = ready(subject)
    if "taps" not in denoiser.supports:
        raise NotApplicable('supports has no "taps"')
    context = denoiser.encode_text(inputs.text)

    def features(asked: Sequence[int]) -> tuple[Tensor, ...]:
        prediction = denoiser(inputs.x, inputs.level, context, taps=tuple(asked))
        expect_same(
            prediction.output.detach(),
            output(denoiser, inputs),
            "taps must not change the output, not in its last digit",
        )
        actual = prediction.features
        expect(
            isinstance(actual, tuple) and len(actual) == len(asked),
            f"features must be a tuple with one entry for each tap, {len(asked)}; it has {len(actual)}",
        )
        return actual

    expect(features(()) == (), "without taps, features must be empty")
    (first,) = features((1,))
    expect(
        first.dim() == 3 and len(first) == len(inputs.x),
        f"features must be image tokens [{len(inputs.x)}, N, D], one row a sample; they are {list(first.shape)}",
    )
    expect(first.requires_grad, "features must keep their graph, for terms train through them: do not detach them")
    count = denoiser.tapped_blocks
    expect(
        isinstance(count, int) and count >= 1,
        f'a denoiser that supports "taps" must say after how many blocks by `tapped_blocks`; it is {count!r}',
    )
    features((count,))
    beyond = f"a tap beyond the last block ({count + 1} of {count}) must be refused by a ValueError: use check_taps"
    _refused(lambda: features((count + 1,)), beyond)
    if count == 1:
        return f"features {list(first.shape)}, one block"
    last, again = features((2, 1))
    expect_same(again, first, "features must come in the order in which the taps were asked, (2, 1)")
    expect(not torch.equal(last, first), "features after block 2 must differ from those after block 1")
    return f"features {list(first.shape)}"


def _refused(call: Callable[[], Any], sentence: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{sentence}; it was not refused")


def window(subject: Subject[Denoiser]) -> None:
    """A part of an image is computed at its place."""
    denoiser, inputs = ready(subject)
    if "window" not in denoiser.supports:
        raise NotApplicable('supports has no "window"')
    for name in ("grid", "patch_size"):
        expect(hasattr(denoiser, name), f'a denoiser that supports "window" must have `{name}`, which Crop reads')
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(4, -1)
    sentence = "the window (0, 0, 1, 1) must be the same as none, the whole image"
    expect_same(
        output(denoiser, inputs, denoiser.encode_text(inputs.text, window=whole)),
        output(denoiser, inputs),
        sentence,
        ROUNDING,
    )
    results = []
    for shift in (0, 1):
        corners = windows(denoiser, inputs.x, shift)[1]
        cropped = Inputs(windows(denoiser, inputs.x)[0], inputs.level, inputs.text)
        actual = output(denoiser, cropped, denoiser.encode_text(inputs.text, window=corners))
        _expect_like(actual, cropped.x, "of a part of x the output")
        alone = denoiser.encode_text(cropped.rows(1).text, window=corners[1:2])
        sentence = "the window of a row must be its own: row 1 alone must give what it gives beside other windows"
        expect_same(output(denoiser, cropped.rows(1), alone), actual[1:2], sentence, ROUNDING)
        results.append(actual)
    expect(
        not torch.equal(*results),
        "the same part at another place must give another output, but gives the same: keep the tokens' positions",
    )


def coherence(subject: Subject[Denoiser]) -> None:
    """None is full coherence, 0 is something else, and every row has its own."""
    denoiser, inputs = ready(subject)
    if "coherence" not in denoiser.supports:
        raise NotApplicable('supports has no "coherence"')

    def given(value: Tensor | float) -> Tensor:
        return output(denoiser, inputs, denoiser.encode_text(inputs.text, coherence=value))

    plain, none = output(denoiser, inputs), given(0.0)
    expect_same(
        given(torch.ones(4)), plain, "coherence 1 must be the same as none given, as sampling takes it", ROUNDING
    )
    expect(not torch.equal(none, plain), "coherence 0 must give another output than 1; it is not read")
    mixed = given(torch.tensor([0.0, 1.0, 0.0, 1.0]))
    sentence = "the coherence of a row must be its own: rows of 0 and of 1 must give what they give alone"
    expect_same(mixed, torch.stack([none[0], plain[1], none[2], plain[3]]), sentence, ROUNDING)


def parts(subject: Subject[Denoiser]) -> str:
    """The prefixes of ``parts`` cover every parameter exactly once."""
    denoiser = subject.fresh()
    if not denoiser.parts:
        raise NotApplicable("`parts` is empty: no experiment can name a part of it")
    unknown = set(denoiser.parts) - PARTS
    expect(not unknown, f"parts are {', '.join(sorted(PARTS))}; got {', '.join(sorted(unknown))}")
    counts = dict.fromkeys(denoiser.parts, 0)
    for name, parameter in denoiser.named_parameters():
        homes = [part for part, prefixes in denoiser.parts.items() for prefix in prefixes if name.startswith(prefix)]
        told = " and ".join(homes) or "no part"
        expect(len(homes) == 1, f"every parameter must be in one part, but {name} is in {told}: change `parts`")
        counts[homes[0]] += parameter.numel()
    return ", ".join(f"{part} {count:,}" for part, count in counts.items())


CHECKS: tuple[Check[Denoiser], ...] = (
    Check("description", description),
    Check("shape and dtype", shape_and_dtype),
    Check("bf16 autocast", bf16),
    Check("rows independent", rows_independent),
    Check("arguments unchanged", arguments_unchanged),
    Check("evaluation repeats", evaluation_repeats),
    Check("taps", taps),
    Check("window", window),
    Check("coherence", coherence),
    Check("parts", parts),
    Check("FLOPs", flops),
)
