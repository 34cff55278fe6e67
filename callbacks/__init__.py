"""What happens around a training step. Callbacks decide when; the mathematics are elsewhere."""

from t2ikit.callbacks.augmentation import AugmentationCallback, CutMix, MixedSet
from t2ikit.callbacks.checkpoint import Checkpoint
from t2ikit.callbacks.checkpoint_files import CheckpointFiles
from t2ikit.callbacks.crop import Crop
from t2ikit.callbacks.ema import EMA
from t2ikit.callbacks.guard import NonFiniteGuard
from t2ikit.callbacks.metrics_csv import MetricsCSV
from t2ikit.callbacks.progress import StepProgress
from t2ikit.callbacks.score_table import ScoreTable
from t2ikit.callbacks.snapshot import Snapshot
from t2ikit.callbacks.step_records import StepRecords
from t2ikit.callbacks.text_length import ByTextLength
from t2ikit.callbacks.training_log import TrainingLog

__all__ = [
    "EMA",
    "AugmentationCallback",
    "ByTextLength",
    "Checkpoint",
    "CheckpointFiles",
    "Crop",
    "CutMix",
    "MetricsCSV",
    "MixedSet",
    "NonFiniteGuard",
    "ScoreTable",
    "Snapshot",
    "StepProgress",
    "StepRecords",
    "TrainingLog",
]
