"""Distance of fast solvers to the 1,000-step solution, against the number of steps, for a trained model.

``python -m benchmarks solvers --checkpoint RUN`` measures; ``--figure FILE`` plots the curves.

Shapes: x_0 [B, C, H, W] in normalised units.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.base import Benchmark, Measurement, Settings
from t2ikit.batch import Text
from t2ikit.diffusion import sample
from t2ikit.run.trained import TrainedModel, load_trained

METHODS = ("ddim", "euler", "heun", "dpmpp_2m")
EVALUATIONS = (4, 6, 8, 12, 16, 25, 50, 100, 250)
REFERENCE_STEPS = 1000
GUIDANCE = 2.0
PROMPTS = (
    "an image of a red circle on a white background",
    "two blue squares side by side",
    "a green triangle above a yellow star",
    "a striped purple cross on a grey background",
)


@dataclass(frozen=True)
class Curve:
    """Distances of one solver.

    Attributes:
        method: the solver.
        evaluations: network evaluations of the conditional branch.
        distances: root mean square distance of x_0 to the reference solution, in normalised units.
    """

    method: str
    evaluations: tuple[int, ...]
    distances: tuple[float, ...]


def curves(
    trained: TrainedModel, rows: int = 8, methods: tuple[str, ...] = METHODS, guidance: float = GUIDANCE
) -> list[Curve]:
    """Every solver's distance to the same model's 1,000-step solution from the same noise.

    The reference is of second order, so that its own error is far below what is measured. Thresholds are the process's
    own, as in every sampling: without them a guided estimate of x_0 from near-pure noise has no bound.
    """
    module = trained.module
    (encoder,) = trained.text_encoders()
    states = encoder.encode([*(PROMPTS[row % len(PROMPTS)] for row in range(rows)), ""])
    text, uncond = Text.from_rows(states[:rows]), Text.from_rows(states[rows:])
    noise = torch.randn(rows, *module.denoiser.input_shape, generator=torch.Generator().manual_seed(0))

    def solve(method: str, steps: int) -> Tensor:
        x_0 = sample(
            module.denoiser,
            module.process,
            noise,
            text,
            uncond,
            steps=steps,
            guidance=guidance,
            method=method,
        )
        return x_0.double()

    reference = solve("dpmpp_2m", REFERENCE_STEPS)
    measured = []
    for method in methods:
        steps = {count: (count + 1) // 2 if method == "heun" else count for count in EVALUATIONS}
        distances = tuple(float((solve(method, count) - reference).square().mean().sqrt()) for count in steps.values())
        evaluations = tuple(2 * count - 1 if method == "heun" else count for count in steps.values())
        measured.append(Curve(method, evaluations, distances))
    return measured


def draw_curves(models: dict[str, list[Curve]], path: Path) -> None:
    """One panel a model: distance against network evaluations, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(models), figsize=(4.2 * len(models), 3.6), squeeze=False, sharey=True)
    for panel, (name, model_curves) in zip(panels[0], models.items(), strict=True):
        for curve in model_curves:
            panel.loglog(curve.evaluations, curve.distances, marker="o", markersize=3, label=curve.method)
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("network evaluations")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"RMS distance to {REFERENCE_STEPS} steps")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _measure(settings: Settings) -> list[Measurement]:
    if not settings.checkpoints:
        print("solvers: no trained model; give one with --checkpoint RUN")
        return []
    rows, measured = [], {}
    for checkpoint in settings.checkpoints:
        trained = load_trained(checkpoint)
        name = f"{type(trained.module.denoiser).__name__} {type(trained.module.process).__name__}, step {trained.step}"
        measured[name] = curves(trained, 16 if settings.full else 4)
        slow = next(curve for curve in measured[name] if curve.method == "ddim")
        wanted = slow.distances[-1]
        for curve in measured[name]:
            for count, distance in zip(curve.evaluations, curve.distances, strict=True):
                rows.append(Measurement(f"{name}: {curve.method}, {count} evaluations", distance, "RMS"))
            enough = [n for n, d in zip(curve.evaluations, curve.distances, strict=True) if d <= wanted]
            if enough and curve.method != "ddim":
                label = f"{name}: {curve.method} as near as DDIM-{slow.evaluations[-1]}"
                rows.append(Measurement(label, enough[0], "evaluations", "DDIM", slow.evaluations[-1]))
    if settings.figure is not None:
        draw_curves(measured, settings.figure)
        print(f"curves: {settings.figure}")
    return rows


BENCHMARKS = (
    Benchmark("solvers", "distance of each solver to the 1,000-step solution (needs --checkpoint RUN)", _measure),
)
