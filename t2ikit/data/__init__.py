"""Stored records, the streams that train on them, and the data module that hands both to Lightning.

Names are imported when they are asked for: reading records needs no Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ikit.data.benchmark_prompts import DPGPrompts, GenEvalPrompts, PartiPrompts
    from t2ikit.data.coco_prompts import CocoCaptions
    from t2ikit.data.datamodule import DataModule
    from t2ikit.data.loaders import EvaluationLoader, PositionLoader
    from t2ikit.data.order import RecordOrder
    from t2ikit.data.prompts import CaptionPrompts, Prompt, PromptFile, PromptSource
    from t2ikit.data.question_prompts import DSGPrompts, TIFAPrompts
    from t2ikit.data.records import (
        Manifest,
        Record,
        RecordSet,
        RecordView,
        Tokens,
        damaged_files,
        quantise_tokens,
        write_set,
    )
    from t2ikit.data.shapes_detector import LargestColorShare, ShapesDetector
    from t2ikit.data.shapes_module import ShapesData
    from t2ikit.data.shapes_prompts import ShapesGenEvalPrompts
    from t2ikit.data.streams import EvaluationStream, GatedStream, TrainingStream

__all__ = [
    "CaptionPrompts",
    "CocoCaptions",
    "DPGPrompts",
    "DSGPrompts",
    "DataModule",
    "EvaluationLoader",
    "EvaluationStream",
    "GatedStream",
    "GenEvalPrompts",
    "LargestColorShare",
    "Manifest",
    "PartiPrompts",
    "PositionLoader",
    "Prompt",
    "PromptFile",
    "PromptSource",
    "Record",
    "RecordOrder",
    "RecordSet",
    "RecordView",
    "ShapesData",
    "ShapesDetector",
    "ShapesGenEvalPrompts",
    "TIFAPrompts",
    "Tokens",
    "TrainingStream",
    "damaged_files",
    "quantise_tokens",
    "write_set",
]

_MODULES = {
    "benchmark_prompts": ("DPGPrompts", "GenEvalPrompts", "PartiPrompts"),
    "coco_prompts": ("CocoCaptions",),
    "question_prompts": ("DSGPrompts", "TIFAPrompts"),
    "datamodule": ("DataModule",),
    "prompts": ("CaptionPrompts", "Prompt", "PromptFile", "PromptSource"),
    "records": (
        "Manifest",
        "Record",
        "RecordSet",
        "RecordView",
        "Tokens",
        "damaged_files",
        "quantise_tokens",
        "write_set",
    ),
    "loaders": ("EvaluationLoader", "PositionLoader"),
    "shapes_detector": ("LargestColorShare", "ShapesDetector"),
    "shapes_module": ("ShapesData",),
    "shapes_prompts": ("ShapesGenEvalPrompts",),
    "order": ("RecordOrder",),
    "streams": ("EvaluationStream", "GatedStream", "TrainingStream"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"t2ikit.data.{module}"), name)
    raise AttributeError(f"module 't2ikit.data' has no attribute '{name}'")
