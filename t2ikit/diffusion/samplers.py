"""Sampling: from noise at t = 1 to x_0 at t = 0, by any solver, with any guidance.

Shape legend::

    x, x_0, noise  [B, C, H, W]      K  steps; nodes k = 0 (noise) ... K (clean)
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from t2ikit.batch import Text, Texts, text_rows
from t2ikit.denoisers.base import Denoiser
from t2ikit.denoisers.context import Context
from t2ikit.denoisers.layers import evaluating
from t2ikit.diffusion.guidance import Guidance, GuidedDenoiser, loaded
from t2ikit.diffusion.processes import Process, Threshold
from t2ikit.diffusion.solvers import SOLVERS, Grid, Normal, Solver
from t2ikit.diffusion.thresholds import threshold_function


@dataclass(frozen=True)
class Contexts:
    """Every context that sampling under a rule of guidance needs; :func:`encode` makes it, :func:`sample` takes it.

    Attributes:
        text: of the text, B rows.
        uncond: of the unconditional text, B rows; None where the rule needs none.
        weaker: of the text by the weaker denoiser, B rows; None without autoguidance.
    """

    text: Context
    uncond: Context | None = None
    weaker: Context | None = None

    def rows(self, index: Tensor) -> Contexts:
        """The contexts at ``index`` [R] int64, in that order; a row may be taken several times."""
        kept = (None if context is None else context.rows(index) for context in (self.uncond, self.weaker))
        return Contexts(self.text.rows(index), *kept)


Condition = Texts | Context | Contexts
"""What a sample is conditioned on: text of one or of several encoders, or what ``encode_text`` or `encode` made."""

ALIASES = {"dpm++2m": "dpmpp_2m", "dpm++_2m": "dpmpp_2m"}


@overload
def sample(
    denoiser: Denoiser,
    process: Process,
    noise: Tensor,
    text: Condition,
    uncond: Texts | Context | None = None,
    *,
    steps: int,
    guidance: float | Guidance = 0.0,
    method: str | Solver = "ddim",
    threshold: Threshold | None = None,
    generators: Sequence[torch.Generator] | None = None,
    trajectory: Literal[False] = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor: ...


@overload
def sample(
    denoiser: Denoiser,
    process: Process,
    noise: Tensor,
    text: Condition,
    uncond: Texts | Context | None = None,
    *,
    steps: int,
    guidance: float | Guidance = 0.0,
    method: str | Solver = "ddim",
    threshold: Threshold | None = None,
    generators: Sequence[torch.Generator] | None = None,
    trajectory: Literal[True],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]: ...


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    process: Process,
    noise: Tensor,
    text: Condition,
    uncond: Texts | Context | None = None,
    *,
    steps: int,
    guidance: float | Guidance = 0.0,
    method: str | Solver = "ddim",
    threshold: Threshold | None = None,
    generators: Sequence[torch.Generator] | None = None,
    trajectory: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Samples x_0 from noise. The result of a row does not depend on the other rows of the batch.

    Every text is encoded once. The denoiser runs in evaluation mode and returns to its own mode afterwards. One that
    knows coherence gets 1 with the text and 0 with the unconditional text (CAD, Dufour et al. 2024). Where guidance was
    asked for and no step was guided, a warning says so.

    Args:
        denoiser: the network.
        process: the diffusion process; its schedule may be another than in training, if the denoiser's
            ``level_kind`` is "gamma" or "log_snr".
        noise: [B, C, H, W] standard normal; 16-bit noise is converted to fp32.
        text: ``Text`` (or a tuple of them, for several encoders) of B rows or of one for all, or a context that this
            denoiser's ``encode_text`` made, of B rows; or what :func:`encode` made for this guidance, of B rows.
        uncond: the same for the unconditional branch; needed by guidance unless it is autoguidance.
        steps: K, at least 1; "heun" evaluates the network 2 K - 1 times, the others K times.
        guidance: w of (1 + w) cond - w uncond, not applied at the first step; or a :class:`Guidance`.
        method: "ddim", "ddpm", "euler", "heun" or "dpmpp_2m" (also "dpm++2m"), or a :class:`Solver` of your own.
        threshold: bound on the estimates of x_0, ("clamp", c), ("dynamic", q), ("per_channel", q) or "none". None: the
            process's default for C channels.
        generators: B generators, one a row, for "ddpm"; without them its noise is torch's global one.
        trajectory: also return x at every node.
        progress: called with (steps done, steps) after each step.

    Returns:
        x_0 [B, C, H, W], at least fp32; with ``trajectory`` also [K + 1, B, C, H, W], from the noise to x_0.

    Raises:
        ValueError: unknown method or threshold, rows that do not fit, guidance without ``uncond``, or a solver that
            does not yield once a step.
    """
    solver = find_solver(method)
    rule = guidance if isinstance(guidance, Guidance) else Guidance(float(guidance))
    _check(noise, steps, generators)
    x = noise.to(torch.promote_types(noise.dtype, torch.float32))
    bound = threshold_function(process.default_threshold(x.shape[1]) if threshold is None else threshold)
    times = process.times(steps, solver.spacing)
    if solver.spacing == "time":
        # DDIM as specified: gamma of a t in the dtype of x. The other grids lie too close to t = 1 for fp32.
        times = times.to(x.dtype)
    grid = Grid.of(process, times)
    with evaluating(denoiser, loaded(rule.weaker)):
        contexts = text if isinstance(text, Contexts) else _contexts(denoiser, rule, x, text, uncond)
        known = contexts.text, contexts.uncond, contexts.weaker
        network = GuidedDenoiser(denoiser, process, rule, times, x.device, *known)

        def estimate(x: Tensor, node: int, step: int) -> tuple[Tensor, Tensor]:
            x0, noise = network(x, node, step)
            if bound is None:
                return x0, noise
            x0 = bound(x0)
            return x0, (x - grid.alpha[node] * x0) / grid.sigma[node]

        path, done = [x], 0
        for done, reached in enumerate(solver.steps(estimate, grid, x, _normal(generators)), start=1):
            if done > steps:
                break
            path = [*path, reached] if trajectory else [reached]
            if progress is not None:
                progress(done, steps)
    if done != steps:
        came = f"more than {steps}" if done > steps else str(done)
        raise ValueError(f"method {solver.name}: yields x after each of the {steps} steps, but {came} came")
    if rule.active and network.guided == 0:
        inside = "" if rule.interval is None else f" and at levels in interval {rule.interval} of log-SNR"
        warnings.warn(
            f"guidance acted at none of the {steps} steps: it acts at steps k > start_step ({rule.start_step}), "
            f"counted from 0{inside}; change steps, start_step or interval",
            stacklevel=3,
        )
    return (path[-1], torch.stack(path)) if trajectory else path[-1]


@torch.no_grad()
def encode(
    denoiser: Denoiser,
    text: Texts,
    uncond: Texts | None,
    guidance: float | Guidance,
    device: torch.device,
) -> Contexts:
    """Encodes texts once, for several calls of :func:`sample` under one rule of guidance.

    Args:
        denoiser: the network.
        text: B rows.
        uncond: of B rows or of one for all; as in :func:`sample`.
        guidance: as in :func:`sample`.
        device: of the denoiser.

    Raises:
        ValueError: guidance without ``uncond``, or rows that do not fit.
    """
    rule = guidance if isinstance(guidance, Guidance) else Guidance(float(guidance))
    rows = torch.empty(text_rows(text), 0, device=device)
    with evaluating(denoiser, loaded(rule.weaker)):
        return _contexts(denoiser, rule, rows, text, uncond)


def network_evaluations(
    process: Process, *, steps: int, guidance: float | Guidance = 0.0, method: str | Solver = "ddim"
) -> int:
    """How often :func:`sample` evaluates a network for one image: once for every branch of guidance of every step.

    The solver runs on zeros instead of a network, so that one of your own is counted too.
    """
    solver = find_solver(method)
    rule = guidance if isinstance(guidance, Guidance) else Guidance(float(guidance))
    times = process.times(steps, solver.spacing)
    log_snr = process.log_snr(times.double()).tolist()
    count = 0

    def estimate(x: Tensor, node: int, step: int) -> tuple[Tensor, Tensor]:
        nonlocal count
        weight, latent_weight = rule.weights(step, steps, log_snr[node])
        guided = weight != 0.0 or latent_weight != 0.0
        count += (3 if latent_weight != 0.0 else 2) if guided else 1
        return torch.zeros_like(x), torch.zeros_like(x)

    for _ in solver.steps(estimate, Grid.of(process, times), torch.zeros(1, 1, 1, 1), torch.zeros_like):
        pass
    return count


def find_solver(method: str | Solver) -> Solver:
    """The solver of that name, or the given one; ValueError with the nearest name if there is none."""
    if isinstance(method, Solver):
        return method
    name = ALIASES.get(method, method)
    if name not in SOLVERS:
        near = difflib.get_close_matches(str(name).lower(), SOLVERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown sampling method {method!r}; the nearest is {near!r} (known: {', '.join(SOLVERS)})")
    return SOLVERS[name]


def _check(noise: Tensor, steps: int, generators: Sequence[torch.Generator] | None) -> None:
    if noise.dim() != 4 or not noise.is_floating_point():
        raise ValueError(f"noise [B, C, H, W] of floats was expected, got {list(noise.shape)} {noise.dtype}")
    if steps < 1 or steps != int(steps):
        raise ValueError(f"steps must be a whole number, at least 1; got {steps}")
    if generators is not None:
        given = 1 if isinstance(generators, torch.Generator) else len(generators)
        if isinstance(generators, torch.Generator) or given != noise.shape[0]:
            raise ValueError(f"generators: a list, one for each of the {noise.shape[0]} rows of noise; got {given}")


def _contexts(
    denoiser: Denoiser, rule: Guidance, x: Tensor, text: Texts | Context, uncond: Texts | Context | None
) -> Contexts:
    """Contexts of the text, of the unconditional text and of the weaker denoiser; None where not needed."""
    context = _context(denoiser, text, x, "text")
    if not rule.active:
        return Contexts(context)
    if rule.weaker is not None:
        if not isinstance(text, (Text, tuple)):
            raise ValueError("autoguidance encodes the text with both denoisers: give sample a Text, not a context")
        weaker = loaded(rule.weaker)
        assert weaker is not None
        return Contexts(context, weaker=_context(weaker, text, x, "text"))
    if uncond is None:
        raise ValueError("guidance needs `uncond`, the text of the unconditional branch (the empty prompt)")
    coherence = 0.0 if "coherence" in denoiser.supports else None
    return Contexts(context, _context(denoiser, uncond, x, "uncond", coherence))


def _context(
    denoiser: Denoiser, text: Texts | Context, x: Tensor, name: str, coherence: float | None = None
) -> Context:
    """The context of a text, encoded once; one row is shared by all rows of x."""
    if not isinstance(text, (Text, tuple)):
        return text
    rows, count = x.shape[0], text_rows(text)
    if count not in (1, rows):
        raise ValueError(f"{name} has {count} rows, noise has {rows}: give as many, or one for all")
    context = denoiser.encode_text(text) if coherence is None else denoiser.encode_text(text, coherence=coherence)
    return context if count == rows else context.rows(torch.zeros(rows, dtype=torch.int64, device=x.device))


def _normal(generators: Sequence[torch.Generator] | None) -> Normal:
    """Standard normal numbers like x, each row from its own generator (on that generator's device)."""

    def normal(x: Tensor) -> Tensor:
        if generators is None:
            return torch.randn_like(x)
        shape, dtype = x.shape[1:], x.dtype
        rows = [
            torch.randn(shape, generator=generator, device=generator.device, dtype=dtype) for generator in generators
        ]
        return torch.stack([row.to(x.device, non_blocking=True) for row in rows])

    return normal
