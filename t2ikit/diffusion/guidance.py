"""Guidance: how much, at which steps, and against what; and how the branches of a guided step are combined.

Shape legend::

    x_0, outputs  [B, C, H, W]

With conditional output c, unconditional u, and u_0 the unconditional output from the zero state, a guided step uses

    c + w (c - u) + l (u - u_0)

which is (1 + w) c - w u for l = 0 (Ho & Salimans 2022, equation 6). "Scale s" elsewhere is w + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from t2ikit.denoisers.base import Denoiser


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (Sadat et al. 2025, "Eliminating oversaturation", Algorithm 1), on estimates of x_0.

    Attributes:
        parallel: eta, share kept of the part of c - u along c; 1 keeps all of it, 0 none.
        max_norm: r, the norm of a sample's c - u is cut to it; 0 does not cut.
        momentum: beta, c - u plus beta times its running sum; the paper uses about -0.5, 0 is off.

    Raises:
        ValueError: a negative ``max_norm``, or a ``momentum`` outside (-1, 1).
    """

    parallel: float = 0.0
    max_norm: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.max_norm < 0.0:
            raise ValueError(f"max_norm must be at least 0 (0 = no cut), got {self.max_norm}")
        if not -1.0 < self.momentum < 1.0:
            raise ValueError(f"momentum must lie in (-1, 1), got {self.momentum}")

    def running(self, difference: Tensor, previous: Tensor | None) -> Tensor:
        """c - u with momentum, to be handed back at the next step; [B, C, H, W] -> the same."""
        return difference if previous is None or self.momentum == 0.0 else difference + self.momentum * previous

    def project(self, running: Tensor, conditional: Tensor) -> Tensor:
        """The guidance direction: cut in norm, then its part along the conditional x_0 weighed by ``parallel``.

        Args:
            running: [B, C, H, W], c - u with momentum.
            conditional: [B, C, H, W], the conditional estimate of x_0.

        Returns:
            [B, C, H, W].
        """
        flat = running.flatten(1)
        if self.max_norm > 0.0:
            norm = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
            flat = flat * (self.max_norm / norm.clamp(min=self.max_norm))
        along = torch.nn.functional.normalize(conditional.flatten(1), dim=1)
        parallel = (flat * along).sum(1, keepdim=True) * along
        return (flat - parallel + self.parallel * parallel).view_as(running)


@dataclass(frozen=True)
class Guidance:
    """One rule of guidance.

    Attributes:
        weight: w; 0 is none.
        schedule: "constant", or "linear": 2 w k / steps at step k.
        start_step: steps k > start_step are guided; with the default 0 the first step is not, -1 guides all.
        interval: (low, high) in log-SNR; only levels inside are guided (Kynkaanniemi et al. 2024, "Applying guidance in
            a limited interval"). None: all.
        latent_weight: l, guidance by the state: the unconditional branch against itself from the zero state.
        weaker: autoguidance (Karras et al. 2024, "Guiding a diffusion model with a bad version of itself"): this
            denoiser's output for the same text stands in for the unconditional one.
        projection: adaptive projected guidance instead of the plain difference.

    Raises:
        ValueError: an unknown schedule, an interval that is empty, or latent guidance together with ``weaker``.
    """

    weight: float = 0.0
    schedule: Literal["constant", "linear"] = "constant"
    start_step: int = 0
    interval: tuple[float, float] | None = None
    latent_weight: float = 0.0
    weaker: Denoiser | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear"):
            raise ValueError(f"guidance schedule must be 'constant' or 'linear', got {self.schedule!r}")
        if self.interval is not None and not self.interval[0] < self.interval[1]:
            raise ValueError(f"guidance interval is (low, high) in log-SNR with low < high, got {self.interval}")
        if self.weaker is not None and self.latent_weight != 0.0:
            raise ValueError("guidance takes either latent_weight or weaker, not both")

    @property
    def active(self) -> bool:
        """False when no step is guided."""
        return self.weight != 0.0 or self.latent_weight != 0.0

    def weights(self, step: int, steps: int, log_snr: float) -> tuple[float, float]:
        """(w, l) at one evaluation; (0, 0) where it is not guided.

        Args:
            step: k, from 0.
            steps: number of steps.
            log_snr: of the level that is evaluated.
        """
        if step <= self.start_step:
            return 0.0, 0.0
        if self.interval is not None and not self.interval[0] <= log_snr <= self.interval[1]:
            return 0.0, 0.0
        factor = 2.0 * step / steps if self.schedule == "linear" else 1.0
        return factor * self.weight, self.latent_weight
