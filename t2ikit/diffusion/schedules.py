"""Noise schedules gamma(t) of variance-preserving diffusion.

Legend::

    t        any shape, float32 or float64, in [0, 1]: 0 is clean, 1 is noise
    gamma    signal power in (0, 1], x_t = sqrt(gamma) x_0 + sqrt(1 - gamma) noise; never rises with t
    log_snr  log(gamma / (1 - gamma)), natural logarithm; +inf where gamma is 1

Everything is computed in the dtype of ``t``.
"""

from __future__ import annotations

import difflib
import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

GAMMA_MIN = 1e-9
GAMMA_MAX = 1.0 - 1e-4
BISECTIONS = 80


class GammaSchedule(ABC):
    """A schedule; call it with t to get gamma.

    A schedule of one's own subclasses this, defines :meth:`unshifted` and ends its ``__init__`` with
    :func:`check_schedule`.

    Args:
        log_snr_shift: added to the log-SNR at every t. For images of side d, trained like images of side 64, it is
            2 log(64 / d) (Hoogeboom et al. 2023, "Simple diffusion", equation 3 on).
    """

    def __init__(self, log_snr_shift: float = 0.0) -> None:
        self.log_snr_shift = float(log_snr_shift)

    @abstractmethod
    def unshifted(self, t: Tensor) -> Tensor:
        """gamma before the shift of the log-SNR; t [...] -> [...]."""

    def __call__(self, t: Tensor | float) -> Tensor:
        """gamma(t); t [...] -> [...] in the dtype of t, a number as float64."""
        gamma = self.unshifted(t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64))
        if self.log_snr_shift == 0.0:
            return gamma
        return gamma / (gamma + (1.0 - gamma) * math.exp(-self.log_snr_shift))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(gamma / (1 - gamma)) at t [...] -> [...]; +inf where gamma is 1."""
        gamma = self.unshifted(t)
        return torch.log(gamma) - torch.log1p(-gamma) + self.log_snr_shift

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of :meth:`log_snr`, by bisection: log_snr [...] -> t [...] float64.

        Beyond the ends of the schedule the result is 0 or 1; where gamma is clipped, a t of the flat part.
        """
        target = log_snr.double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            cleaner = self.log_snr(middle) > target
            low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
        return 0.5 * (low + high)

    def quantile(self, log_snr: float) -> float:
        """The t in [0, 1] whose log-SNR is ``log_snr``."""
        return float(self.time(torch.tensor(log_snr, dtype=torch.float64, device="cpu")))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({options})"


class Linear(GammaSchedule):
    """gamma = max(1 - t, 1e-9): the training schedule of CAD-I. gamma(0) is exactly 1."""

    def __init__(self, log_snr_shift: float = 0.0) -> None:
        super().__init__(log_snr_shift)
        check_schedule(self)

    def unshifted(self, t: Tensor) -> Tensor:
        """t [...] -> [...]."""
        return (1.0 - t).clamp(min=GAMMA_MIN)


class Sigmoid(GammaSchedule):
    """Sigmoid schedule (Jabri et al. 2023, "Scalable adaptive computation", Algorithm 3), clipped to [1e-9, 1 - 1e-4].

    Args:
        start, end: the stretch of the sigmoid that is used.
        tau: temperature, above 0.
        log_snr_shift: see :class:`GammaSchedule`.
    """

    def __init__(self, start: float = -3.0, end: float = 3.0, tau: float = 1.0, log_snr_shift: float = 0.0) -> None:
        super().__init__(log_snr_shift)
        self.start, self.end, self.tau = float(start), float(end), float(tau)
        check_schedule(self)

    def unshifted(self, t: Tensor) -> Tensor:
        """t [...] -> [...]."""
        at_start = _sigmoid(self.start / self.tau) if self.tau else math.nan
        at_end = _sigmoid(self.end / self.tau) if self.tau else math.nan
        if at_end == at_start:
            return torch.full_like(t, math.nan)
        at_t = torch.sigmoid((t * (self.end - self.start) + self.start) / self.tau)
        return ((at_end - at_t) / (at_end - at_start)).clamp(GAMMA_MIN, GAMMA_MAX)


class Cosine(GammaSchedule):
    """Cosine schedule (Chen 2023, "On the importance of noise scheduling", Algorithm 1), clipped to [1e-9, 1 - 1e-4].

    With start 1, end 0, tau 1 it is cos^2(pi t / 2).

    Args:
        start, end: the stretch of the quarter wave that is used, in [0, 1].
        tau: temperature, above 0.
        log_snr_shift: see :class:`GammaSchedule`.
    """

    def __init__(self, start: float = 1.0, end: float = 0.0, tau: float = 1.0, log_snr_shift: float = 0.0) -> None:
        super().__init__(log_snr_shift)
        self.start, self.end, self.tau = float(start), float(end), float(tau)
        check_schedule(self)

    def unshifted(self, t: Tensor) -> Tensor:
        """t [...] -> [...]."""
        at_start, at_end = self._power(self.start), self._power(self.end)
        # Outside [0, 1] the wave turns, which the clipping would hide.
        if self.tau <= 0.0 or not 0.0 <= min(self.start, self.end) < max(self.start, self.end) <= 1.0:
            return torch.full_like(t, math.nan)
        angle = (t * (self.end - self.start) + self.start) * (0.5 * math.pi)
        # cos(pi / 2) rounds to a tiny negative number, which has no fractional power.
        at_t = torch.cos(angle).clamp(min=0.0) ** (2.0 * self.tau)
        return ((at_end - at_t) / (at_end - at_start)).clamp(GAMMA_MIN, GAMMA_MAX)

    def _power(self, x: float) -> float:
        return float(max(math.cos(0.5 * math.pi * x), 0.0) ** (2.0 * max(self.tau, 0.0)))


class CosineSimple(GammaSchedule):
    """gamma = cos^2(((t + 2e-4) / (1 + 2.5e-4)) pi / 2), not clipped: 6.2e-9 at t = 1, 1 - 9.9e-8 at t = 0."""

    def __init__(self, log_snr_shift: float = 0.0) -> None:
        super().__init__(log_snr_shift)
        check_schedule(self)

    def unshifted(self, t: Tensor) -> Tensor:
        """t [...] -> [...]."""
        return torch.cos((t + 2e-4) / (1.0 + 2.5e-4) * (0.5 * math.pi)).square()


class ShiftedCosine(GammaSchedule):
    """Cosine in log-SNR, -2 log tan(angle), between two finite ends (Hoogeboom et al. 2023, "Simple diffusion").

    Args:
        log_snr_min: log-SNR at t = 1, before the shift.
        log_snr_max: log-SNR at t = 0, before the shift.
        log_snr_shift: see :class:`GammaSchedule`.
    """

    def __init__(self, log_snr_min: float = -15.0, log_snr_max: float = 15.0, log_snr_shift: float = 0.0) -> None:
        super().__init__(log_snr_shift)
        self.log_snr_min, self.log_snr_max = float(log_snr_min), float(log_snr_max)
        check_schedule(self)

    def unshifted(self, t: Tensor) -> Tensor:
        """t [...] -> [...]."""
        return torch.sigmoid(self._unshifted_log_snr(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log tan(angle(t)) + shift; t [...] -> [...]."""
        return self._unshifted_log_snr(t) + self.log_snr_shift

    def _unshifted_log_snr(self, t: Tensor) -> Tensor:
        first, last = (math.atan(math.exp(-0.5 * log_snr)) for log_snr in (self.log_snr_max, self.log_snr_min))
        return -2.0 * torch.log(torch.tan(first + t * (last - first)))


SCHEDULES: dict[str, type[GammaSchedule]] = {
    "linear": Linear,
    "sigmoid": Sigmoid,
    "cosine": Cosine,
    "cosine_simple": CosineSimple,
    "shifted_cosine": ShiftedCosine,
}


def gamma_schedule(name: str, **options: float) -> GammaSchedule:
    """The schedule of that name.

    Args:
        name: "linear", "sigmoid", "cosine", "cosine_simple" or "shifted_cosine".
        **options: of the schedule's constructor, e.g. ``tau`` or ``log_snr_shift``.

    Raises:
        ValueError: an unknown name or option (the nearest known one is named), or options with which gamma does not
            fall from t = 0 to t = 1.
    """
    if name not in SCHEDULES:
        raise ValueError(_unknown("schedule", name, SCHEDULES))
    known = list(inspect.signature(SCHEDULES[name].__init__).parameters)[1:]
    for option in options:
        if option not in known:
            raise ValueError(_unknown(f"option of the schedule {name}", option, known))
    return SCHEDULES[name](**options)


def check_schedule(schedule: GammaSchedule) -> None:
    """Refuses a schedule that is not finite, leaves [0, 1], rises somewhere, or does not fall at all.

    Raises:
        ValueError: with the schedule, its options and the first t at fault.
    """
    t = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64, device="cpu")  # also under a meta default
    gamma = schedule(t)
    wrong = ~torch.isfinite(gamma) | (gamma < 0.0) | (gamma > 1.0)
    wrong[1:] |= gamma[1:] > gamma[:-1] + 1e-15
    if gamma[0] <= gamma[-1]:
        wrong[-1] = True
    if wrong.any():
        at = float(t[wrong][0])
        raise ValueError(
            f"the schedule {schedule!r} is not monotone: gamma must fall from t = 0 to t = 1 and stay in [0, 1], "
            f"which fails at t = {at:g}; change its options"
        )


def _unknown(what: str, given: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(given), list(known), n=1, cutoff=0.0)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    return f"unknown {what} {given!r}{hint} (known: {', '.join(known)})"


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))
