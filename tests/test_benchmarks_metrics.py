"""The benchmarks of metrics compare equal things."""

from __future__ import annotations

import pytest

from benchmarks import metrics
from benchmarks.evaluation_memory import evaluate_here
from t2ikit.metrics.features.pixels import PIPELINES
from t2ikit.metrics.geneval.rules import judge


def test_prdc_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prdc")
    alone = metrics.run_prdc("ours", 300, 8)  # as it is measured: in a process of its own
    monkeypatch.setattr(metrics, "run_prdc", metrics.prdc_here)
    time, memory = metrics.compare_prdc(300, 8, repeats=1)
    assert alone.scores == metrics.prdc_here("ours", 300, 8, 1).scores
    assert time.value > 0 and time.reference is not None and time.reference > 0
    assert float(time.note.split()[3]) < 1e-3
    assert memory.value >= 0 and alone.total_megabytes > alone.megabytes


def test_frechet_of_both_sides() -> None:
    (row,) = metrics.compare_frechet(64, repeats=1)
    assert row.reference is not None and float(row.note.split()[-1]) < 1e-6


@pytest.mark.long
def test_every_pipeline_is_timed() -> None:
    assert [row.what.split()[2].rstrip(",") for row in metrics.throughput(1, 64, repeats=1)] == list(PIPELINES)


def test_geneval_has_the_size_of_the_benchmark() -> None:
    metadata, detections = metrics.verdicts()
    assert len(metadata) == len(detections) == 2212
    answers = {judge(entry, found)[0] for entry, found in zip(metadata, detections, strict=True)}
    assert answers == {True, False}


def test_an_evaluation_is_measured_whole() -> None:
    found = evaluate_here(20, 16, 20)
    assert found["peak"] > 2**20 and found["frechet_distance"] > 0 and 0 <= found["coverage"] <= 1
