"""What a released file does not say, found by trying it: the coherence token, the normalisation of its latents.

Shape legend: x_0 [N, C, H, W] latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from t2ikit.batch import Texts, map_texts, text_rows
from t2ikit.checkpoints.files import load_weights
from t2ikit.denoisers import Denoiser
from t2ikit.denoisers.layers import evaluating
from t2ikit.diffusion import Denoising, Process

LatentNormalisation = Literal["scalar", "channelwise"]


@dataclass(frozen=True)
class NoiseError:
    """Mean loss of a denoiser on a few latents at fixed noise levels, from the zero state: for comparing weights.

    Attributes:
        build: makes the network for given weights, e.g.
            ``lambda weights: CADI(coherence="coherence_positional_embedding" in weights)``.
        process: the diffusion process that it was trained with.
        latents: [N, C, H, W] x_0, normalised.
        text: N captions, or one for all.
        levels: number of noise levels, evenly spaced in the quantile of training.
        seed: of the noise, which is the same for every call.

    Example:
        >>> error = NoiseError(build, GaussianDiffusion(), latents, text)           # doctest: +SKIP
        >>> weights = from_upstream(load_file("model.safetensors"), "auto", error)  # doctest: +SKIP
    """

    build: Callable[[Mapping[str, Tensor]], Denoiser]
    process: Process
    latents: Tensor
    text: Texts
    levels: int = 8
    seed: int = 0

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        """The error of these weights."""
        denoiser = self.build(weights)
        load_weights(denoiser, weights)
        return noise_error(denoiser, self.process, self.latents, self.text, self.levels, self.seed)


@torch.no_grad()
def noise_error(
    denoiser: Denoiser, process: Process, latents: Tensor, text: Texts, levels: int = 8, seed: int = 0
) -> float:
    """Mean loss over samples and levels; arguments as in :class:`NoiseError`.

    Raises:
        ValueError: a number of texts that is neither one nor that of the latents.
    """
    rows = latents.shape[0]
    count = text_rows(text)
    if count not in (1, rows):
        raise ValueError(f"{rows} texts or one for all were expected, got {count}")
    if count == 1:
        first = torch.zeros(rows, dtype=torch.int64, device=latents.device)
        text = map_texts(lambda encoded: encoded.rows(first), text)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
    objective, total = Denoising(process), 0.0
    with evaluating(denoiser):
        for level in range(levels):
            u = torch.full((rows,), (level + 0.5) / levels, device=latents.device)
            total += float(objective.loss(denoiser, latents, noise, process.t(u), text).mean())
    return total / levels


def latent_normalisation(latents: Tensor) -> LatentNormalisation:
    """Which normalisation of the Stable Diffusion VAE's latents a network was trained with, from its samples.

    Compares mean and standard deviation of each channel with those of ImageNet latents under both rules (0.18215 * raw;
    channel-wise zero mean and standard deviation 0.5) and returns the nearer, in squared Wasserstein distance between
    Gaussians.

    Args:
        latents: [N, 4, H, W] sampled latents, 16 or more images.

    Raises:
        ValueError: not four channels.
    """
    if latents.dim() != 4 or latents.shape[1] != 4:
        raise ValueError(f"sampled latents [N, 4, H, W] were expected, got {list(latents.shape)}")
    std, mean = torch.std_mean(latents.double().cpu(), dim=(0, 2, 3))
    measured = torch.stack([mean, std])
    scalar = torch.tensor([[1.06, 0.59, 0.02, -0.39], [0.76, 0.84, 0.68, 0.60]], dtype=torch.float64)
    channelwise = torch.tensor([[0.0] * 4, [0.5] * 4], dtype=torch.float64)
    nearer = (measured - scalar).square().sum() < (measured - channelwise).square().sum()
    return "scalar" if bool(nearer) else "channelwise"
