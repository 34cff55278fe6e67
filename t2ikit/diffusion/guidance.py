"""Guidance: how much, at which steps, and against what; and a denoiser under it, with the branches of a step.

Shape legend::

    x, x_0, outputs  [B, C, H, W]      level, t  [B]      K  number of branches that one call serves

With conditional output c, unconditional u, and u_0 the unconditional output from the zero state, a guided step uses

    c + w (c - u) + l (u - u_0)

which is (1 + w) c - w u for l = 0 (Ho & Salimans 2022, equation 6). "Scale s" elsewhere is w + 1.

States are opaque: a tensor with B rows, any nesting of such tensors, or None, which is the zero state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from t2ikit.denoisers.base import Denoiser
from t2ikit.denoisers.context import Context
from t2ikit.denoisers.saved import SavedDenoiser
from t2ikit.diffusion.processes import Process

# Up to this many rows a GPU is limited by launches, and one call of K B rows is cheaper than K calls. Beyond it, and on
# a CPU, separate calls are: the unconditional text is short and stays so.
STACKED_ROWS = 16


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (Sadat et al. 2025, "Eliminating oversaturation", Algorithm 1), on estimates of x_0.

    Attributes:
        parallel: eta, share kept of the part of c - u along c; 1 keeps all of it, 0 none.
        max_norm: r, the norm of a sample's c - u is cut to it; 0 does not cut.
        momentum: beta, c - u plus beta times its running sum; the paper uses about -0.5, 0 is off.

    Raises:
        ValueError: a negative ``max_norm``, a ``momentum`` outside (-1, 1), or a number that is none.
    """

    parallel: float = 0.0
    max_norm: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.parallel):
            raise ValueError(f"parallel must be finite (1 keeps all of it), got {self.parallel}")
        if not self.max_norm >= 0.0:
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
        ValueError: an unknown schedule, a weight that is not finite, a ``start_step`` below -1, an interval that is
            empty, or latent guidance together with ``weaker``.
    """

    weight: float = 0.0
    schedule: Literal["constant", "linear"] = "constant"
    start_step: int = 0
    interval: tuple[float, float] | None = None
    latent_weight: float = 0.0
    weaker: Denoiser | SavedDenoiser | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "linear"):
            raise ValueError(f"guidance schedule must be 'constant' or 'linear', got {self.schedule!r}")
        for name in ("weight", "latent_weight"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"guidance {name} must be finite, got {getattr(self, name)}")
        if not self.start_step >= -1:
            raise ValueError(f"guidance start_step must be at least -1, which guides all steps; got {self.start_step}")
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


def loaded(weaker: Denoiser | SavedDenoiser | None) -> Denoiser | None:
    """The weaker denoiser, which must be there.

    Raises:
        ValueError: only the name of its checkpoint is.
    """
    if isinstance(weaker, SavedDenoiser):
        raise ValueError(f"the weaker denoiser is still in {weaker.checkpoint}: load it with t2ikit.checkpoints.filled")
    return weaker


class GuidedDenoiser:
    """Estimates x_0 and noise at the nodes of a sampling grid, guided.

    Every branch keeps its own state: a guided step hands each branch's returned state to the next call of that branch.
    An unguided step runs the conditional branch alone, and both branches go on from the state that it returns.

    Args:
        denoiser: the denoiser.
        process: the diffusion process.
        guidance: the rule.
        times: [steps + 1] on the CPU, the t of every node.
        device: of x.
        context: of the text, B rows.
        uncond: context of the unconditional text, B rows; None when nothing needs it.
        weaker: context of the text by ``guidance.weaker``, B rows; None without autoguidance.
        stacked: one call for all branches of a step, rather than one each. None: whichever is cheaper.

    Attributes:
        guided: number of evaluations so far that were guided.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        process: Process,
        guidance: Guidance,
        times: Tensor,
        device: torch.device,
        context: Context,
        uncond: Context | None = None,
        weaker: Context | None = None,
        stacked: bool | None = None,
    ) -> None:
        self.denoiser, self.process, self.guidance = denoiser, process, guidance
        self.times = times
        self.steps = len(times) - 1
        self.log_snr = process.log_snr(times.double()).tolist()
        self.context, self.uncond, self.weaker = context, uncond, weaker
        self.stacked = stacked
        self.levels = process.level(times, denoiser.level_kind).to(device)
        self.weaker_denoiser = loaded(guidance.weaker)
        if self.weaker_denoiser is not None:
            self.weaker_levels = process.level(times, self.weaker_denoiser.level_kind).to(device)
        self.state: Any = None
        self.uncond_state: Any = None
        self.weaker_state: Any = None
        self._joined: dict[int, Any] = {}
        self._running: Tensor | None = None
        self.guided = 0

    def __call__(self, x: Tensor, node: int, step: int) -> tuple[Tensor, Tensor]:
        """(x_0, noise) estimated from x [B, C, H, W] at a node of the grid, as part of a step."""
        t = self.times[node : node + 1]
        weight, latent_weight = self.guidance.weights(step, self.steps, self.log_snr[node])
        guided = weight != 0.0 or latent_weight != 0.0
        self.guided += guided
        if not guided:
            output = self._unguided(x, node)
        elif self.weaker_denoiser is not None:
            output = self._weigh(x, t, weight, *self._with_weaker(x, node))
        else:
            outputs = self._with_uncond(x, node)
            output = self._weigh(x, t, weight, outputs[0], outputs[1])
            if latent_weight != 0.0:
                output = output + latent_weight * (outputs[1] - outputs[2])
        return self.process.split(x, output, t)

    def _unguided(self, x: Tensor, node: int) -> Tensor:
        prediction = self.denoiser(x, self.levels[node].expand(x.shape[0]), self.context, self.state)
        self.state = self.uncond_state = prediction.state
        return prediction.output.to(x.dtype)

    def _with_uncond(self, x: Tensor, node: int) -> list[Tensor]:
        """Conditional, unconditional and, for latent guidance, unconditional from the zero state."""
        contexts, states = [self.context, self.uncond], [self.state, self.uncond_state]
        if self.guidance.latent_weight != 0.0:
            contexts, states = [*contexts, self.uncond], [*states, None]
        outputs, returned = self._branches(x, node, contexts, states)
        self.state, self.uncond_state = returned[:2]
        return outputs

    def _with_weaker(self, x: Tensor, node: int) -> tuple[Tensor, Tensor]:
        assert self.weaker_denoiser is not None
        output = self._unguided(x, node)
        level = self.weaker_levels[node].expand(x.shape[0])
        prediction = self.weaker_denoiser(x, level, self.weaker, self.weaker_state)
        self.weaker_state = prediction.state
        return output, prediction.output.to(x.dtype)

    def _branches(
        self, x: Tensor, node: int, contexts: Sequence[Any], states: Sequence[Any]
    ) -> tuple[list[Tensor], list[Any]]:
        """Outputs and states of K branches on the same x, in one call or in K."""
        rows, count = x.shape[0], len(contexts)
        level = self.levels[node]
        stacked = x.device.type != "cpu" and rows <= STACKED_ROWS if self.stacked is None else self.stacked
        if not stacked:
            predictions = [
                self.denoiser(x, level.expand(rows), context, state)
                for context, state in zip(contexts, states, strict=True)
            ]
            return (
                [prediction.output.to(x.dtype) for prediction in predictions],
                [prediction.state for prediction in predictions],
            )
        if count not in self._joined:
            joined = contexts[0]
            for context in contexts[1:]:
                joined = joined.cat(context)
            self._joined[count] = joined
        prediction = self.denoiser(
            x.repeat(count, 1, 1, 1), level.expand(count * rows), self._joined[count], join_states(states)
        )
        return list(prediction.output.to(x.dtype).chunk(count)), split_states(prediction.state, count)

    def _weigh(self, x: Tensor, t: Tensor, weight: float, conditional: Tensor, other: Tensor) -> Tensor:
        """(1 + w) c - w u; with a projection, the output whose x_0 is moved along the projected difference."""
        projection = self.guidance.projection
        if projection is None:
            return (1.0 + weight) * conditional - weight * other
        x0, _ = self.process.split(x, conditional, t)
        other_x0, _ = self.process.split(x, other, t)
        self._running = projection.running(x0 - other_x0, self._running)
        moved = x0 + weight * projection.project(self._running, x0)
        alpha, sigma = (float(scale) for scale in self.process.scales(t))
        return self.process.target(moved, (x - alpha * moved) / sigma, t)


def join_states(states: Sequence[Any]) -> Any:
    """The states of K branches, B rows each, as one of K B rows; a missing one becomes zeros."""
    known = [state for state in states if state is not None]
    if not known:
        return None
    _, structure = tree_flatten(known[0])
    leaves = [tree_flatten(state if state is not None else tree_map(torch.zeros_like, known[0]))[0] for state in states]
    return tree_unflatten([torch.cat(parts) for parts in zip(*leaves, strict=True)], structure)


def split_states(state: Any, count: int) -> list[Any]:
    """The inverse of :func:`join_states`."""
    if state is None:
        return [None] * count
    leaves, structure = tree_flatten(state)
    chunks = [leaf.chunk(count) for leaf in leaves]
    return [tree_unflatten([leaf[branch] for leaf in chunks], structure) for branch in range(count)]
