"""Sampling with guidance against a sampler that encodes the text at every step; identical images."""

from __future__ import annotations

import torch

from benchmarks import plain
from benchmarks.base import Benchmark, Measurement, Settings, cpu_seconds, reached
from t2ikit.batch import Text
from t2ikit.denoisers import Denoiser
from t2ikit.denoisers.cad_i import cad_i_l, cad_i_s
from t2ikit.diffusion import GaussianDiffusion, sample
from t2ikit.run.counting import flops


def _compare(denoiser: Denoiser, name: str, steps: int, rows: int, goal: float, repeats: int) -> list[Measurement]:
    denoiser.eval()
    generator = torch.Generator().manual_seed(0)
    process = GaussianDiffusion()
    for parameter in denoiser.parameters():  # the released initialisation leaves some layers at zero
        if parameter.abs().sum() == 0:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    noise = torch.randn(rows, *denoiser.input_shape, generator=generator)
    text = Text(torch.randn(rows, 256, denoiser.text_dim, generator=generator), torch.ones(rows, 256, dtype=torch.bool))
    uncond = Text(torch.randn(1, 1, denoiser.text_dim, generator=generator), torch.ones(1, 1, dtype=torch.bool))

    def ours() -> torch.Tensor:
        return sample(denoiser, process, noise, text, uncond, steps=steps, guidance=2.0, threshold=("clamp", 4.0))

    def theirs() -> torch.Tensor:
        return plain.ddim(denoiser, process, noise, text, uncond, steps, 2.0)

    difference = float((ours() - theirs()).abs().max())
    cost = (flops(ours), flops(theirs))
    seconds = cpu_seconds({"ours": ours, "plain": theirs}, repeats=repeats)
    label = f"{name}, DDIM, {steps} steps, guidance, 256 tokens, B={rows}"
    speed = seconds["plain"] / seconds["ours"]
    against = "text encoded at every step"
    return [
        Measurement(f"{label}, FLOPs", cost[0] / 1e9, "GFLOP", against, cost[1] / 1e9),
        Measurement(f"{label}, time", seconds["ours"], "s", against, seconds["plain"]),
        Measurement(
            f"{label}, times as fast", speed, "x", "", None, f"at least {goal} x", reached(speed, goal, "at least")
        ),
        Measurement(f"{label}, largest difference of the images", difference, "", note="images of +-4"),
    ]


def _small(settings: Settings) -> list[Measurement]:
    return _compare(cad_i_s(), "CAD-I S", 20 if settings.full else 6, 2, 1.3, 3)


def _large(settings: Settings) -> list[Measurement]:
    return _compare(cad_i_l(), "CAD-I L", 10 if settings.full else 4, 1, 1.1, 2)


BENCHMARKS = (
    Benchmark("sampling_s", "DDIM with guidance, CAD-I S, against a sampler that encodes the text again", _small),
    Benchmark("sampling_l", "the same for CAD-I L", _large),
)
