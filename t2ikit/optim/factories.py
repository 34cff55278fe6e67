"""What an experiment names: an optimizer that is built over a network, with its parameter groups."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from t2ikit.optim.lamb import LAMB, check_options
from t2ikit.optim.muon import MuonAdam, check_momentum


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
        scale: factors of the learning rate by part of the denoiser, such as {core: 0.1}.

    Raises:
        ValueError: a value out of range.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    scale: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.lr, self.betas, self.eps, self.weight_decay)
        _check_scale(self.scale)

    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer."""
        groups = scaled_groups(module, parameter_groups(module, self.weight_decay), self.lr, self.scale)
        return LAMB(groups, lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass
class AdamW(OptimizerFactory):
    """``torch.optim.AdamW`` over :func:`matrix_groups`.

    Attributes:
        lr: base learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of matrices.
        scale: factors of the learning rate by part of the denoiser, such as {core: 0.1}.

    Raises:
        ValueError: a value out of range.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.01
    scale: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.lr, self.betas, self.eps, self.weight_decay)
        _check_scale(self.scale)

    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer."""
        # Not fused: Lightning refuses to clip gradients of an optimizer that unscales them itself.
        groups = scaled_groups(module, matrix_groups(module, self.weight_decay), self.lr, self.scale)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass
class Muon(AdamW):
    """:class:`MuonAdam` over :func:`hidden_groups`: Muon for the matrices inside blocks, AdamW for the rest.

    Attributes:
        lr: base learning rate of both; one that suits AdamW suits.
        betas: decay of the two moments of AdamW.
        eps: added to the root of the second moment of AdamW.
        weight_decay: of matrices.
        scale: factors of the learning rate by part of the denoiser, such as {core: 0.1}.
        momentum: of Muon.

    Raises:
        ValueError: a value out of range.
    """

    momentum: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum(self.momentum)

    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer.

        Raises:
            ValueError: no trainable matrix inside a block.
        """
        groups = scaled_groups(module, hidden_groups(module, self.weight_decay), self.lr, self.scale)
        return MuonAdam(groups, lr=self.lr, momentum=self.momentum, betas=self.betas, eps=self.eps)


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


STACKED = {"qkv": 3, "kv": 2}
"""Projections that are stacked in the weight of a layer, by its name; others hold one."""


def hidden_groups(module: nn.Module, weight_decay: float = 0.01) -> list[dict[str, Any]]:
    """Groups of the trainable parameters as Muon takes them.

    First, one group for each number of stacked projections, the weights of linear layers inside the blocks of an
    ``nn.ModuleList``, without those called "modulation": {"params", "weight_decay", "parts"}. Then all else, such as
    embeddings, the first and the last layer, position tables, biases and norms, in the two groups of
    :func:`matrix_groups` with ``parts`` 0.

    Raises:
        ValueError: no trainable matrix inside a block.
    """
    hidden: dict[int, int] = {}
    for network in module.modules():
        for block in network if isinstance(network, nn.ModuleList) else ():
            for name, layer in block.named_modules():
                own = name.rpartition(".")[2]
                if name and isinstance(layer, nn.Linear) and own != "modulation":
                    stacked = STACKED.get(own, 1)
                    hidden[id(layer.weight)] = stacked if layer.out_features % stacked == 0 else 1
    trained = [p for p in module.parameters() if p.requires_grad and id(p) in hidden]
    if not trained:
        raise ValueError(
            "Muon is for matrices inside blocks (linear layers below an nn.ModuleList), and the network has none that "
            "is trained: set model.init_args.optimizer to t2ikit.optim.AdamW"
        )
    counts = sorted({hidden[id(p)] for p in trained})
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if hidden[id(p)] == parts], "weight_decay": weight_decay, "parts": parts}
        for parts in counts
    ]
    for group in matrix_groups(module, weight_decay):
        group["params"] = [p for p in group["params"] if id(p) not in hidden]
        groups.append({**group, "trust_ratio": False, "parts": 0})
    return groups


def scaled_groups(
    module: nn.Module, groups: list[dict[str, Any]], lr: float, scale: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The groups, with those of scaled parts as groups of their own behind them.

    Args:
        module: a network that names its ``parts`` by prefixes, as a denoiser does, or one that holds it.
        groups: of its trainable parameters.
        lr: base learning rate.
        scale: factors of it by part.

    Raises:
        ValueError: a name that is no part, or a part that is not trained.
    """
    if not scale:
        return groups
    parts = _trainable_parts(module)
    split = list(groups)
    for name, factor in scale.items():
        if name not in parts:
            raise ValueError(
                f"optimizer.scale: {name!r} is no part of the denoiser ({', '.join(parts) or 'it has none'})"
            )
        if not parts[name]:
            raise ValueError(f"optimizer.scale: the part {name} is not trained (model.init_args.trainable)")
        split = [{**group, "params": [p for p in group["params"] if id(p) not in parts[name]]} for group in split] + [
            {**group, "params": chosen, "lr": lr * factor}
            for group in groups
            if (chosen := [p for p in group["params"] if id(p) in parts[name]])
        ]
    return split


def _trainable_parts(module: nn.Module) -> dict[str, set[int]]:
    """Identities of the trainable parameters of every part that a network in ``module`` names."""
    found: dict[str, set[int]] = {}
    for network in module.modules():
        parts = getattr(network, "parts", None)
        for part, prefixes in parts.items() if isinstance(parts, Mapping) else ():
            chosen = (p for name, p in network.named_parameters() if p.requires_grad and name.startswith(prefixes))
            found.setdefault(part, set()).update(map(id, chosen))
    return found


def _check_scale(scale: Mapping[str, float]) -> None:
    for name, factor in scale.items():
        if not 0.0 <= factor < math.inf:
            raise ValueError(f"scale of {name} must be at least 0, and finite, got {factor}")


def _norm_parameters(module: nn.Module) -> set[int]:
    norms = [layer for layer in module.modules() if type(layer).__name__.endswith("Norm")]
    return {id(parameter) for norm in norms for parameter in norm.parameters()}


def _two_groups(decayed: list[Tensor], plain: list[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    return [
        {"params": decayed, "weight_decay": weight_decay, "trust_ratio": True},
        {"params": plain, "weight_decay": 0.0, "trust_ratio": False},
    ]
