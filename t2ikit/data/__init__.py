"""The streams that a run trains on, and the data module that hands them to Lightning."""

from t2ikit.data.datamodule import DataModule
from t2ikit.data.gate import Gate
from t2ikit.data.loaders import EvaluationLoader, EvaluationStream, PositionLoader
from t2ikit.data.order import RecordOrder
from t2ikit.data.streams import TrainingStream

__all__ = [
    "DataModule",
    "EvaluationLoader",
    "EvaluationStream",
    "Gate",
    "PositionLoader",
    "RecordOrder",
    "TrainingStream",
]
