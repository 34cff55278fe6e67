"""The embedded laboratory: rendered shapes with captions, a detector and GenEval's prompts in its words."""

from t2ikit.shapes.classifier import AskedProbability
from t2ikit.shapes.colors_and_places import ColorsAndPlaces
from t2ikit.shapes.detector import LargestColorShare, ShapesDetector
from t2ikit.shapes.module import ShapesData
from t2ikit.shapes.prompts import ShapesGenEvalPrompts

__all__ = [
    "AskedProbability",
    "ColorsAndPlaces",
    "LargestColorShare",
    "ShapesData",
    "ShapesDetector",
    "ShapesGenEvalPrompts",
]
