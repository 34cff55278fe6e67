"""Small class folders, whose classes differ in colour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from class_pictures import WNIDS, fill

from t2ikit.records import Record, write_set
from t2ikit.records.manifest import Manifest


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with ``train`` (8 pictures a class), ``test`` (4) and ``classes.tsv``."""
    fill(tmp_path / "train", 8, 0)
    fill(tmp_path / "test", 4, 1)
    (tmp_path / "classes.tsv").write_text("".join(f"{wnid}\tclass {label}\n" for label, wnid in enumerate(WNIDS)))
    return tmp_path


@pytest.fixture
def options(folders: Path) -> Callable[..., dict[str, object]]:
    """Arguments of small ClassFolders over ``folders``, with others over them."""

    def of(**others: object) -> dict[str, object]:
        small = {
            "train": str(folders / "train"),
            "tests": {"real": str(folders / "test")},
            "classes": str(folders / "classes.tsv"),
            "size": 16,
            "batch_size": 7,
            "num_workers": 0,
            "filter_size": 16,
        }
        return {**small, **others}

    return of


@pytest.fixture
def write() -> Callable[..., Path]:
    """Writes a prepared set of pixels without texts: a record for each ``class_id``."""

    def of(folder: Path, class_ids: list[int], with_class: bool = True) -> Path:
        numbers = np.random.default_rng(0)
        records = [
            Record(
                {"image": numbers.integers(0, 256, (3, 20, 18), dtype=np.uint8)},
                (),
                {"class_id": class_id} if with_class else {},
            )
            for class_id in class_ids
        ]
        write_set(folder, records, Manifest(kind="pixels", image_shape=(3, 20, 18)))
        return folder

    return of
