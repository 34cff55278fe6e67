"""Rectified flow, the process of straight lines between image and noise. Shape legend: see ``processes``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from t2ikit.diffusion.processes import Process, Spacing, Threshold
from t2ikit.diffusion.time_laws import TimeLaw, find_law


class RectifiedFlow(Process):
    """x_t = (1 - t) x_0 + t noise; the network predicts the velocity noise - x_0 (Liu et al. 2023, equation 1).

    Args:
        shift: s; times become s t / (1 + (s - 1) t) in training and in sampling, which lowers the log-SNR by 2 log s
            (Esser et al. 2024, "Scaling rectified flow transformers", equation 23).
        t_distribution: law of t in training before the shift: "uniform", "logit_normal" with mean 0 and scale 1 (ibid.,
            equation 19), or a :class:`TimeLaw`.

    Raises:
        ValueError: a shift that is not above 0, or an unknown law.
    """

    solver = "euler"

    def __init__(self, shift: float = 1.0, t_distribution: TimeLaw | str = "uniform") -> None:
        if not 0.0 < shift < math.inf:
            raise ValueError(f"shift must be above 0, got {shift}")
        self.shift = shift
        self.t_distribution = t_distribution
        self.law = find_law(t_distribution)

    def __repr__(self) -> str:
        return f"RectifiedFlow(shift={self.shift!r}, t_distribution={self.t_distribution!r})"

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - t, t)."""
        return 1.0 - t, t

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log((1 - t) / t)."""
        return 2.0 * (torch.log1p(-t) - torch.log(t))

    def time(self, log_snr: Tensor) -> Tensor:
        """1 / (1 + exp(log_snr / 2))."""
        return torch.sigmoid(-0.5 * log_snr.double())

    def t(self, u: Tensor) -> Tensor:
        """Quantile function of the law of t, then the shift."""
        return self._shifted(self.law.t(u))

    def quantile(self, log_snr: float) -> float:
        """u of a log-SNR: the inverse of t(u) at time(log_snr)."""
        t = self.time(torch.tensor(log_snr, dtype=torch.float64))
        unshifted = t / (self.shift - (self.shift - 1.0) * t)
        return float(self.law.quantile(unshifted))

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """noise - x_0."""
        return noise - x0

    def split(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t - t v, x_t + (1 - t) v)."""
        alpha, sigma = self._columns(x_t, t)
        return x_t - sigma * output, x_t + alpha * output

    def error_gain(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def coordinate(self, t: Tensor) -> Tensor:
        """t itself."""
        return t

    def tangent(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-1, 1)."""
        return -torch.ones_like(t), torch.ones_like(t)

    def times(self, steps: int, spacing: Spacing = "time") -> Tensor:
        """ "time" and "ode": shifted 1 - k / steps, since a flow is smooth in t; else by angle."""
        if spacing == "angle":
            return self.angle_times(steps, -2.0 * math.log(self.shift))
        return self._shifted(1.0 - torch.arange(steps + 1, dtype=torch.float64) / steps)

    def default_threshold(self, channels: int) -> Threshold:
        """None."""
        return "none"

    def _shifted(self, t: Tensor) -> Tensor:
        return t if self.shift == 1.0 else self.shift * t / (1.0 + (self.shift - 1.0) * t)
