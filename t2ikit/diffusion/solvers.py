"""Solvers of the sampling ODE or of the ancestral chain, on any continuous process.

Shape legend::

    x, x_0, noise  [B, C, H, W]      K  steps; nodes k = 0 (noise) ... K (clean)

A solver is a generator: it yields x after each step, and sees the network only as (x, node, step) -> (x_0, noise).
Coefficients are Python numbers from the schedule, computed once, so that no step waits for the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass

from torch import Tensor

from t2ikit.diffusion.processes import Process, Spacing

Estimate = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
Normal = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Grid:
    """What a solver knows of the process at the nodes, each a list of K + 1 numbers.

    Attributes:
        alpha, sigma: x = alpha x_0 + sigma noise.
        coordinate: s of the sampling ODE.
        tangent_alpha, tangent_sigma: derivatives of alpha and sigma by s.
    """

    alpha: list[float]
    sigma: list[float]
    coordinate: list[float]
    tangent_alpha: list[float]
    tangent_sigma: list[float]

    @staticmethod
    def of(process: Process, times: Tensor) -> Grid:
        """The grid of ``times`` [K + 1]."""
        curves = (*process.scales(times), process.coordinate(times), *process.tangent(times))
        return Grid(*(curve.double().tolist() for curve in curves))

    @property
    def steps(self) -> int:
        """K."""
        return len(self.alpha) - 1

    def half_log_snr(self, node: int) -> float:
        """log(alpha / sigma), -inf or +inf at the ends."""
        alpha, sigma = self.alpha[node], self.sigma[node]
        if sigma == 0.0:
            return math.inf
        return -math.inf if alpha == 0.0 else math.log(alpha / sigma)


def ddim(estimate: Estimate, grid: Grid, x: Tensor, normal: Normal) -> Iterator[Tensor]:
    """DDIM with eta = 0 (Song et al. 2021, equation 12): the same estimates, mixed for the next level."""
    for k in range(grid.steps):
        x0, noise = estimate(x, k, k)
        x = grid.alpha[k + 1] * x0 + grid.sigma[k + 1] * noise
        yield x


def ddpm(estimate: Estimate, grid: Grid, x: Tensor, normal: Normal, variance: float = 0.0) -> Iterator[Tensor]:
    """Ancestral sampling from q(x_s | x_t, x_0) (Ho et al. 2020, equations 6 and 7, for any alpha and sigma).

    No noise is added at the last step. ``variance``: see :class:`DDPM`.
    """
    for k in range(grid.steps):
        x0, _ = estimate(x, k, k)
        a, s, next_a, next_s = grid.alpha[k], grid.sigma[k], grid.alpha[k + 1], grid.sigma[k + 1]
        ratio = a / next_a
        fresh = max(s**2 - (ratio * next_s) ** 2, 0.0) / s**2
        x = ratio * next_s**2 / s**2 * x + next_a * fresh * x0
        if k + 1 < grid.steps:
            x = x + next_s ** (1.0 - variance) * s**variance * math.sqrt(fresh) * normal(x)
        yield x


def euler(estimate: Estimate, grid: Grid, x: Tensor, normal: Normal) -> Iterator[Tensor]:
    """Explicit Euler on dx/ds = alpha' x_0 + sigma' noise, first order; on a flow the same as DDIM."""
    for k in range(grid.steps):
        x0, noise = estimate(x, k, k)
        x = x + (grid.coordinate[k + 1] - grid.coordinate[k]) * _slope(grid, k, x0, noise)
        yield x


def heun(estimate: Estimate, grid: Grid, x: Tensor, normal: Normal) -> Iterator[Tensor]:
    """Heun, second order: 2 K - 1 evaluations (Karras et al. 2022, "EDM", Algorithm 1).

    EDM's variable sigma / alpha is infinite at t = 1 of a flow and about 3e4 for gamma = 1e-9; the ODE is solved in the
    process's own coordinate instead, where it has no pole. The last step is the first estimate alone, as there.
    """
    for k in range(grid.steps):
        x0, noise = estimate(x, k, k)
        if k + 1 == grid.steps:
            x = grid.alpha[k + 1] * x0 + grid.sigma[k + 1] * noise
        else:
            slope = _slope(grid, k, x0, noise)
            step = grid.coordinate[k + 1] - grid.coordinate[k]
            corrected = _slope(grid, k + 1, *estimate(x + step * slope, k + 1, k))
            x = x + 0.5 * step * (slope + corrected)
        yield x


def dpmpp_2m(estimate: Estimate, grid: Grid, x: Tensor, normal: Normal) -> Iterator[Tensor]:
    """DPM-Solver++(2M), second order (Lu et al. 2022, "DPM-Solver++", Algorithm 2).

    The first and the last step are of first order: at the first nothing came before, and at the last the log-SNR may
    jump to infinity, where the step is x = alpha x_0.
    """
    previous, previous_step = x, math.inf
    for k in range(grid.steps):
        x0, _ = estimate(x, k, k)
        step = grid.half_log_snr(k + 1) - grid.half_log_snr(k)
        direction = x0
        if 0 < k < grid.steps - 1:
            direction = x0 + step / (2.0 * previous_step) * (x0 - previous)
        x = grid.sigma[k + 1] / grid.sigma[k] * x - grid.alpha[k + 1] * math.expm1(-step) * direction
        previous, previous_step = x0, step
        yield x


def _slope(grid: Grid, node: int, x0: Tensor, noise: Tensor) -> Tensor:
    return grid.tangent_alpha[node] * x0 + grid.tangent_sigma[node] * noise


class Solver(ABC):
    """A sampling method. One of your own is named by its class path, as ``method``.

    Attributes:
        spacing: how the nodes of its grid lie: see ``Process.times``.
    """

    spacing: Spacing = "time"

    @abstractmethod
    def steps(self, estimate: Estimate, grid: Grid, x: Tensor, normal: Normal) -> Iterator[Tensor]:
        """x after each of the K steps, from the noise x [B, C, H, W] to x_0.

        Args:
            estimate: (x, node, step) -> (x_0, noise), one evaluation of the guided network at a node of the grid.
            grid: alpha, sigma and more at the nodes.
            x: the noise at node 0.
            normal: fresh standard normal numbers like its argument, keyed by row.
        """

    @property
    def name(self) -> str:
        """What a score's fingerprint calls it; make it a dataclass, so that its options are in there."""
        return repr(self) if is_dataclass(self) else f"{type(self).__module__}.{type(self).__qualname__}"


@dataclass(frozen=True)
class DDPM(Solver):
    """``ddpm`` with more noise: its variance lies between that of q(x_s | x_t, x_0) and that of q(x_t | x_s).

    These are the bounds of the variance of p(x_s | x_t) (Ho et al. 2020, section 3.2; the second one fits data that are
    themselves standard normal). The logarithm is interpolated (Hoogeboom et al. 2023, "Simple diffusion").

    Attributes:
        variance: 0 for the lower bound, as ``ddpm`` has it, 1 for the upper one. "Simple diffusion" takes 0.2.

    Raises:
        ValueError: a value out of range.
    """

    variance: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.variance <= 1.0:
            raise ValueError(f"DDPM: variance must be between 0 and 1, got {self.variance}")

    def steps(self, estimate: Estimate, grid: Grid, x: Tensor, normal: Normal) -> Iterator[Tensor]:
        return ddpm(estimate, grid, x, normal, self.variance)


@dataclass(frozen=True, repr=False)
class _Named(Solver):
    """One of the solvers of this file."""

    function: Callable[[Estimate, Grid, Tensor, Normal], Iterator[Tensor]]
    spacing: Spacing = "time"

    def steps(self, estimate: Estimate, grid: Grid, x: Tensor, normal: Normal) -> Iterator[Tensor]:
        return self.function(estimate, grid, x, normal)

    @property
    def name(self) -> str:
        return self.function.__name__


SOLVERS: dict[str, Solver] = {
    "ddim": _Named(ddim, "time"),
    "ddpm": _Named(ddpm, "time"),
    "euler": _Named(euler, "ode"),
    "heun": _Named(heun, "ode"),
    "dpmpp_2m": _Named(dpmpp_2m, "angle"),
}
