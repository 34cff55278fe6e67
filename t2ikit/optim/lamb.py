"""LAMB, by multi-tensor kernels.

Legend: a parameter p of any shape has gradient g, moments m and v of its shape; norms are over a whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from t2ikit.optim.precision import wide_dtype, widened, write_back

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
        check_options(lr, betas, eps, weight_decay)
        given = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "trust_ratio": trust_ratio}
        super().__init__(params, given)

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
                        self.state[p][name] = stored[name].to(p.device, wide_dtype(p), copy=True)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        states = [self._state(p) for p in params]
        for state in states:
            state["step"] += 1
        weights = [state.get("master", p) for p, state in zip(params, states, strict=True)]
        grads = widened([p.grad for p in params if p.grad is not None])
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
        write_back(params, weights)

    def _state(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            if p.grad is not None and p.grad.is_sparse:
                raise RuntimeError("LAMB takes dense gradients only")
            dtype = wide_dtype(p)
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


def check_options(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    """Refuses numbers that no Adam-like optimizer can run with.

    Raises:
        ValueError: names the number and its range.
    """
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"lr must be at least 0, and finite, got {lr}")
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"betas are two numbers in [0, 1), got {betas}")
    if not 0.0 < eps < math.inf:
        raise ValueError(f"eps must be above 0, and finite, got {eps}")
    if not 0.0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be at least 0, and finite, got {weight_decay}")
