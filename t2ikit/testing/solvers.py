"""Checks of a solver, on normal data, whose best denoiser and whose solution are known in closed form.

For x_0 ~ N(0, s^2) every x_t is normal, and the sampling ODE takes each quantile to itself: x_0 = s x_1 / std(x_1).
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from t2ikit.batch import Prediction, Text
from t2ikit.denoisers.base import Denoiser
from t2ikit.denoisers.context import TextContext
from t2ikit.diffusion import GaussianDiffusion, Process, RectifiedFlow, sample
from t2ikit.diffusion.solvers import Grid, Solver
from t2ikit.testing.base import Check, Subject, expect, expect_same, random_state_kept
from t2ikit.testing.trial import trial_denoiser, trial_text

PROCESSES: tuple[Process, ...] = (GaussianDiffusion(), GaussianDiffusion(prediction="v"), RectifiedFlow())
STD = 0.5
FEW, MANY = 4, 32
SPACINGS = ("time", "ode", "angle")


class NormalDenoiser(Denoiser):
    """The best prediction where every number of x_0 is normal with mean 0 and this standard deviation."""

    level_kind = "t"
    text_dim = 1

    def __init__(self, process: Process, std: float) -> None:
        super().__init__()
        self.process, self.std, self.calls = process, std, 0

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """As large as the noise of the checks."""
        return 1, 64, 64

    def encode_text(self, text: Any, coherence: Any = None, window: Any = None) -> TextContext:
        """The text is of no account."""
        return TextContext((text.embeddings,), text.mask)

    def forward(self, x: Tensor, level: Tensor, context: Any, state: Any = None) -> Prediction:
        """E[x_0 | x_t] = alpha s^2 x_t / (alpha^2 s^2 + sigma^2), as the process wants it."""
        self.calls += 1
        t = level.double()
        alpha, sigma = (scale.reshape(-1, 1, 1, 1) for scale in self.process.scales(t))
        variance = (alpha * self.std) ** 2 + sigma**2
        target = self.process.target(alpha * self.std**2 * x / variance, sigma * x / variance, t)
        return Prediction(target.to(x.dtype))


def _noise(rows: int = 4) -> Tensor:
    """[rows, 1, 64, 64] float64, of variance 1."""
    noise = torch.randn(rows, 1, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise / noise.square().mean().sqrt()


def _generators(rows: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(first, first + rows)]


def _solved(solver: Solver, process: Process, steps: int, first: int = 0) -> Tensor:
    """x_0 of normal data, from the noise."""
    noise, text = _noise(), Text(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    options: dict[str, Any] = {"method": solver, "threshold": "none", "generators": _generators(len(noise), first)}
    return sample(NormalDenoiser(process, STD), process, noise, text, steps=steps, **options)


def description(subject: Subject[Solver]) -> str:
    """Name and spacing."""
    solver, twin = subject.fresh(), subject.fresh()
    expect(solver.spacing in SPACINGS, f"spacing must be one of {', '.join(SPACINGS)}; it is {solver.spacing!r}")
    stable = isinstance(solver.name, str) and solver.name == twin.name and " at 0x" not in solver.name
    expect(
        stable and bool(solver.name),
        f"name must be the same text in every process, for fingerprints; it is {solver.name!r}, then {twin.name!r}: "
        "make the class a dataclass whose fields are its options",
    )
    return f"{solver.name}, spacing {solver.spacing}"


def states(subject: Subject[Solver]) -> str:
    """K states of the shape of x, finite, from evaluations at nodes of the grid."""
    solver = subject.fresh()
    for process in PROCESSES:
        times, x = process.times(6, solver.spacing), _noise(2)
        evaluated: list[tuple[int, int]] = []

        def estimate(x: Tensor, node: int, step: int, process: Process = process, times: Tensor = times) -> Any:
            evaluated.append((node, step))  # noqa: B023
            t = times[node : node + 1]
            return process.split(x, NormalDenoiser(process, STD)(x, t.expand(len(x)), None).output, t)

        path = list(islice(solver.steps(estimate, Grid.of(process, times), x, lambda x: torch.zeros_like(x)), 7))
        came = str(len(path)) if len(path) < 7 else "more"
        expect(
            len(path) == 6,
            f"6 states were expected of 6 steps, x after each, the last one x_0; {came} came: yield once a step",
        )
        fits = all(state.shape == x.shape and bool(state.isfinite().all()) for state in path)
        expect(fits, f"every state must be finite and [{', '.join(map(str, x.shape))}] as x")
        inside = all(0 <= node < 6 and 0 <= step < 6 for node, step in evaluated)
        expect(
            inside, f"estimate(x, node, step) must be called at nodes and steps 0 to K - 1; (node, step): {evaluated}"
        )
    return f"{len(evaluated)} evaluations in 6 steps"


def closed_form(subject: Subject[Solver]) -> str:
    """On normal data the error falls with the number of steps."""
    solver, figures = subject.fresh(), []
    for process in PROCESSES:
        end = process.scales(torch.ones(1, dtype=torch.float64))
        expected = STD * _noise() / float((end[0] ** 2 * STD**2 + end[1] ** 2).sqrt())
        random = not torch.equal(_solved(solver, process, FEW), _solved(solver, process, FEW, first=50))
        errors = []
        for steps in (FEW, MANY):
            actual = _solved(solver, process, steps)
            # A chain that adds noise has the law of the data, not its quantiles.
            distance = (actual.std() - STD).abs() if random else (actual - expected).square().mean().sqrt()
            errors.append(float(distance) / STD)
        few, many = errors
        expect(
            many < max(0.5 * few, 0.01) and many < 0.15,
            f"on normal data of standard deviation {STD} under {type(process).__name__} the error must fall with the "
            f"steps; relative to it, it is {few:.2g} with {FEW} steps and {many:.2g} with {MANY}: the last state must "
            "be x_0, at node K",
        )
        figures.append(f"{few:.1e} to {many:.1e}")
    return f"error with {FEW} and {MANY} steps: {', '.join(figures)}"


def _images(solver: Solver, rows: slice) -> Tensor:
    """Of the small CAD-I, whose state goes from step to step."""
    denoiser = trial_denoiser()
    text = trial_text(denoiser, 3, 5)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    assert isinstance(text, Text)
    index = torch.arange(3)[rows]
    return sample(
        denoiser,
        GaussianDiffusion(),
        noise[rows],
        text.rows(index),
        steps=4,
        method=solver,
        generators=_generators(3)[rows],
    )


def rows_independent(subject: Subject[Solver]) -> None:
    """A row alone is the row of a batch."""
    solver = subject.fresh()
    sentence = "an image must not depend on the others of its batch: choose no step size from the whole batch"
    expect_same(_images(solver, slice(1, 2)), _images(solver, slice(0, 3))[1:2], sentence, 1e-4)


def repeats(subject: Subject[Solver]) -> None:
    """The same generators give the same images."""
    solver = subject.fresh()
    with random_state_kept("a solver that is given generators"):
        first, again = _images(solver, slice(0, 3)), _images(solver, slice(0, 3))
    sentence = "the same noise and generators must give the same images: take fresh noise from normal(x), keep nothing"
    expect_same(again, first, sentence)


CHECKS: tuple[Check[Solver], ...] = (
    Check("description", description),
    Check("states", states),
    Check("closed form", closed_form),
    Check("rows independent", rows_independent),
    Check("repeats", repeats),
)
