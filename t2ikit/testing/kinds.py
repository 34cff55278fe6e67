"""Which checks a class has to pass: its base decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from t2ikit.callbacks import AugmentationCallback
from t2ikit.denoisers import Denoiser
from t2ikit.diffusion import Objective
from t2ikit.diffusion.solvers import Solver
from t2ikit.diffusion.terms import Term
from t2ikit.metrics import Metric
from t2ikit.testing import (
    augmentations,
    denoiser_texts,
    denoiser_training,
    denoisers,
    metrics,
    objectives,
    solvers,
    terms,
)
from t2ikit.testing.base import Check, Report, Subject, run_checks


@dataclass(frozen=True)
class Kind:
    """What is derived from ``base``, and how it is tried."""

    name: str
    base: type
    checks: tuple[Check[Any], ...]


KINDS = (
    Kind("denoiser", Denoiser, denoisers.CHECKS + denoiser_texts.CHECKS + denoiser_training.CHECKS),
    Kind("objective", Objective, objectives.CHECKS),
    Kind("term", Term, terms.CHECKS),
    Kind("solver", Solver, solvers.CHECKS),
    Kind("augmentation", AugmentationCallback, augmentations.CHECKS),
    Kind("metric", Metric, metrics.CHECKS),
)


def run(build: Callable[[], Any], arrays: Mapping[str, tuple[int, ...]], title: str) -> Report:
    """All checks of the kind of what ``build`` makes.

    Raises:
        ValueError: it is of no kind.
    """
    made = build()
    kind = next((kind for kind in KINDS if isinstance(made, kind.base)), None)
    if kind is None:
        bases = ", ".join(kind.base.__name__ for kind in KINDS)
        raise ValueError(f"{type(made).__name__} is derived from none of {bases}: these are what can be tried")
    return run_checks(f"{kind.name} {title or type(made).__name__}", kind.checks, Subject(build, arrays))
