"""One loss that runs of any process, prediction, law of t, shift or weighting have in common.

Shape legend::

    x_0, noise  [B, C, H, W]      t, index, loss_B  [B]
"""

from __future__ import annotations

import torch
from torch import Tensor

from t2ikit import rng
from t2ikit.batch import Batch
from t2ikit.denoisers.base import Denoiser
from t2ikit.diffusion.objectives.denoising import Denoising
from t2ikit.diffusion.processes import Process
from t2ikit.diffusion.weightings import VelocityError

LEVELS = 8
SEED = 0
"""Of the noise, in every run."""


def fixed_times(process: Process) -> Tensor:
    """[LEVELS] float64: the t of ``process`` with the log-SNR of a flow's t = (i + 1/2) / LEVELS."""
    flow = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    return process.time(2.0 * torch.log((1.0 - flow) / flow))


@torch.no_grad()
def fixed_t_loss(denoiser: Denoiser, process: Process, batch: Batch) -> Tensor:
    """Mean squared error of the velocity noise - x_0 that the network's output stands for, loss_B [B], at fixed t.

    Record i is seen at level i modulo LEVELS, with noise that its index alone keys, full text and self-conditioning: so
    two runs in one image space are compared on the same inputs, whatever their seeds. It follows quality better than
    the loss that trains (Esser et al. 2024, "Scaling rectified flow transformers", section 5), and its distance between
    training and held-out records shows overfitting.

    Args:
        denoiser: in evaluation mode.
        process: with which it was trained.
        batch: records in their stored order; its slot is the index of the first.
    """
    device, count = batch.latents.device, len(batch)
    t = fixed_times(process).float().to(device)[batch.index % LEVELS]
    noise = rng.normal(SEED, "fixed-t noise", batch.slot, count, batch.latents.shape[1:], device)
    keep = torch.ones(count, dtype=torch.bool)
    return Denoising(process, weighting=VelocityError()).loss(denoiser, batch.latents, noise, t, batch.text, keep)
