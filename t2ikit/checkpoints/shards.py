"""A checkpoint in shards (torch.distributed.checkpoint): torch reads its plan and its plain values by pickle.

So they are looked at before torch gets them: a shard of a stranger may hold code, as any pickle may.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from t2ikit.checkpoints.foreign import reason_of

_PLAN = "*.metadata"
_PLAIN = {
    ("builtins", "set"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
}
_OF_PLANS = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")


class _Plan(pickle.Unpickler):
    """Reads the plan of shards, and nothing that is no part of one."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        if module in _OF_PLANS and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")


def fault_of_shards(folder: Path) -> str | None:
    """Why the shards of a checkpoint must not be read, or None."""
    try:
        for plan in sorted(folder.glob(_PLAN)):
            with plan.open("rb") as file:
                _look_at_values(folder, _Plan(file).load())
    except Exception as error:  # a damaged pickle raises whatever it likes
        return f"its shards cannot be read: {reason_of(error)}"
    return None


def _look_at_values(folder: Path, plan: Any) -> None:
    """Reads every value that is no tensor as torch will, but without running its code."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

    if not isinstance(plan, Metadata) or not isinstance(plan.storage_data, dict):
        raise ValueError("no plan of shards")
    for index, stored in plan.storage_data.items():
        if isinstance(plan.state_dict_metadata.get(index.fqn), BytesStorageMetadata):
            with (folder / stored.relative_path).open("rb") as file:
                file.seek(stored.offset)
                torch.load(io.BytesIO(file.read(stored.length)), weights_only=True)
