"""What an experiment names: an optimizer with its parameter groups, to be built over a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from t2ikit.optim.groups import matrix_groups, parameter_groups
from t2ikit.optim.lamb import LAMB, check_options


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
        check_options(self.lr, self.betas, self.eps, self.weight_decay)

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
        check_options(self.lr, self.betas, self.eps, self.weight_decay)

    def build(self, module: nn.Module) -> Optimizer:
        """The optimizer."""
        # Not fused: Lightning refuses to clip gradients of an optimizer that unscales them itself.
        groups = matrix_groups(module, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)
