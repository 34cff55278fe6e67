"""Text length: what a batch of 180 tokens costs against its analytic count and against padding to 256."""

from __future__ import annotations

import torch

from benchmarks.base import Benchmark, Measurement, Settings, cpu_seconds, reached
from benchmarks.training import Step
from t2ikit.denoisers.cad_i import cad_i_l, cad_i_s
from t2ikit.run.counting import flops

TOKENS, BUCKET, PADDED = 180, 16, 256


def _measure(settings: Settings) -> list[Measurement]:
    bucketed = -(-TOKENS // BUCKET) * BUCKET
    denoiser = (cad_i_l if settings.full else cad_i_s)(dropout=0.0, drop_path=0.0)
    name = "CAD-I L" if settings.full else "CAD-I S"
    steps = {length: Step(denoiser, 4, length) for length in (TOKENS, bucketed, PADDED)}
    cost = {length: flops(step.backward) for length, step in steps.items()}
    seconds = cpu_seconds({str(length): step.backward for length, step in steps.items()}, repeats=3)
    denoiser.zero_grad(set_to_none=True)
    short = _difference(denoiser, steps[TOKENS], PADDED)
    ratio = cost[bucketed] / cost[TOKENS]
    return [
        Measurement(
            f"{name}, step of {TOKENS} tokens in a bucket of {bucketed}",
            cost[bucketed] / 1e9,
            "GFLOP",
            f"exactly {TOKENS} tokens",
            cost[TOKENS] / 1e9,
            "at most 1.03 x",
            reached(ratio, 1.03, "at most"),
        ),
        Measurement(
            f"{name}, the same, time", seconds[str(bucketed)], "s", f"padded to {PADDED}", seconds[str(PADDED)]
        ),
        Measurement(
            f"{name}, output with {PADDED - TOKENS} padded tokens, largest relative difference",
            short,
            "",
            "",
            None,
            "at most 1e-5",
            reached(short, 1e-5, "at most"),
        ),
    ]


@torch.no_grad()
def _difference(denoiser: torch.nn.Module, step: Step, length: int) -> float:
    level = step.process.level(step.t, step.denoiser.level_kind)
    plain = step.denoiser(step.x0, level, step.denoiser.encode_text(step.text)).output
    padded = step.denoiser(step.x0, level, step.denoiser.encode_text(step.text.pad(length))).output
    return float((plain - padded).abs().max() / plain.abs().max())


BENCHMARKS = (Benchmark("text_length", "captions of their real length against padding", _measure),)
