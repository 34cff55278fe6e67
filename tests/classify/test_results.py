"""The file of a classifier's scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2ikit.classify.results import FILE, ClassificationResults, TestScore, read_results, write_results


def test_results_are_read_as_written(tmp_path: Path) -> None:
    score = TestScore(0.75, 4, {"n01443537": (2, 2), "n01629819": (1, 2)})
    results = ClassificationResults(
        {"seed": 0}, {"rule": "last", "step": 8, "epoch": 2}, {"real": score}, {"loss": 1.0}
    )
    assert write_results(tmp_path, results) == tmp_path / FILE
    assert read_results(tmp_path) == results


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has not ended"):
        read_results(tmp_path)
    (tmp_path / FILE).write_text('{"tests": {"real": {}}}')
    with pytest.raises(ValueError, match="no scores of a classifier"):
        read_results(tmp_path)
