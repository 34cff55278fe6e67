"""Activation memory of a training step, with and without checkpointing of blocks, and what checkpointing costs."""

from __future__ import annotations

from benchmarks.base import Benchmark, Measurement, Settings
from benchmarks.counting import kept_bytes
from benchmarks.training import Step
from t2ikit.denoisers import CADI, Denoiser, DiTI
from t2ikit.run.counting import flops


def _measure(settings: Settings) -> list[Measurement]:
    rows = []
    depth = 24 if settings.full else 4
    sizes: list[tuple[str, type[Denoiser], dict[str, int]]] = [
        ("CAD-I L", CADI, {}),
        (f"DiT-I, {depth} blocks", DiTI, {"depth": depth}),
    ]
    for name, kind, options in sizes:
        held, cost = {}, {}
        for checkpointed in (False, True):
            denoiser = kind(**options, checkpoint_blocks=checkpointed)  # type: ignore[arg-type]
            step = Step(denoiser, 2, 180)
            held[checkpointed] = kept_bytes(step.loss, denoiser) / 2
            cost[checkpointed] = flops(step.backward)
        label = f"{name}, activations kept a sample (fp32, T=180)"
        rows.append(Measurement(f"{label}, blocks checkpointed", held[True] / 1e6, "MB", "all kept", held[False] / 1e6))
        rows.append(
            Measurement(
                f"{name}, FLOPs of a step, blocks checkpointed",
                cost[True] / 2e9,
                "GFLOP",
                "all kept",
                cost[False] / 2e9,
            )
        )
    return rows


BENCHMARKS = (Benchmark("memory", "activation memory, and what checkpointing of blocks saves and costs", _measure),)
