"""The streams that a run trains on, and the data module that hands them to Lightning.

Names are imported when they are asked for: streams need no Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ikit.data.datamodule import DataModule
    from t2ikit.data.gate import Gate
    from t2ikit.data.loaders import EvaluationLoader, EvaluationStream, PositionLoader
    from t2ikit.data.order import RecordOrder
    from t2ikit.data.streams import TrainingStream

_MODULES = {
    "DataModule": "datamodule",
    "EvaluationLoader": "loaders",
    "EvaluationStream": "loaders",
    "Gate": "gate",
    "PositionLoader": "loaders",
    "RecordOrder": "order",
    "TrainingStream": "streams",
}

__all__ = [
    "DataModule",
    "EvaluationLoader",
    "EvaluationStream",
    "Gate",
    "PositionLoader",
    "RecordOrder",
    "TrainingStream",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"t2ikit.data.{_MODULES[name]}"), name)
    raise AttributeError(f"module 't2ikit.data' has no attribute '{name}'")
