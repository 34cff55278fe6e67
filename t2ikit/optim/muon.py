"""Muon for the matrices inside blocks, Adam for all else, as one optimizer.

Legend: a matrix W [out, in] has gradient G and momentum M of its shape; ``parts`` projections may be stacked in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from t2ikit.optim.lamb import LAMB
from t2ikit.optim.precision import wide_dtype, widened, write_back

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the iteration X <- a X + (b X X^T + c (X X^T)^2) X, chosen by Jordan et al. for speed: it takes singular
values to about 0.7 .. 1.2, not to 1."""

ITERATIONS = 5
AT_ONCE = 2**26
"""Numbers of the matrices that are orthogonalised together: the iteration holds four copies of them."""

RMS_OF_ADAM = 0.2


class MuonAdam(LAMB):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for groups with ``parts``, Adam elsewhere.

    M <- momentum M + (1 - momentum) G; the update is the orthogonal matrix nearest to momentum M + (1 - momentum) G
    (Nesterov), times 0.2 sqrt(max(out, in)), which is Adam's usual size (Liu et al. 2025, "Muon is scalable for LLM
    training", equation 4): so both take one learning rate. Weights are decayed by lr weight_decay W beside it. Groups
    without ``parts`` take the step of LAMB without trust ratio, which is Adam with decoupled decay.

    Matrices of one shape are orthogonalised together, in bf16 on a GPU and in fp32 elsewhere. No step waits for the
    device. Every device does all of it: matrices that are sharded are refused.

    Args:
        params: groups such as ``t2ikit.optim.Muon`` makes. ``parts`` of a group is the number of projections that are
            stacked in each of its matrices along the output, which are orthogonalised each for itself; 0 is Adam.
        lr: learning rate.
        momentum: decay of M.
        betas: decay of Adam's two moments.
        eps: added to the root of the second moment.

    Raises:
        ValueError: a value out of range, or ``parts`` that do not divide a matrix; the message names it.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        check_momentum(momentum)
        given = {"parts": 0, "momentum": momentum, "trust_ratio": False}
        super().__init__([{**given, **group} for group in params], lr, betas, eps, weight_decay=0.0, trust_ratio=False)
        for group in self.param_groups:
            check_momentum(group["momentum"])
            parts = group["parts"]
            if parts < 0 or (parts and any(len(p) % parts for p in group["params"])):
                shapes = [list(p.shape) for p in group["params"]]
                raise ValueError(f"parts is the number of projections stacked in each matrix; got {parts} of {shapes}")

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        if not group["parts"]:
            super()._update(group, params)
            return
        for p in params:
            if p.dim() != 2 or hasattr(p, "to_local"):
                raise RuntimeError(
                    f"Muon needs whole matrices, got {list(p.shape)} of a sharded one: set trainer.strategy to ddp, or "
                    "model.init_args.optimizer to t2ikit.optim.AdamW"
                )
        states = [self._momentum(p) for p in params]
        weights = [state.get("master", p) for p, state in zip(params, states, strict=True)]
        grads = widened([p.grad for p in params if p.grad is not None])
        momenta = [state["exp_avg"] for state in states]
        torch._foreach_lerp_(momenta, grads, 1.0 - group["momentum"])
        ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, _updates(list(ahead), group["parts"]), alpha=-group["lr"])
        write_back(params, weights)

    def _momentum(self, p: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            dtype = wide_dtype(p)
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
            if p.dtype != dtype:
                state["master"] = p.detach().to(dtype)
        return state


def _updates(matrices: list[Tensor], parts: int) -> list[Tensor]:
    """The matrices with their ``parts`` orthogonalised and scaled; those of one shape together, as far as they fit."""
    updates: list[Tensor] = list(matrices)
    shapes = [tuple(matrix.shape) for matrix in matrices]
    for out, width in dict.fromkeys(shapes):
        same = [index for index, shape in enumerate(shapes) if shape == (out, width)]
        scale = RMS_OF_ADAM * max(out // parts, width) ** 0.5
        count = max(1, AT_ONCE // (out * width))
        for together in (same[start : start + count] for start in range(0, len(same), count)):
            stacked = torch.stack([matrices[index] for index in together]).unflatten(1, (parts, out // parts))
            for index, update in zip(together, (scale * orthogonal(stacked)).flatten(1, 2), strict=True):
                updates[index] = update
    return updates


def orthogonal(matrices: Tensor) -> Tensor:
    """About U V^T for matrices U S V^T, by five steps of a Newton-Schulz iteration.

    Args:
        matrices: [..., out, in].

    Returns:
        The same shape and dtype. A matrix of zeros stays one.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x.reshape(-1, *x.shape[-2:])
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)  # the largest singular value is at most 1
    if x.device.type == "cuda":
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype).reshape(matrices.shape)


def check_momentum(momentum: float) -> None:
    """Refuses a momentum outside [0, 1).

    Raises:
        ValueError: names it.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {momentum}")
