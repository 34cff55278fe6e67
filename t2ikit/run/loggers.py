"""The loggers of a run, and the warnings of Lightning that it does not show."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from t2ikit.callbacks import MetricsCSV

# Warnings about what is intended: the module makes the batch, snapshots validate, a run counts steps, not epochs.
INTENDED = (
    "You have overridden `on_after_batch_transfer`",
    "You passed in a `val_dataloader` but have no `validation_step`",
    "The number of training batches",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


class TensorBoard(TensorBoardLogger):
    """Writes events only: what Lightning would put into hparams.yaml is in config.yaml."""

    def save(self) -> None:
        self.experiment.flush()


def loggers_of(folder: Path, step: int) -> list[Logger]:
    """TensorBoard and ``metrics.csv`` of a run folder.

    Args:
        folder: of the run.
        step: at which it resumes; TensorBoard hides the values of later steps.
    """
    purge = step + 1 if step else None
    board = TensorBoard(str(folder.parent), name="", version=folder.name, default_hp_metric=False, purge_step=purge)
    return [board, MetricsCSV(str(folder))]


def quiet() -> None:
    """Silences Lightning's advertisements and its warnings about what is intended."""
    for message in INTENDED:
        warnings.filterwarnings("ignore", message=f".*{message}")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_no_advertisement)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡", "TPU available"))
