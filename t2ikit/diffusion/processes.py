"""Diffusion processes: how an image becomes noise, what a network predicts, how the prediction is read.

Shape legend::

    x0, noise, x_t, output   [B, C, H, W]; x0 normalised latents or pixels, noise standard normal
    t                        [B], float32 or float64, in [0, 1]: 0 is clean, 1 is noise
    u                        [B], noise quantile in [0, 1]; t = process.t(u)

Every process is x_t = alpha(t) x_0 + sigma(t) noise. A process holds no tensors and no state. Results are in the
dtype of x, at least fp32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from t2ikit.diffusion.schedules import GammaSchedule, check_schedule, gamma_schedule
from t2ikit.diffusion.time_laws import TimeLaw, find_law

Spacing = Literal["time", "ode", "angle"]
Threshold = tuple[str, float] | str
# A network cannot receive an infinite log-SNR; fp32 cannot tell gamma from 1 beyond 17 anyway.
LOG_SNR_LIMIT = 30.0


class Process(ABC):
    """x_t = alpha(t) x_0 + sigma(t) noise, with alpha falling and sigma rising in t.

    Attributes:
        solver: name of the sampler that `t2ikit sample` and `t2ikit.load` take where none is given.
    """

    solver: ClassVar[str] = "ddim"

    @abstractmethod
    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t [...], each [...] in the dtype of t."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at t [...] -> [...]; infinite where sigma or alpha is 0."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`: [...] -> t [...] float64, clipped to [0, 1]."""

    @abstractmethod
    def t(self, u: Tensor) -> Tensor:
        """The quantile function of t in training: u [B] in [0, 1] -> t [B], rising."""

    @abstractmethod
    def quantile(self, log_snr: float) -> float:
        """The u in [0, 1] with ``log_snr(t(u)) == log_snr``: the position of a gate given in log-SNR."""

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict, [B, C, H, W]."""

    @abstractmethod
    def split(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates (x_0, noise) that a network's output stands for; alpha x_0 + sigma noise is x_t again."""

    @abstractmethod
    def error_gain(self, t: Tensor) -> Tensor:
        """g(t) with ``x_0 estimate - x_0 = sigma g (target - output)``; t [...] -> [...]."""

    @abstractmethod
    def coordinate(self, t: Tensor) -> Tensor:
        """The variable s in which the sampling ODE dx/ds has no pole; t [...] -> [...], rising in t."""

    @abstractmethod
    def tangent(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / ds, d sigma / ds) at t [...]; the ODE is dx/ds = alpha' x_0 + sigma' noise."""

    @abstractmethod
    def times(self, steps: int, spacing: Spacing = "time") -> Tensor:
        """A sampling grid, [steps + 1] float64 from 1 down to 0.

        Args:
            steps: number of steps.
            spacing: "time", even in t; "angle", :meth:`angle_times`; "ode", the one of the two that suits Euler and
                Heun.
        """

    @abstractmethod
    def default_threshold(self, channels: int) -> Threshold:
        """How a sampler bounds its estimate of x_0 by default: ("clamp", c) or "none"."""

    def level(self, t: Tensor, kind: str) -> Tensor:
        """The scalar that a denoiser receives, float32: t [...] -> [...].

        Args:
            t: noise time.
            kind: "gamma" = alpha^2 / (alpha^2 + sigma^2), "t", or "log_snr" (cut at +-30, since it may be infinite).

        Raises:
            ValueError: an unknown kind.
        """
        if kind == "t":
            return t.float()
        if kind == "gamma":
            return self._gamma(t).float()
        if kind == "log_snr":
            return self.log_snr(t).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT).float()
        raise ValueError(f"unknown level_kind {kind!r} of the denoiser; one of 'gamma', 't', 'log_snr'")

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x_0 + sigma noise, [B, C, H, W]."""
        alpha, sigma = self._columns(x0, t)
        return alpha * x0 + sigma * noise

    def angle_times(self, steps: int, log_snr_shift: float = 0.0) -> Tensor:
        """A grid by the angle phi with tan phi = sigma / alpha, whose steps shrink towards both ends.

        phi falls with the distribution function of a semicircle. Towards the ends the log-SNR then changes by about
        1.5 / k in the k-th step, where x depends on it like (k / steps)^3, so that the error of a second-order solver
        is steps^-2. With even steps of phi it is log(steps) steps^-2; with even steps of t and a linear gamma, whose
        phi is like sqrt(t), the last step alone costs steps^-1.

        Args:
            steps: number of steps.
            log_snr_shift: centre of the grid in log-SNR.
        """
        ends = self.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)) - log_snr_shift
        first, last = torch.atan(torch.exp(-0.5 * ends))
        s = torch.arange(steps + 1, dtype=torch.float64) / steps
        share = (torch.asin(s.sqrt()) - (1.0 - 2.0 * s) * (s * (1.0 - s)).sqrt()) * (2.0 / math.pi)
        angle = first + (last - first) * share
        t = self.time(log_snr_shift - 2.0 * torch.log(torch.tan(angle)))
        t[0], t[-1] = 1.0, 0.0
        return t

    def _gamma(self, t: Tensor) -> Tensor:
        alpha, sigma = self.scales(t)
        return alpha.square() / (alpha.square() + sigma.square())

    def _columns(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma as [B, 1, ..., 1] in the dtype of x, at least fp32."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        alpha, sigma = self.scales(t)
        return _column(alpha, x, dtype), _column(sigma, x, dtype)


class GaussianDiffusion(Process):
    """Variance-preserving diffusion: alpha^2 = gamma(t), sigma^2 = 1 - gamma(t) (Ho et al. 2020, equation 4).

    Args:
        schedule: name of a gamma schedule, or a :class:`GammaSchedule`.
        prediction: "epsilon", the noise (Ho et al. 2020, equation 14), or "v" = alpha noise - sigma x_0
            (Salimans & Ho 2022, appendix D).
        start: option of the sigmoid and cosine schedules.
        end: option of the sigmoid and cosine schedules.
        tau: option of the sigmoid and cosine schedules.
        log_snr_min: option of the shifted cosine.
        log_snr_max: option of the shifted cosine.
        log_snr_shift: of any named schedule: added to the log-SNR, 2 log(64 / side) for larger images.
        data_std: standard deviation of x_0. Without another threshold, ``t2ikit.diffusion.sample`` bounds estimates of
            x_0 that are no pixels at 4 times itself; a run takes the bound of its image space instead.
        t_distribution: law of t in training: "uniform", "logit_normal", or a :class:`TimeLaw`.

    Raises:
        ValueError: an unknown schedule, prediction or option, or a schedule that is not monotone.
    """

    def __init__(
        self,
        schedule: GammaSchedule | str = "linear",
        prediction: Literal["epsilon", "v"] = "epsilon",
        start: float | None = None,
        end: float | None = None,
        tau: float | None = None,
        log_snr_min: float | None = None,
        log_snr_max: float | None = None,
        log_snr_shift: float | None = None,
        data_std: float = 1.0,
        t_distribution: TimeLaw | str = "uniform",
    ) -> None:
        given = {
            "start": start,
            "end": end,
            "tau": tau,
            "log_snr_min": log_snr_min,
            "log_snr_max": log_snr_max,
            "log_snr_shift": log_snr_shift,
        }
        options = {name: value for name, value in given.items() if value is not None}
        if isinstance(schedule, str):
            self.schedule = gamma_schedule(schedule, **options)
        elif options:
            raise ValueError(f"{', '.join(options)}: give these to the schedule object itself, or name the schedule")
        else:
            check_schedule(schedule)
            self.schedule = schedule
        if prediction not in ("epsilon", "v"):
            raise ValueError(f"prediction must be 'epsilon' or 'v', got {prediction!r}")
        if not data_std > 0.0:
            raise ValueError(f"data_std is the standard deviation of x_0, above 0; got {data_std}")
        self.prediction = prediction
        self.data_std = data_std
        self.t_distribution = t_distribution
        self.law = find_law(t_distribution)

    def __repr__(self) -> str:
        return f"GaussianDiffusion({self.schedule!r}, prediction={self.prediction!r}, data_std={self.data_std!r})"

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(sqrt gamma, sqrt(1 - gamma))."""
        gamma = self.schedule(t)
        return gamma.sqrt(), (1.0 - gamma).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """log(gamma / (1 - gamma))."""
        return self.schedule.log_snr(t)

    def time(self, log_snr: Tensor) -> Tensor:
        """t of a log-SNR."""
        return self.schedule.time(log_snr)

    def _gamma(self, t: Tensor) -> Tensor:
        return self.schedule(t)

    def t(self, u: Tensor) -> Tensor:
        """Quantile function of the law of t."""
        return u if self.t_distribution == "uniform" else self.law.t(u)

    def quantile(self, log_snr: float) -> float:
        """u of a log-SNR: the law's distribution function at its t."""
        t = self.schedule.quantile(log_snr)
        return float(self.law.quantile(torch.tensor(t, dtype=torch.float64)))

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noise, or v = alpha noise - sigma x_0."""
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self._columns(x0, t)
        return alpha * noise - sigma * x0

    def split(self, x_t: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """epsilon: ((x_t - sigma e) / alpha, e); v: (alpha x_t - sigma v, sigma x_t + alpha v)."""
        alpha, sigma = self._columns(x_t, t)
        if self.prediction == "epsilon":
            return (x_t - sigma * output) / alpha, output
        return alpha * x_t - sigma * output, sigma * x_t + alpha * output

    def error_gain(self, t: Tensor) -> Tensor:
        """epsilon: 1 / alpha; v: 1."""
        alpha, _ = self.scales(t)
        return 1.0 / alpha if self.prediction == "epsilon" else torch.ones_like(alpha)

    def coordinate(self, t: Tensor) -> Tensor:
        """The angle phi with alpha = cos phi, sigma = sin phi; dx/dphi is v (Salimans & Ho 2022, appendix D)."""
        alpha, sigma = self.scales(t)
        return torch.atan2(sigma, alpha)

    def tangent(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(-sigma, alpha)."""
        alpha, sigma = self.scales(t)
        return -sigma, alpha

    def times(self, steps: int, spacing: Spacing = "time") -> Tensor:
        """ "time": t_k = 1 - k / steps; else by angle."""
        if spacing == "time":
            return 1.0 - torch.arange(steps + 1, dtype=torch.float64) / steps
        return self.angle_times(steps, self.schedule.log_snr_shift)

    def default_threshold(self, channels: int) -> Threshold:
        """Pixels (3 channels) are clamped to +-1, latents to +-4 standard deviations."""
        return ("clamp", 1.0) if channels == 3 else ("clamp", 4.0 * self.data_std)


def _column(values: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    if values.numel() == 1 and values.device.type == "cpu" and x.dtype == dtype:
        return values.to(dtype).reshape(())  # one number for all rows, as in a sampler: a scalar needs no copy to a GPU
    return values.to(x.device, dtype, non_blocking=True).reshape(-1, *(1,) * (x.dim() - 1))
