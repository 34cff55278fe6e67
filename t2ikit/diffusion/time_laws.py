"""Laws of the noise time t in training, by their quantile functions.

Shapes: u, t [...] in [0, 1].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class TimeLaw(ABC):
    """A law of t in [0, 1]: t = t(u) for a uniform u. Both functions rise and invert each other."""

    @abstractmethod
    def t(self, u: Tensor) -> Tensor:
        """The quantile function: u [...] -> t [...]."""

    @abstractmethod
    def quantile(self, t: Tensor) -> Tensor:
        """The distribution function: t [...] float64 -> u [...]; gates, which are given in log-SNR, need it."""


@dataclass
class Uniform(TimeLaw):
    """Every t alike."""

    def t(self, u: Tensor) -> Tensor:
        """u itself."""
        return u

    def quantile(self, t: Tensor) -> Tensor:
        """t itself."""
        return t


@dataclass
class LogitNormal(TimeLaw):
    """t = sigmoid(mean + scale z) for a standard normal z (Esser et al. 2024, equation 19).

    Attributes:
        mean: of the logit; below 0 favours clean images.
        scale: standard deviation of the logit, above 0.

    Raises:
        ValueError: a scale that is not above 0, or a number that is not finite.
    """

    mean: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise ValueError(f"LogitNormal: scale must be above 0 and finite, got {self.scale}")
        if not math.isfinite(self.mean):
            raise ValueError(f"LogitNormal: mean must be finite, got {self.mean}")

    def t(self, u: Tensor) -> Tensor:
        """sigmoid(mean + scale ndtri(u))."""
        normal = torch.special.ndtri(u)
        standard = self.mean == 0.0 and self.scale == 1.0
        return torch.sigmoid(normal if standard else self.mean + self.scale * normal)

    def quantile(self, t: Tensor) -> Tensor:
        """ndtr((logit(t) - mean) / scale)."""
        return torch.special.ndtr((torch.logit(t) - self.mean) / self.scale)


LAWS: dict[str, type[TimeLaw]] = {"uniform": Uniform, "logit_normal": LogitNormal}


def find_law(law: str | TimeLaw) -> TimeLaw:
    """The law of that name, or the given one.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(law, TimeLaw):
        return law
    if law not in LAWS:
        raise ValueError(
            f"t_distribution must be one of {', '.join(LAWS)}, or a TimeLaw by its class path; got {law!r}"
        )
    return LAWS[law]()
