"""TensorBoard in a run folder, and the warnings of Lightning that it does not show."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

# Warnings about what is intended: the module makes the batch, snapshots validate, a run counts steps, not epochs.
INTENDED = (
    "You have overridden `on_after_batch_transfer`",
    "You passed in a `val_dataloader` but have no `validation_step`",
    "The number of training batches",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


class TensorBoard(TensorBoardLogger):
    """TensorBoard's events in the run folder, beside everything else of the run.

    Args:
        folder: of the run.
        step: at which it resumes; values of later steps are hidden.
    """

    def __init__(self, folder: str, step: int = 0) -> None:
        path, purge = Path(folder), step + 1 if step else None
        super().__init__(str(path.parent), name="", version=path.name, default_hp_metric=False, purge_step=purge)
        self._full = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As Lightning's; a full disk does not end the run, and another file begins when there is room again."""
        self._try(lambda: super(TensorBoard, self).log_metrics(metrics, step))

    def save(self) -> None:
        """Events only: what Lightning would put into hparams.yaml is in config.yaml.

        A file begins with the first value: one of a resume that is refused would hide the values after its step.
        """
        if self._experiment is not None:
            self._try(self.experiment.flush)

    def finalize(self, status: str) -> None:
        """Closes the file."""
        if self._experiment is not None:
            self._try(lambda: super(TensorBoard, self).finalize(status))

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self._experiment = None  # its thread has ended
            if not self._full:
                warnings.warn(f"TensorBoard misses values ({error.strerror}): metrics.csv will hold them", stacklevel=1)
            self._full = True
        else:
            self._full = False


def quiet() -> None:
    """Silences Lightning's advertisements and its warnings about what is intended."""
    for message in INTENDED:
        warnings.filterwarnings("ignore", message=f".*{message}")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_no_advertisement)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡", "TPU available"))
