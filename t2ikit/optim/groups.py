"""Which parameters are decayed, and which have a trust ratio."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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


def _norm_parameters(module: nn.Module) -> set[int]:
    norms = [layer for layer in module.modules() if type(layer).__name__.endswith("Norm")]
    return {id(parameter) for norm in norms for parameter in norm.parameters()}


def _two_groups(decayed: list[Tensor], plain: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": decayed, "weight_decay": weight_decay, "trust_ratio": True},
        {"params": plain, "weight_decay": 0.0, "trust_ratio": False},
    ]
