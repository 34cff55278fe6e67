"""How a Trainer writes and reads checkpoints, whichever callback asks for them: ours, or one of Lightning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO

from t2ikit.checkpoints.saving import fault_of, is_complete, step_in_name, write_checkpoint


class CheckpointFiles(TorchCheckpointIO):
    """Writes a file beside its place, streamed, with its hash, synced and renamed; compares the hash at loading.

    A run does not end with the disk: what cannot be written is warned of, and until a later one is written the older
    ones are not removed. A run sets this plugin by itself; ``Trainer(plugins=[CheckpointFiles()])`` does elsewhere.

    Attributes:
        failure: why the last checkpoint was not written; None if it was.
    """

    def __init__(self) -> None:
        self.failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a file; to the address of a server (``s3://``) as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            write_checkpoint(checkpoint, path)
        except OSError as error:
            self.failure = f"the checkpoint {path} could not be written ({error.strerror})"
            older = max(filter(is_complete, path.parent.glob("*.ckpt")), key=step_in_name, default=None)
            newest = "there is none yet" if older is None else f"the newest one stays {older}"
            # Of this line: a warning of its caller, which is Lightning, is not shown.
            warnings.warn(f"{self.failure}: {newest}. The run goes on: make room on that disk", stacklevel=1)
        else:
            self.failure = None

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The content of a checkpoint.

        Raises:
            ValueError: the file is damaged, or is of another step than its name says.
        """
        fault = fault_of(Path(path)) if "://" not in str(path) and Path(path).is_file() else None
        if fault is not None:
            raise ValueError(f"checkpoint {path}: {fault}")
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a file that a newer one replaces; it stays if the newer one could not be written."""
        if self.failure is None:
            super().remove_checkpoint(path)


def failure_of(trainer: L.Trainer) -> str | None:
    """Why the last checkpoint of this process was not written, if it was not."""
    files = trainer.strategy.checkpoint_io
    return getattr(getattr(files, "checkpoint_io", files), "failure", None)
