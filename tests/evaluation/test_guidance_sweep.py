"""Scores side by side: over the guidance weight, and beside other scores."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from t2ikit.evaluation.comparison import find_scores, score_table
from t2ikit.evaluation.guidance_sweep import best, columns, curves, plot_sweep, sweep_table, write_csv
from t2ikit.metrics.fingerprint import Fingerprint, Score, UnlikeFingerprints, read_scores, write_scores

PRINT = Fingerprint(sampler="ddim", steps=50, guidance=2.0, seeds="0", num_images=64)


def scores(weight: float, steps: int = 50) -> list[Score]:
    """As of a model whose FID is best at w = 2, and whose CLIPScore rises."""
    conditions = replace(PRINT, guidance=weight, steps=steps)
    return [
        Score("dinov2/frechet_distance", 5 + (weight - 2) ** 2, conditions),
        Score("clip_score", 20 + weight, conditions, standard_error=0.25),
        Score("overall_se", 0.1, conditions),
    ]


SWEEP = {weight: scores(weight) for weight in (0.0, 1.0, 2.0, 4.0)}
LESS = {"dinov2/frechet_distance"}


def printed(table: object) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_what_a_search_reached_is_no_curve() -> None:
    searched = {
        weight: [*scores(weight), Score("selection/bright", 7 + weight, replace(PRINT, guidance=weight))]
        for weight in (0.0, 4.0)
    }
    assert columns(searched)[-1] == "selection/bright" and curves(searched) == ["dinov2/frechet_distance", "clip_score"]
    text = printed(sweep_table(searched, LESS))
    assert "11" in text and "11*" not in text


def test_a_sweep_as_table_csv_and_figure(tmp_path: Path) -> None:
    assert columns(SWEEP) == ["dinov2/frechet_distance", "clip_score", "overall_se"]
    assert curves(SWEEP) == ["dinov2/frechet_distance", "clip_score"]
    assert best([9, 6, 5, 9], less_is_better=True) == 2 and best([20, 21, 22, 24], less_is_better=False) == 3
    assert best([3, 3, 3], less_is_better=False) is None
    text = printed(sweep_table(SWEEP, LESS))
    assert "5*" in text and "24*" in text and "w = 4" in text and "0.1*" not in text
    write_csv(tmp_path / "scores.csv", SWEEP)
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [float(row["guidance"]) for row in rows] == [0, 1, 2, 4]
    assert [float(row["dinov2/frechet_distance"]) for row in rows] == [9, 6, 5, 9]
    assert {row["clip_score_standard_error"] for row in rows} == {"0.25"}
    plot_sweep(tmp_path / "guidance.png", SWEEP, "a title", LESS)
    with Image.open(tmp_path / "guidance.png") as figure:
        pixels = np.asarray(figure.convert("RGB")).astype(int)
    assert pixels.shape[1] > 500 and not list(tmp_path.glob("*.partial"))
    red = (abs(pixels - (214, 39, 40)).sum(2) < 30).any(0)  # the mark of the best, in each panel
    assert red[: len(red) // 2].any() and red[len(red) // 2 :].any()


def test_a_sweep_of_unlike_settings_is_refused() -> None:
    with pytest.raises(UnlikeFingerprints, match="they differ in steps: 50 and 25"):
        columns({0.0: scores(0.0), 1.0: scores(1.0, steps=25)})


def test_scores_beside_others(tmp_path: Path) -> None:
    ours, theirs = ({score.name: score for score in scores(weight)} for weight in (2.0, 4.0))
    assert "± 0.25" in printed(score_table("t", ours)) and "difference" not in printed(score_table("t", ours))
    with pytest.raises(UnlikeFingerprints, match="guidance: 2.0 and 4.0"):
        score_table("t", ours, theirs)
    text = printed(score_table("t", ours, theirs, ("guidance",)))
    assert "-4" in text and "-2" in text
    with pytest.raises(ValueError, match="no score in common"):
        score_table("t", ours, {"other": ours["clip_score"]})


def test_scores_are_found_in_runs_and_evaluations(tmp_path: Path) -> None:
    for step, weight in ((10, 1.0), (20, 2.0)):
        write_scores(tmp_path / "run" / "samples" / "val" / "scores" / f"step-{step:08d}", scores(weight))
    write_scores(tmp_path / "done" / "scores", scores(4.0))
    assert find_scores(tmp_path / "run", "val", "--compare").scores["clip_score"].value == 22
    for folder in ("run/samples/val", "run/samples/val/scores"):
        assert find_scores(tmp_path / folder, "val", "--compare").scores["clip_score"].value == 22
    assert find_scores(tmp_path / "done", "val", "--compare").scores["clip_score"].value == 24
    with pytest.raises(FileNotFoundError, match="--compare .*run: no scores of other in it"):
        find_scores(tmp_path / "run", "other", "--compare")


def test_score_files_of_a_metric_that_is_gone_are_removed(tmp_path: Path) -> None:
    write_scores(tmp_path, scores(1.0))
    assert (tmp_path / "dinov2" / "frechet_distance.json").is_file()
    write_scores(tmp_path, scores(2.0)[1:])
    found = read_scores(tmp_path)
    assert list(found) == ["clip_score", "overall_se"] and found["clip_score"].standard_error == 0.25
