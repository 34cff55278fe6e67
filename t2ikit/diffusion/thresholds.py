"""Bounds on a sampler's estimate of x_0, [B, C, H, W].

At t near 1 the estimate divides by a tiny alpha, so that an unbounded one explodes when the network predicts noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from t2ikit.diffusion.processes import Threshold


def clamp(x0: Tensor, bound: float) -> Tensor:
    """Cut to [-bound, bound]; [B, C, H, W] -> the same."""
    return x0.clamp(-bound, bound)


def dynamic(x0: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, "Imagen", section 2.3): each sample is cut and scaled to [-1, 1].

    With s = max(1, quantile of abs(x_0)) over the sample, x_0 is cut to [-s, s] and divided by s.
    """
    return _scaled(x0, quantile, 1)


def per_channel(x0: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding with one s for each channel of each sample; [B, C, H, W] -> the same."""
    return _scaled(x0, quantile, 2)


def threshold_function(threshold: Threshold) -> Callable[[Tensor], Tensor] | None:
    """The bound that a ("clamp", c), ("dynamic", q), ("per_channel", q) or "none" stands for; None for "none".

    Raises:
        ValueError: an unknown kind, or a value out of range.
    """
    if threshold == "none":
        return None
    if not isinstance(threshold, (tuple, list)) or len(threshold) != 2 or isinstance(threshold[1], str):
        raise ValueError(
            f"threshold must be 'none', ('clamp', c), ('dynamic', q) or ('per_channel', q); got {threshold!r}"
        )
    kind, value = threshold
    if kind == "clamp" and value > 0.0:
        return partial(clamp, bound=float(value))
    if kind == "dynamic" and 0.0 < value <= 1.0:
        return partial(dynamic, quantile=float(value))
    if kind == "per_channel" and 0.0 < value <= 1.0:
        return partial(per_channel, quantile=float(value))
    raise ValueError(
        f"threshold {threshold!r}: give 'clamp' a bound above 0, 'dynamic' or 'per_channel' a quantile in (0, 1]"
    )


def _scaled(x0: Tensor, quantile: float, leading: int) -> Tensor:
    bound = x0.abs().flatten(leading).quantile(quantile, dim=-1).clamp(min=1.0)
    bound = bound.reshape(*bound.shape, *(1,) * (x0.dim() - leading))
    return x0.clamp(-bound, bound) / bound
