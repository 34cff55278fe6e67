"""Prompts -> images -> metrics -> scores, with no Trainer: what a snapshot of a run and ``t2ikit evaluate`` both do."""

from t2ikit.evaluation.caption_prompts import CaptionPrompts
from t2ikit.evaluation.class_prompts import ClassPrompts
from t2ikit.evaluation.evaluation import MODEL_FIELDS, Evaluated, Evaluation, is_of_images
from t2ikit.evaluation.overfitting import Overfitting
from t2ikit.evaluation.search import Search

__all__ = [
    "MODEL_FIELDS",
    "CaptionPrompts",
    "ClassPrompts",
    "Evaluated",
    "Evaluation",
    "Overfitting",
    "Search",
    "is_of_images",
]
