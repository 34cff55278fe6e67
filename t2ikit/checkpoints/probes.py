"""What a released file does not say, found by trying it: which of its weights fit, such as a coherence token.

Shape legend: x_0 [N, C, H, W] latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ikit.batch import Texts, map_texts, text_rows
from t2ikit.checkpoints.files import load_weights
from t2ikit.denoisers import Denoiser
from t2ikit.denoisers.layers import evaluating
from t2ikit.diffusion import Denoising, Process


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
