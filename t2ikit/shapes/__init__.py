"""The embedded laboratory: rendered shapes with captions, a detector and GenEval's prompts in its words.

Names are imported when they are asked for: rendering needs neither torch nor Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ikit.shapes.detector import LargestColorShare, ShapesDetector
    from t2ikit.shapes.module import ShapesData
    from t2ikit.shapes.prompts import ShapesGenEvalPrompts

_MODULES = {
    "LargestColorShare": "detector",
    "ShapesData": "module",
    "ShapesDetector": "detector",
    "ShapesGenEvalPrompts": "prompts",
}

__all__ = ["LargestColorShare", "ShapesData", "ShapesDetector", "ShapesGenEvalPrompts"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"t2ikit.shapes.{_MODULES[name]}"), name)
    raise AttributeError(f"module 't2ikit.shapes' has no attribute '{name}'")
