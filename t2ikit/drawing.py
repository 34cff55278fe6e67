"""Numbered images: image i of a seed is the same, whatever is drawn beside it. Snapshots and ``t2ikit sample`` draw so.

Shapes: B images of a batch; text states [L, D] of each prompt, without padding; noise [B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from t2ikit import draws
from t2ikit.batch import Text
from t2ikit.diffusion import Guidance
from t2ikit.module import TextToImage


def draw_batch(
    module: TextToImage,
    states: Sequence[Tensor],
    first: int,
    *,
    seed: int,
    steps: int,
    method: str = "ddim",
    guidance: float | Guidance = 0.0,
    uncond: Text | None = None,
    bf16: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Draws images ``first`` to ``first + B - 1`` with the present weights, on the device of the module.

    Image i depends on (seed, i, its text) alone; other companions in the batch change it by rounding at most.

    Args:
        module: the model.
        states: text states of B prompts, each [L, D].
        first: number of the first image.
        seed: key of the noise.
        steps, method, guidance, progress: as in ``t2ikit.diffusion.sample``.
        uncond: states of the negative prompt, one row; default the empty prompt.
        bf16: run the network under bfloat16 autocast, as snapshots of a run in bf16 do.

    Returns:
        [B, 3, H, W] uint8 on the CPU.
    """
    text, device = Text.from_rows(states), module.device
    noise = draws.normal(seed, "snapshot", first, len(text), module.denoiser.input_shape)
    generators = [
        torch.Generator(device).manual_seed(draws.derived_seed(seed, "snapshot steps", first + row))
        for row in range(len(text))
    ]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        images = module.draw(
            text.to(device),
            noise.to(device),
            steps=steps,
            guidance=guidance,
            method=method,
            uncond=None if uncond is None else uncond.to(device),
            generators=generators,
            progress=progress,
        )
    return (images * 255.0).round().to(torch.uint8).cpu()
