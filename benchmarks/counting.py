"""Deterministic counts of a piece of work: dispatched operations, host syncs, bytes that autograd keeps.

FLOPs and the peak of living bytes are counted by ``t2ikit.run.counting``, as `t2ikit plan` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts aten operations by name while it is active. Views launch nothing and are left out."""

    SYNCS = frozenset(
        {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        # Marks of profilers are no aten operations.
        if func.namespace == "aten" and not func.is_view and name != "_unsafe_view":
            self.names[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.names.values())

    @property
    def syncs(self) -> int:
        """Those that make the host wait for the device."""
        return sum(count for name, count in self.names.items() if name in self.SYNCS)


def operations(work: Callable[[], object]) -> Operations:
    """Operations that reach the dispatcher while ``work`` runs."""
    with Operations() as counted:
        work()
    return counted


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
