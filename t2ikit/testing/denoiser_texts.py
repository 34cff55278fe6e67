"""Checks of what a denoiser makes of texts: masks, padding, and the operations of a context."""

from __future__ import annotations

import torch
from torch import Tensor

from t2ikit.batch import Text, each_text, map_texts
from t2ikit.denoisers.base import Denoiser
from t2ikit.testing.base import ROUNDING, Check, NotApplicable, Subject, expect, expect_same
from t2ikit.testing.denoisers import Inputs, output, ready
from t2ikit.testing.trial import trial_text


def masked_text(subject: Subject[Denoiser]) -> None:
    """What the mask hides changes nothing."""
    denoiser, inputs = ready(subject)
    hidden = map_texts(
        lambda text: Text(torch.where(text.mask[..., None], text.embeddings, 50.0), text.mask, text.pooled), inputs.text
    )
    sentence = "text states that the mask hides must change nothing: hide them in every attention and mean"
    expect_same(output(denoiser, Inputs(inputs.x, inputs.level, hidden)), output(denoiser, inputs), sentence, ROUNDING)


def padded_text(subject: Subject[Denoiser]) -> None:
    """A text that is padded longer is the same text."""
    denoiser, inputs = ready(subject)
    longer = Inputs(inputs.x, inputs.level, map_texts(lambda text: text.pad(text.mask.shape[1] + 7), inputs.text))
    sentence = "a text padded to more tokens must give the same: nothing may depend on the number of padded tokens"
    expect_same(output(denoiser, longer), output(denoiser, inputs), sentence, ROUNDING)


def text_matters(subject: Subject[Denoiser]) -> None:
    """Another text gives another output."""
    denoiser, inputs = ready(subject)
    other = Inputs(inputs.x, inputs.level, trial_text(denoiser, 4, 5, seed=77))
    expect(
        not torch.equal(output(denoiser, other), output(denoiser, inputs)),
        "another text must give another output, but gives the same: let forward read the context",
    )


def several_texts(subject: Subject[Denoiser]) -> str:
    """The text of every encoder matters, and so do the pooled vectors; another number of texts is refused."""
    denoiser, inputs = ready(subject)
    if "several_texts" not in denoiser.supports:
        raise NotApplicable('supports has no "several_texts"')
    widths = denoiser.text_dim
    if isinstance(widths, int) or len(widths) < 2:
        sentence = 'a denoiser that supports "several_texts" must say the width of each in text_dim, a tuple'
        raise AssertionError(f"{sentence}; it is {widths!r}")
    texts, other = each_text(inputs.text), each_text(trial_text(denoiser, 4, 5, seed=77))
    plain = output(denoiser, inputs)
    for index, text in enumerate(texts):
        swapped = Text(other[index].embeddings, text.mask, text.pooled)
        changed = Inputs(inputs.x, inputs.level, (*texts[:index], swapped, *texts[index + 1 :]))
        sentence = f"another text of encoder {index + 1} of {len(texts)} must give another output: read every text"
        expect(not torch.equal(output(denoiser, changed), plain), sentence)
    try:
        denoiser.encode_text(texts[:1])
    except ValueError:
        pass
    else:
        raise AssertionError(f"one text in place of {len(texts)} must be refused by a ValueError; it was not refused")
    if denoiser.pooled_dim:
        swapped = Text(texts[0].embeddings, texts[0].mask, other[0].pooled)
        sentence = "other pooled vectors must give another output: read text.pooled, or set pooled_dim = 0"
        changed = Inputs(inputs.x, inputs.level, (swapped, *texts[1:]))
        expect(not torch.equal(output(denoiser, changed), plain), sentence)
    sizes = " and ".join(str(text.embeddings.shape[2]) for text in texts)
    return f"texts of width {sizes}, pooled vectors of {denoiser.pooled_dim}"


def context_rows(subject: Subject[Denoiser]) -> None:
    """``context.rows`` are the contexts of these texts."""
    denoiser, inputs = ready(subject)
    chosen, context = inputs.rows(2, 0, 2), denoiser.encode_text(inputs.text)
    expect(len(context) == 4, f"a context of 4 texts must have length 4; it has {len(context)}: derive it from Context")
    sentence = "context.rows(index) must be the context of the texts at index: every tensor of it has one row a text"
    actual = output(denoiser, chosen, context.rows(torch.tensor([2, 0, 2])))
    expect_same(actual, output(denoiser, chosen), sentence, ROUNDING)


def context_cat(subject: Subject[Denoiser]) -> None:
    """``context.cat`` is the context of both texts, also where one is longer."""
    denoiser, inputs = ready(subject)
    shorter = map_texts(lambda text: Text(text.embeddings[:, :2], text.mask[:, :2], text.pooled), inputs.text)
    rows = torch.tensor([1, 3])
    first, second = (map_texts(lambda text: text.rows(rows), texts) for texts in (shorter, inputs.text))
    pairs = [(first, second), (second, first)]
    order = inputs.rows(1, 3, 1, 3)
    for earlier, later in pairs:
        joined = denoiser.encode_text(earlier).cat(denoiser.encode_text(later))
        texts = [output(denoiser, Inputs(*_half(order), text)) for text in (earlier, later)]
        sentence = (
            "context.cat(other) must be the contexts of both texts: name the fields whose second axis counts tokens in "
            "`padded`"
        )
        expect_same(output(denoiser, order, joined), torch.cat(texts), sentence, ROUNDING)


def _half(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs.x[:2], inputs.level[:2]


def context_detach(subject: Subject[Denoiser]) -> None:
    """``context.detach`` has the same numbers and no graph."""
    denoiser, inputs = ready(subject)
    first = each_text(inputs.text)[0]
    first.embeddings.requires_grad_()
    context = denoiser.encode_text(inputs.text)
    expect_same(
        output(denoiser, inputs, context.detach()),
        output(denoiser, inputs, context),
        "context.detach() must hold the same numbers",
    )
    loss = denoiser(inputs.x, inputs.level, context.detach()).output.sum()
    left = torch.autograd.grad(loss, first.embeddings, allow_unused=True)[0] if loss.requires_grad else None
    expect(
        left is None,
        "context.detach() must cut the graph, but gradients reach the text: derive the context from Context",
    )


CHECKS: tuple[Check[Denoiser], ...] = (
    Check("masked text", masked_text),
    Check("padded text", padded_text),
    Check("text matters", text_matters),
    Check("several texts", several_texts),
    Check("context.rows", context_rows),
    Check("context.cat", context_cat),
    Check("context.detach", context_detach),
)
