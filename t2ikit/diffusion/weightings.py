"""Weights of the squared error of a denoiser's output, as functions of the noise level.

Every weighting turns the error of the output into an error of something else. With the process's error gain g (see
``Process.error_gain``) the errors of one output are related by::

    x_0 estimate - x_0 = sigma g (target - output)      noise estimate - noise = -alpha g (target - output)

Shapes: t [B] -> weights [B].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from t2ikit.diffusion.processes import Process


class Weighting(ABC):
    """What the squared error of the output is multiplied by."""

    @abstractmethod
    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """The weight of each sample, t [B] -> [B], at least 0 and finite for t in [0, 1)."""


@dataclass
class MinSNR(Weighting):
    """The error of x_0, weighted by min(SNR, limit) (Hang et al. 2023, equation 6).

    Attributes:
        limit: gamma of the paper, above 0; 5 is usual.

    Raises:
        ValueError: a limit that is not above 0.
    """

    limit: float = 5.0

    def __post_init__(self) -> None:
        if not self.limit > 0.0:
            raise ValueError(f"MinSNR: limit must be above 0 (5 is usual), got {self.limit}")

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """min(alpha^2, limit sigma^2) g^2, written without the ratio of the two, which is infinite at t = 0."""
        alpha, sigma = process.scales(t)
        return torch.minimum(alpha.square(), self.limit * sigma.square()) * process.error_gain(t).square()


@dataclass
class NoiseError(Weighting):
    """The error of the noise, whatever the network predicts (Hoogeboom et al. 2023, for a network that predicts v)."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """(alpha g)^2."""
        alpha, _ = process.scales(t)
        return (alpha * process.error_gain(t)).square()


@dataclass
class VelocityError(Weighting):
    """The error of the velocity noise - x_0 of a flow (Lipman et al. 2022), whatever the network predicts."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """((alpha + sigma) g)^2, for the velocity's error is that of the noise less that of x_0."""
        alpha, sigma = process.scales(t)
        return ((alpha + sigma) * process.error_gain(t)).square()
