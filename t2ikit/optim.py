"""Optimisers, parameter groups and learning-rate schedules.

Legend: a parameter p of any shape has gradient g, moments m and v of its shape; norms are over a whole tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq", "master")


class LAMB(Optimizer):
    """LAMB (You et al. 2020, "Large batch optimization for deep learning", Algorithm 2), by multi-tensor kernels.

    With bias-corrected moments, u = m / (sqrt(v) + eps) + weight_decay p, and p falls by lr r u. The trust ratio r is
    |p| / |u|, 1 where either norm is 0; groups with ``trust_ratio=False`` take r = 1, which is Adam. No clipping.

    No step waits for the device: the trust ratios stay there. Moments are fp32 for 16-bit parameters, which also get an
    fp32 master copy, since steps of 1e-3 of a weight would be lost to rounding.

    Args:
        params: parameters, or groups such as :func:`parameter_groups` returns.
        lr: learning rate.
        betas: decay of m and of v.
        eps: added to sqrt(v).
        weight_decay: of groups that do not say.
        trust_ratio: of groups that do not say.

    Raises:
        ValueError: a value out of range; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        trust_ratio: bool = True,
    ) -> None:
        _check_options(lr, betas, eps, weight_decay)
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "trust_ratio": trust_ratio,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns what ``closure`` returned.

        Raises:
            RuntimeError: a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but the moments keep their fp32 where torch would cast them to a 16-bit parameter's dtype."""
        super().load_state_dict(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, index in zip(group["params"], saved["params"], strict=True):
                for name in MOMENTS:
                    if name in (stored := state_dict["state"].get(index, {})):
                        self.state[p][name] = stored[name].to(p.device, _state_dtype(p), copy=True)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        states = [self._state(p) for p in params]
        for state in states:
            state["step"] += 1
        weights = [state.get("master", p) for p, state in zip(params, states, strict=True)]
        grads = [p.grad.to(weight.dtype) for p, weight in zip(params, weights, strict=True) if p.grad is not None]
        first, second = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]

        torch._foreach_lerp_(first, grads, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1.0 - beta2)
        denominators = torch._foreach_sqrt(second)
        torch._foreach_div_(denominators, [math.sqrt(1.0 - beta2 ** state["step"]) for state in states])
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(first, denominators)
        torch._foreach_div_(updates, [1.0 - beta1 ** state["step"] for state in states])
        if group["weight_decay"] != 0.0:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["trust_ratio"]:
            steps = (-group["lr"] * _trust_ratios(weights, list(updates))).unbind()
            torch._foreach_addcmul_(weights, updates, steps)
        else:
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
        low = [index for index, state in enumerate(states) if "master" in state]
        if low:
            torch._foreach_copy_([params[index] for index in low], [weights[index] for index in low])

    def _state(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            if p.grad is not None and p.grad.is_sparse:
                raise RuntimeError("LAMB takes dense gradients only")
            dtype = _state_dtype(p)
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype)
            if p.dtype != dtype:
                state["master"] = p.detach().to(dtype)
        return state


def _trust_ratios(weights: list[Tensor], updates: list[Tensor]) -> Tensor:
    """|p| / |u| of each of n tensors, 1 where either is 0; [n] on the device."""
    weight_norms = torch.stack(torch._foreach_norm(weights))
    update_norms = torch.stack(torch._foreach_norm(updates))
    adapted = (weight_norms > 0.0) & (update_norms > 0.0)
    return torch.where(adapted, weight_norms / update_norms, 1.0)


def parameter_groups(module: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters, as LAMB takes them.

    The first holds whatever is neither inside a norm layer nor has "bias" in its name, so also position tables, learned
    tokens and LayerScale: decayed, with trust ratio. The second holds the rest: neither.

    Args:
        module: a network. A layer is a norm when its class is called "...Norm".
        weight_decay: of the first group.

    Returns:
        [{"params", "weight_decay", "trust_ratio": True}, {"params", "weight_decay": 0.0, "trust_ratio": False}].
    """
    normed = _norm_parameters(module)
    adapted: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if "bias" in name or id(parameter) in normed else adapted).append(parameter)
    return _two_groups(adapted, plain, weight_decay)


def matrix_groups(module: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters, as AdamW takes them: tensors of two or more axes are decayed.

    Vectors (biases, norms, LayerScale) are not, nor is what :func:`parameter_groups` puts in its second group.
    """
    adapted, plain = (group["params"] for group in parameter_groups(module))
    matrices = [p for p in adapted if p.dim() >= 2]
    return _two_groups(matrices, [p for p in adapted if p.dim() < 2] + plain, weight_decay)


def lr_factor(step: int, warmup: int, total: int, fraction: float = 0.7) -> float:
    """Linear warm-up, then a cosine that stops at ``fraction`` of its half wave.

    k / warmup up to step k = warmup; then (1 + cos(fraction pi (k - warmup) / (total - warmup))) / 2, which ends at
    0.206 for a fraction of 0.7.

    Args:
        step: number of the optimizer step, 1 for the first (0 counts as 1).
        warmup: steps of warm-up; 0 is none.
        total: steps of the run; the factor stays at its last value beyond.
        fraction: part of the half wave that is used.
    """
    k = max(step, 1)
    if k < warmup:
        return k / warmup
    progress = min((k - warmup) / (total - warmup), 1.0) if total > warmup else 0.0
    return 0.5 * (1.0 + math.cos(fraction * math.pi * progress))


class LearningRate(ABC):
    """A schedule of the learning rate, as a factor of the base rate."""

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """The factor at optimizer step ``step`` (1 is the first) of ``total_steps``."""


@dataclass
class WarmupCosine(LearningRate):
    """Linear warm-up, then a cosine that stops before its end; see :func:`lr_factor`.

    Attributes:
        warmup: optimizer steps of warm-up.
        fraction: part of the cosine's half wave that is used, in (0, 1].

    Raises:
        ValueError: a value out of range.
    """

    warmup: int = 5000
    fraction: float = 0.7

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)
        if not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"fraction is the part of the cosine that is used, in (0, 1]; got {self.fraction}")

    def factor(self, step: int, total_steps: int) -> float:
        """See :func:`lr_factor`."""
        return lr_factor(step, self.warmup, total_steps, self.fraction)


@dataclass
class Constant(LearningRate):
    """A constant rate, after a linear warm-up.

    Attributes:
        warmup: optimizer steps of warm-up; 0 is none.

    Raises:
        ValueError: a negative ``warmup``.
    """

    warmup: int = 0

    def __post_init__(self) -> None:
        _check_warmup(self.warmup)

    def factor(self, step: int, total_steps: int) -> float:
        """min(1, step / warmup)."""
        return min(1.0, max(step, 1) / self.warmup) if self.warmup else 1.0


class OptimizerFactory(ABC):
    """Builds the optimizer of a network, with its parameter groups."""

    @abstractmethod
    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer over the trainable parameters of ``module``."""


@dataclass
class Lamb(OptimizerFactory):
    """:class:`LAMB` over :func:`parameter_groups`.

    Attributes:
        lr: base learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of the first group.

    Raises:
        ValueError: a value out of range.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check_options(self.lr, self.betas, self.eps, self.weight_decay)

    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer."""
        return LAMB(parameter_groups(module, self.weight_decay), lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass
class AdamW(OptimizerFactory):
    """``torch.optim.AdamW`` over :func:`matrix_groups`.

    Attributes:
        lr: base learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of matrices.

    Raises:
        ValueError: a value out of range.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check_options(self.lr, self.betas, self.eps, self.weight_decay)

    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer."""
        # Not fused: Lightning refuses to clip gradients of an optimizer that unscales them itself.
        groups = matrix_groups(module, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


def _norm_parameters(module: nn.Module) -> set[int]:
    norms = [each for each in module.modules() if type(each).__name__.endswith("Norm")]
    return {id(parameter) for norm in norms for parameter in norm.parameters()}


def _two_groups(decayed: list[Tensor], plain: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": decayed, "weight_decay": weight_decay, "trust_ratio": True},
        {"params": plain, "weight_decay": 0.0, "trust_ratio": False},
    ]


def _state_dtype(p: Tensor) -> torch.dtype:
    return torch.promote_types(p.dtype, torch.float32)


def _check_options(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    if lr < 0.0:
        raise ValueError(f"lr must be at least 0, got {lr}")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas are two numbers in [0, 1), got {betas}")
    if not eps > 0.0:
        raise ValueError(f"eps must be above 0, got {eps}")
    if weight_decay < 0.0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")


def _check_warmup(warmup: int) -> None:
    if warmup < 0:
        raise ValueError(f"warmup counts optimizer steps, at least 0; got {warmup}")
