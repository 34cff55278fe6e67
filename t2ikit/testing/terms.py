"""Checks of a term, on random features of 16 image tokens of width 64, and inside ``Denoising``."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from t2ikit.batch import Text
from t2ikit.diffusion import Denoising
from t2ikit.diffusion.compiled import CompiledObjective
from t2ikit.diffusion.terms import MainPass, Needs, Term
from t2ikit.testing.base import (
    ROUNDING,
    Check,
    NotApplicable,
    Subject,
    dynamo,
    expect,
    expect_gradients,
    expect_same,
    gradients,
    random_state_kept,
)
from t2ikit.testing.objectives import RNG, UNNAMED, Watched, arrays_of
from t2ikit.testing.trial import TEXT_DIM, TOKENS, WIDTH, trial_batch, trial_denoiser

LATE = 10**9


def main_pass(subject: Subject[Term], needs: Needs, rows: int = 6, tokens: int = TOKENS) -> MainPass:
    """Random numbers, the same each time; x is of 8 x 8, or a part of it where there are fewer tokens."""
    batch = trial_batch(rows=rows, arrays=arrays_of(subject, needs))
    side = 2 * round(tokens**0.5)
    generator = torch.Generator().manual_seed(1)
    x_t, output, target = torch.randn(3, rows, 4, side, side, generator=generator)
    features = {tap: torch.randn(rows, tokens, WIDTH, generator=generator) for tap in needs.taps}
    window = None if tokens == TOKENS else torch.tensor([0.0, 0.25, 0.75, 1.0]).repeat(rows, 1)
    return MainPass(x_t, output, target, batch.t, features, batch.extra, window)


def _part(main: MainPass, rows: slice) -> MainPass:
    features = {tap: values[rows] for tap, values in main.features.items()}
    arrays = {name: values[rows] for name, values in main.arrays.items()}
    return MainPass(main.x_t[rows], main.output[rows], main.target[rows], main.t[rows], features, arrays, None)


def description(subject: Subject[Term]) -> str:
    """Weight, until, needs and compares_rows are said in the words that ``Denoising`` reads."""
    term = subject.fresh()
    expect(
        isinstance(term.weight, (int, float)) and (term.until is None or isinstance(term.until, int)),
        f"weight must be a number and until a step or None, given to super().__init__; they are {term.weight!r} and "
        f"{term.until!r}",
    )
    needs = term.needs
    fits = isinstance(needs, Needs) and all(isinstance(tap, int) and tap > 0 for tap in needs.taps)
    expect(fits, f"needs must be Needs(arrays, taps), taps counted from 1; it is {needs!r}")
    return f"arrays {', '.join(needs.arrays) or 'none'}; taps {', '.join(map(str, needs.taps)) or 'none'}"


def value(subject: Subject[Term]) -> None:
    """One finite number a sample."""
    term = subject.fresh()
    actual = term(main_pass(subject, term.needs))
    expect(
        actual.shape == (6,) and actual.is_floating_point() and bool(actual.isfinite().all()),
        f"a term must give one finite number a sample, [6]; it gave {list(actual.shape)} {actual.dtype}, finite: "
        f"{bool(actual.isfinite().all())}. Take the mean over all axes but the first",
    )


def rows_independent(subject: Subject[Term]) -> None:
    """A row's value does not depend on the others, unless the term says so."""
    term = subject.fresh().eval()
    if term.compares_rows:
        raise NotApplicable("it says compares_rows")
    main = main_pass(subject, term.needs)
    parts = torch.cat([term(_part(main, slice(0, 1))), term(_part(main, slice(1, None)))])
    sentence = "a sample's value must not depend on the others: compare no rows, or set compares_rows = True"
    expect_same(parts, term(main), sentence, ROUNDING)


def pure(subject: Subject[Term]) -> None:
    """The same twice, nothing changed, nothing random."""
    term = subject.fresh().eval()
    main = main_pass(subject, term.needs)
    before = copy.deepcopy((main, dict(term.state_dict())))
    with random_state_kept("a term"):
        first, again = term(main).detach(), term(main).detach()
    expect_same((main, dict(term.state_dict())), before, "a term must change nothing in place")
    expect_same(again, first, "the same call must give the same value: keep nothing from call to call")


def gradients_everywhere(subject: Subject[Term]) -> str:
    """Gradients reach its parameters and what the denoiser gave."""
    term = subject.fresh().eval()
    main = main_pass(subject, term.needs)
    given = [main.output, *main.features.values()]
    for tensor in given:
        tensor.requires_grad_()
    actual = term(main)
    expect(actual.requires_grad, "a term must have a graph: compute it outside of no_grad and do not detach it")
    actual.mean().backward()
    reached = [tensor for tensor in given if tensor.grad is not None and bool(tensor.grad.any())]
    expect(bool(reached), "gradients must reach the output or the features, or the term teaches the denoiser nothing")
    sentence = (
        "every trainable parameter of the term must get a gradient: use it, or freeze it by requires_grad_(False)"
    )
    expect_gradients(term, sentence)
    return f"{len(gradients(term))} parameters of its own"


def until(subject: Subject[Term]) -> None:
    """``until`` switches it off in ``Denoising``."""
    term = subject.fresh()
    for limit, on, off in ((term.until, (term.until or LATE) - 1, term.until), (3, 2, 3)):
        term.until = limit
        expect(term.on(on), f"with until = {limit} the term must be on after {on} steps, but on({on}) is False")
        expect(off is None or not term.on(off), f"with until = {limit} the term must be off after {off} steps")
    term.until = None
    expect(term.on(LATE), "with until = None the term must never be off")
    term.until = 3
    objective, batch = _inside(term), trial_batch(arrays=arrays_of(subject, term.needs))
    names = [objective.draw(batch, RNG, step).terms for step in (2, 3)]
    expect(names == [("tried",), ()], f"Denoising must switch the term off after step 3; it has {names}")


def window(subject: Subject[Term]) -> None:
    """Features of a part of the image, with arrays of the whole one."""
    term = subject.fresh().eval()
    try:
        actual = term(main_pass(subject, term.needs, tokens=9))
    except ValueError as refusal:
        raise NotApplicable(f"it refuses windows: {refusal}") from None
    expect(
        actual.shape == (6,) and bool(actual.isfinite().all()),
        "where a window of 9 of 16 tokens is seen, one finite number a sample was expected: cut the arrays, which are "
        "of whole images, to main.window, or refuse it by a ValueError",
    )


def reads(subject: Subject[Term]) -> None:
    """Only what ``needs`` names is read."""
    term = subject.fresh().eval()
    main = main_pass(subject, term.needs)
    arrays = Watched({**main.arrays, UNNAMED: torch.zeros(6, 1)})
    main.arrays = arrays
    try:
        term(main)
    except KeyError as error:
        raise AssertionError(f"{error} is read, but needs does not name it: add it to needs") from None
    read = sorted(arrays.read - set(term.needs.arrays))
    expect(not read, f"only the arrays in needs may be read; {', '.join(read)} was read, too: add it to needs.arrays")


def compiled(subject: Subject[Term]) -> None:
    """Inside ``Denoising`` it is compiled, and adds weight times its value."""
    term = subject.fresh().eval()
    term.until = None
    objective, denoiser = _inside(term), trial_denoiser(term.needs.taps)
    batch = trial_batch(arrays=arrays_of(subject, term.needs))
    draws, results = objective.draw(batch, RNG, 0), []
    with dynamo():
        for call in (objective, CompiledObjective(objective, {"backend": "eager"})):
            objective.zero_grad()
            loss = call(denoiser, batch, draws)
            loss.loss_B.mean().backward()
            values = {name: term_B.detach() for name, term_B in loss.parts.items()}
            results.append((loss.loss_B.detach(), values, gradients(term)))
    expect_same(results[1], results[0], "compiled code must give the same losses and gradients", ROUNDING)
    total: Tensor = results[0][1]["denoising"] + term.weight * results[0][1]["tried"]
    expect_same(results[0][0], total, "the loss must be that of denoising plus weight times the term", ROUNDING)


def _inside(term: Term) -> Denoising:
    objective = Denoising(terms={"tried": term})
    objective.unconditional = Text(torch.ones(1, 2, TEXT_DIM), torch.ones(1, 2, dtype=torch.bool))
    return objective


def copies(subject: Subject[Term]) -> None:
    """A deep copy, and another instance with the same state, give the same."""
    term, other = subject.fresh().eval(), subject.fresh(seed=1).eval()
    other.load_state_dict(term.state_dict())
    main = main_pass(subject, term.needs)
    expect_same(copy.deepcopy(term)(main), term(main), "a deep copy must give the same")
    sentence = (
        "another instance with the same state_dict must give the same: register what is random at construction as a "
        "parameter or a buffer"
    )
    expect_same(other(main), term(main), sentence)


CHECKS: tuple[Check[Term], ...] = (
    Check("description", description),
    Check("value", value),
    Check("rows independent", rows_independent),
    Check("pure call", pure),
    Check("gradients", gradients_everywhere),
    Check("until", until),
    Check("window", window),
    Check("needs", reads),
    Check("compiled in Denoising", compiled),
    Check("copies and state_dict", copies),
)
