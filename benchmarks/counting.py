"""Deterministic counts of a piece of work: dispatched operations, host syncs, FLOPs, bytes that autograd keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_SYNCS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique_dim", "masked_select"}


@dataclass(frozen=True)
class Operations:
    """What the dispatcher saw.

    Attributes:
        total: operations; views, which rename memory and launch nothing, are left out.
        syncs: those that make the host wait for the device.
    """

    total: int
    syncs: int


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.total += not (func.is_view or name == "_unsafe_view")
        self.syncs += name in _SYNCS
        return func(*args, **(kwargs or {}))


def operations(work: Callable[[], object]) -> Operations:
    """Operations that reach the dispatcher while ``work`` runs."""
    with _Counter() as counter:
        work()
    return Operations(counter.total, counter.syncs)


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and attention; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def kept_bytes(work: Callable[[], object], module: nn.Module) -> int:
    """Largest number of bytes that autograd keeps for the backward pass of ``work``, the weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(kept.values())


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The module without storage: its operations can be counted in no time."""
    with torch.device("meta"):
        return build()
