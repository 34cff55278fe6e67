"""Checks of an objective, with a small CAD-I of 16 image tokens as its denoiser.

Longer than other files, since these checks share their small inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from t2ikit.batch import Batch, Text
from t2ikit.denoisers import Denoiser
from t2ikit.diffusion import Objective, Process
from t2ikit.diffusion.compiled import CompiledObjective
from t2ikit.diffusion.objectives import Draws, Loss, Needs
from t2ikit.rng import Keyed
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
from t2ikit.testing.trial import TEXT_DIM, TOKENS, WIDTH, trial_batch, trial_denoiser, watched_denoiser, windows

RNG = Keyed(7)
UNNAMED = "not.named"
"""An array that no objective names."""


class Watched(dict[str, Tensor]):
    """Arrays by name that notes which of them are read."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        super().__init__(arrays)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict."""
        self.read.add(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self.read.update(super().keys())
        return super().__iter__()

    def items(self) -> Any:
        """As of a dict."""
        self.read.update(super().keys())
        return super().items()

    def values(self) -> Any:
        """As of a dict."""
        self.read.update(super().keys())
        return super().values()


def arrays_of(subject: Subject[Any], needs: Needs) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that are read; image tokens of the small denoiser where the user says none."""
    return {name: subject.arrays.get(name, (TOKENS, WIDTH)) for name in needs.arrays}


def _ready(subject: Subject[Objective], seed: int = 0) -> tuple[Objective, Denoiser]:
    objective = subject.fresh(seed)
    objective.unconditional = Text(torch.ones(1, 2, TEXT_DIM), torch.ones(1, 2, dtype=torch.bool))
    denoiser: Denoiser = trial_denoiser(objective.needs.taps)
    return objective.eval(), denoiser


def _batch(subject: Subject[Objective], objective: Objective, rows: int = 6, slot: int = 3) -> Batch:
    return trial_batch(rows=rows, slot=slot, arrays=arrays_of(subject, objective.needs))


def _loss(objective: Objective, denoiser: Denoiser, batch: Batch, step: int = 0) -> Loss:
    loss: Loss = objective(denoiser, batch, objective.draw(batch, RNG, step))
    return loss


def compares_rows(module: nn.Module) -> bool:
    """Whether it, or a term of it, says that its rows are compared."""
    return any(getattr(layer, "compares_rows", False) for layer in module.modules())


# ------------------------------------------------------------------ random numbers


def description(subject: Subject[Objective]) -> str:
    """Process and needs are said in the words that the module reads."""
    objective = subject.fresh()
    given = type(getattr(objective, "process", None)).__name__
    expect(
        isinstance(objective.process, Process), f"process must be a Process, given to super().__init__; it is {given}"
    )
    needs = objective.needs
    expect(isinstance(needs, Needs), f"needs must be Needs(arrays, taps); it is {needs!r}")
    expect(
        all(isinstance(name, str) for name in needs.arrays) and all(isinstance(t, int) and t > 0 for t in needs.taps),
        f"needs must hold names of arrays, and taps counted from 1; it is {needs!r}",
    )
    return f"arrays {', '.join(needs.arrays) or 'none'}; taps {', '.join(map(str, needs.taps)) or 'none'}"


def keyed(subject: Subject[Objective]) -> None:
    """``draw`` is a function of seed and slot."""
    objective, _ = _ready(subject)
    batch = _batch(subject, objective)
    first = objective.draw(batch, RNG, 0)
    expect(isinstance(first, Draws), f"draw must return Draws; it returned a {type(first).__name__}")
    with random_state_kept("draw"):
        again = objective.draw(batch, RNG, 0)
    expect_same(again, first, "draw must give the same numbers for the same slots: take them from its argument rng")
    for what, other in (
        ("slot", objective.draw(_batch(subject, objective, slot=80), RNG, 0)),
        ("seed", objective.draw(batch, Keyed(8), 0)),
    ):
        changed = not torch.equal(other.noise, first.noise)
        expect(changed, f"another {what} must give other noise: key it by batch.slot and the rng that draw is given")


def split(subject: Subject[Objective]) -> None:
    """A batch in two parts has the same losses; also where a part is every second row, as Crop leaves them."""
    objective, denoiser = _ready(subject)
    if compares_rows(objective):
        raise NotApplicable("a term says compares_rows")
    batch = _batch(subject, objective)
    sentence = (
        "a batch in two parts must have the losses of the whole: key the numbers of each row by its slot, by handing "
        "batch.slot and len(batch) to rng, and compare no rows (or say compares_rows)"
    )
    whole = _loss(objective, denoiser, batch).loss_B
    for parts in ((np.arange(2), np.arange(2, 6)), (np.array([0, 2, 4]), np.array([1, 3, 5]))):
        losses = [_loss(objective, denoiser, batch.rows(rows)).loss_B for rows in parts]
        expect_same(torch.cat(losses), whole[torch.from_numpy(np.concatenate(parts))], sentence, ROUNDING)


# ------------------------------------------------------------------ the loss


def loss(subject: Subject[Objective]) -> str:
    """loss_B and every part are [B], finite, at least fp32."""
    objective, denoiser = _ready(subject)
    batch = _batch(subject, objective)
    actual = _loss(objective, denoiser, batch)
    expect(isinstance(actual, Loss), f"an objective must return Loss(loss_B, parts), not {type(actual).__name__}")
    for name, values in {"loss_B": actual.loss_B, **actual.parts}.items():
        fits = values.shape == (len(batch),) and values.dtype in (torch.float32, torch.float64)
        expect(
            fits and bool(values.isfinite().all()),
            f"{name} must be [{len(batch)}], one finite number a sample, at least float32; it is {list(values.shape)} "
            f"{values.dtype}{'' if not fits else ' with numbers that are not finite'}: take the mean over all but rows",
        )
    return f"parts {', '.join(actual.parts) or 'none'}"


def pure(subject: Subject[Objective]) -> None:
    """The call changes nothing and gives the same twice."""
    objective, denoiser = _ready(subject)
    batch = _batch(subject, objective)
    draws = objective.draw(batch, RNG, 0)
    state = copy.deepcopy((batch, draws, dict(objective.state_dict()), dict(denoiser.state_dict())))
    with random_state_kept("the call"):
        first, again = (objective(denoiser, batch, draws) for _ in range(2))
    expect_same(
        (batch, draws, dict(objective.state_dict()), dict(denoiser.state_dict())),
        state,
        "the call must change neither its arguments nor weights: change nothing in place",
    )
    expect_same(_values(again), _values(first), "the same call must give the same loss: take random numbers in draw")
    touched = [name for name, parameter in denoiser.named_parameters() if parameter.grad is not None]
    expect(not touched, "the call must not run a backward pass of its own; it left gradients in the denoiser")


def _values(loss: Loss) -> dict[str, Tensor]:
    return {"loss_B": loss.loss_B.detach(), **{name: values.detach() for name, values in loss.parts.items()}}


def gradients_everywhere(subject: Subject[Objective]) -> str:
    """Gradients reach the denoiser and every parameter of its own."""
    objective, denoiser = _ready(subject)
    values = _loss(objective, denoiser, _batch(subject, objective)).loss_B
    expect(values.requires_grad, "loss_B must have a graph: compute it outside of no_grad and do not detach it")
    values.mean().backward()
    reached = [name for name, gradient in gradients(denoiser).items() if bool(gradient.any())]
    expect(bool(reached), "gradients of the loss must reach the denoiser: do not detach its output")
    expect_gradients(
        objective,
        "every trainable parameter of the objective must get a gradient: use it, or freeze it by requires_grad_(False)",
    )
    return f"{len(gradients(objective))} parameters of its own"


def compiled(subject: Subject[Objective]) -> str:
    """One graph a shape, with the same losses and gradients."""
    objective, denoiser = _ready(subject)
    fast = CompiledObjective(objective, {"backend": "eager"})
    with dynamo() as counters:
        for rows, slot in ((6, 3), (12, 24), (6, 36)):
            batch, results = _batch(subject, objective, rows, slot), []
            draws = objective.draw(batch, RNG, 0)
            for call in (objective, fast):
                objective.zero_grad()
                denoiser.zero_grad()
                actual = call(denoiser, batch, draws)
                actual.loss_B.mean().backward()
                results.append((_values(actual), gradients(objective), gradients(denoiser)))
            expect_same(results[1], results[0], "compiled code must give the same losses and gradients", ROUNDING)
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    expect(breaks == 0, f"no graph break was expected, there were {breaks}")
    expect(
        graphs == 2,
        f"one graph a shape was expected, 2 for two numbers of rows; torch.compile made {graphs}: let no Python number "
        "change from call to call",
    )
    return "1 graph a shape"


def window(subject: Subject[Objective]) -> None:
    """The window of a batch reaches the denoiser."""
    objective, _ = _ready(subject)
    denoiser = watched_denoiser(objective.needs.taps)
    batch = _batch(subject, objective)
    batch.latents, batch.window = windows(denoiser, batch.latents)
    try:
        actual = _loss(objective, denoiser, batch)
    except ValueError as refusal:
        raise NotApplicable(f"it refuses windows: {refusal}") from None
    expect(bool(actual.loss_B.isfinite().all()), "the loss of a part of an image must be finite")
    expect(
        denoiser.windows_seen > 0,
        "batch.window must reach the denoiser, or Crop shows parts at no place: encode_text(text, window=batch.window)",
    )


def validation(subject: Subject[Objective]) -> None:
    """The loss of held-out records is [B], repeats, and has no graph."""
    objective, denoiser = _ready(subject)
    batch = _batch(subject, objective)
    with random_state_kept("validation"):
        first, again = (objective.validation(denoiser, batch, RNG) for _ in range(2))
    fits = first.shape == (len(batch),) and bool(first.isfinite().all())
    expect(fits, f"validation must give one finite number a sample, [{len(batch)}]; it gave {list(first.shape)}")
    expect(not first.requires_grad, "validation must build no graph: decorate it with @torch.no_grad()")
    expect_same(again, first, "validation must give the same twice: key its noise by batch.slot")


# ------------------------------------------------------------------ state, and what it reads


def copies(subject: Subject[Objective]) -> None:
    """A deep copy, and another instance with the same state, give the same loss."""
    objective, denoiser = _ready(subject)
    other, _ = _ready(subject, seed=1)
    other.load_state_dict(objective.state_dict())
    batch = _batch(subject, objective)
    expected = _values(_loss(objective, denoiser, batch))
    twin = _values(_loss(copy.deepcopy(objective), denoiser, batch))
    expect_same(twin, expected, "a deep copy must give the same loss")
    sentence = (
        "another instance with the same state_dict must give the same loss: register what is random at construction as "
        "a parameter or a buffer"
    )
    expect_same(_values(_loss(other, denoiser, batch)), expected, sentence)


def needs(subject: Subject[Objective]) -> None:
    """Only the arrays and taps that ``needs`` names are read."""
    objective, _ = _ready(subject)
    denoiser = watched_denoiser((*objective.needs.taps, 4))
    batch = _batch(subject, objective)
    arrays = Watched({**batch.extra, UNNAMED: torch.zeros(len(batch), 1)})
    batch.extra = arrays
    draws = objective.draw(batch, RNG, 0)
    try:
        objective(denoiser, batch, draws)
    except KeyError as error:
        raise AssertionError(f"the array {error} is read, but needs does not name it: add it to needs.arrays") from None
    read = sorted(arrays.read - set(objective.needs.arrays))
    expect(not read, f"only the arrays in needs may be read; {', '.join(read)} was read, too: add it to needs.arrays")
    asked = sorted(denoiser.taps_asked - set(objective.needs.taps))
    expect(
        not asked, f"only the taps in needs may be asked for; {', '.join(map(str, asked))} was: add it to needs.taps"
    )


def later_steps(subject: Subject[Objective]) -> None:
    """A late step works, too, when terms are off."""
    objective, denoiser = _ready(subject)
    batch = _batch(subject, objective)
    actual = _loss(objective, denoiser, batch, step=10**9)
    expect(bool(actual.loss_B.isfinite().all()), "the loss at a late step must be finite; it is not at step 1e9")


CHECKS: tuple[Check[Objective], ...] = (
    Check("description", description),
    Check("random numbers by slot", keyed),
    Check("batch in two parts", split),
    Check("loss", loss),
    Check("pure call", pure),
    Check("gradients", gradients_everywhere),
    Check("compiled", compiled),
    Check("window", window),
    Check("validation", validation),
    Check("copies and state_dict", copies),
    Check("needs", needs),
    Check("later steps", later_steps),
)
