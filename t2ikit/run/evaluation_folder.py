"""The folder of an evaluation: one process at a time, and of one thing; its images until they are scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from t2ikit import ranks
from t2ikit.config.errors import ConfigError
from t2ikit.files import parse_json, write_whole
from t2ikit.lock import LOCK, SAMPLES, lock, unlock

ASKED = "asked.json"
"""Of which pictures and which experiment the scores are; not written for samples by the checkpoint's own experiment."""

UNFINISHED = "images.sampling"
"""Folder of the images of an evaluation that is not finished."""


@dataclass(frozen=True)
class Asked:
    """Where the scores of an evaluation come from, as absolute paths.

    Attributes:
        images: folder of the pictures; None for those of a checkpoint.
        experiment: that the command line names; None for the checkpoint's own.
    """

    images: str | None
    experiment: str | None

    def __str__(self) -> str:
        return " ".join(
            [
                "scores of samples" if self.images is None else f"scores of {self.images}",
                "by its own experiment" if self.experiment is None else f"by {self.experiment}",
            ]
        )


OWN = Asked(None, None)


@contextmanager
def alone_in(folder: Path, asked: Asked) -> Iterator[None]:
    """No other process samples into the folder meanwhile: we would score its images as ours.

    Raises:
        ConfigError: another process does, the folder holds scores of something else, or it cannot be made.
    """
    ranks.from_first(lambda: _take(folder, asked))
    try:
        yield
        if asked != OWN:
            ranks.from_first(lambda: write_whole(folder / ASKED, json.dumps(asdict(asked), indent=2) + "\n"))
    finally:
        unlock(folder)
        if ranks.this() == 0 and [path.name for path in folder.iterdir()] == [LOCK]:  # refused: nothing stays
            shutil.rmtree(folder)


def _take(folder: Path, asked: Asked) -> None:
    if (folder / ASKED).is_file():
        before = Asked(**parse_json((folder / ASKED).read_text(encoding="utf-8")))
        if before != asked:
            raise ConfigError(f"{folder} holds {before}; these would be {asked}: give another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: {error.strerror}: choose another folder") from error
    lock(folder, SAMPLES)


def remove_unfinished(where: Path) -> None:
    """Removes the images with which an interrupted call would continue: every score is written."""
    if ranks.this() == 0:
        for unfinished in where.rglob(UNFINISHED):
            shutil.rmtree(unfinished)
