"""The same mathematics written plainly: what t2ikit's paths are measured against. Nothing here is used for training.

Shapes: x [B, C, H, W]; level [B]; a ``Text`` of B rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit.batch import Text
from t2ikit.denoisers import Denoiser
from t2ikit.diffusion import GaussianDiffusion


def loss(
    denoiser: Denoiser, process: GaussianDiffusion, x0: Tensor, noise: Tensor, t: Tensor, text: Text, keep: Tensor
) -> Tensor:
    """Loss of each sample [B]: the text is encoded for both passes, and the first one runs on every sample."""
    x_t = process.add_noise(x0, noise, t)
    level = process.level(t, denoiser.level_kind)
    with torch.no_grad():
        state = denoiser(x_t, level, denoiser.encode_text(text)).state
    if state is not None:
        state = torch.where(keep.to(state.device).view(-1, *[1] * (state.dim() - 1)), state, torch.zeros_like(state))
    output = denoiser(x_t, level, denoiser.encode_text(text), state).output
    return (output - process.target(x0, noise, t)).square().flatten(1).mean(1)


class LoopLAMB(torch.optim.Optimizer):
    """LAMB (You et al. 2020, Algorithm 2) on the groups of ``t2ikit.optim``, one parameter after the other."""

    def __init__(self, groups: list[dict[str, Any]], lr: float = 1e-3) -> None:
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "trust_ratio": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
                state["step"] += 1
                gradient = parameter.grad
                state["mean"].mul_(first).add_(gradient, alpha=1 - first)
                state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                mean = state["mean"] / (1 - first ** state["step"])
                square = state["square"] / (1 - second ** state["step"])
                update = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * parameter
                weight_norm, update_norm = parameter.norm().item(), update.norm().item()
                scaled = group["trust_ratio"] and weight_norm > 0 and update_norm > 0
                ratio = weight_norm / update_norm if scaled else 1.0
                parameter.sub_(update, alpha=group["lr"] * ratio)


def update_average(averages: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """EMA, one parameter after the other."""
    for average, weight in zip(averages, weights, strict=True):
        average.mul_(decay).add_(weight, alpha=1 - decay)


def gradients_are_finite(module: nn.Module) -> bool:
    """Whether every gradient is finite, one parameter after the other."""
    return all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)


@torch.no_grad()
def ddim(
    denoiser: Denoiser, process: GaussianDiffusion, noise: Tensor, text: Text, uncond: Text, steps: int, guidance: float
) -> Tensor:
    """DDIM with classifier-free guidance; every step encodes both texts again, the unconditional one for every row.

    As specified: the first step is unguided, the estimate of x_0 is bounded at 4 (the process's default for latents).
    """
    x, state, uncond_state = noise, None, None
    repeated = uncond.rows(torch.zeros(len(noise), dtype=torch.int64)).pad(text.mask.shape[1])
    times = process.times(steps, "time").to(noise.dtype)
    for step in range(steps):
        t = times[step].expand(len(noise))
        level = process.level(t, denoiser.level_kind)
        prediction = denoiser(x, level, denoiser.encode_text(text), state)
        output = prediction.output
        if step == 0:
            state = uncond_state = prediction.state
        else:
            other = denoiser(x, level, denoiser.encode_text(repeated), uncond_state)
            state, uncond_state = prediction.state, other.state
            output = (1 + guidance) * output - guidance * other.output
        x0, _ = process.split(x, output, t)
        x0 = x0.clamp(-4.0, 4.0)
        alpha, sigma = process.scales(t[:1])
        epsilon = (x - alpha.view(-1, 1, 1, 1) * x0) / sigma.view(-1, 1, 1, 1)
        if step == steps - 1:
            return x0
        alpha, sigma = process.scales(times[step + 1 : step + 2])
        x = alpha.view(-1, 1, 1, 1) * x0 + sigma.view(-1, 1, 1, 1) * epsilon
    return x
