"""Records on disk: one run of bytes a sample in LitData's chunk format, with a manifest that knows every hash.

Names are imported when they are asked for: a manifest needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ikit.records.manifest import Manifest
    from t2ikit.records.record import Record, RecordView, Tokens, quantise_tokens
    from t2ikit.records.record_set import RecordSet, damaged_files
    from t2ikit.records.writing import write_set

_MODULES = {
    "Manifest": "manifest",
    "Record": "record",
    "RecordSet": "record_set",
    "RecordView": "record",
    "Tokens": "record",
    "damaged_files": "record_set",
    "quantise_tokens": "record",
    "write_set": "writing",
}

__all__ = [
    "Manifest",
    "Record",
    "RecordSet",
    "RecordView",
    "Tokens",
    "damaged_files",
    "quantise_tokens",
    "write_set",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"t2ikit.records.{_MODULES[name]}"), name)
    raise AttributeError(f"module 't2ikit.records' has no attribute '{name}'")
