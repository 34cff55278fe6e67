"""The paired bootstrap: closed forms, coverage, what it refuses; and two GenEval runs compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from t2ikit.metrics import statistics
from t2ikit.metrics.geneval.comparison import compare_results
from t2ikit.metrics.geneval.files import results_text
from t2ikit.metrics.statistics import Paired, paired_bootstrap


def runs(prompts: int, images: int, gain: float, seed: int) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Two runs [prompts, images] of 0 and 1: prompts differ, and the second is right more often by ``gain``."""
    random = np.random.default_rng(seed)
    ease = random.uniform(0.1, 0.9 - gain, size=(prompts, 1))
    return tuple((random.random((prompts, images)) < ease + g).astype(np.float64) for g in (0.0, gain))  # type: ignore[return-value]


def paired(first: NDArray[np.floating], second: NDArray[np.floating]) -> Paired:
    return Paired.of(list(first), list(second))


@pytest.mark.parametrize("gain", [0.0, 0.05, 0.1])
def test_near_the_normal_approximation(gain: float) -> None:
    strata, differences, squares = {}, [], []
    for number, size in enumerate((80, 99, 94)):
        first, second = runs(size, 4, gain, number)
        strata[f"task {number}"] = paired(first, second)
        clusters = (second - first).mean(axis=1)
        differences.append(clusters.mean())
        squares.append(clusters.var() / size)
    found = paired_bootstrap(strata, resamples=20_000)
    error = math.sqrt(sum(squares)) / 3
    overall = found["overall"]
    assert overall.difference == pytest.approx(np.mean(differences), abs=1e-12)
    assert overall.standard_error == pytest.approx(error, rel=0.02)
    for bound, side in ((overall.low, -1), (overall.high, 1)):
        assert bound == pytest.approx(overall.difference + side * 1.95996 * error, abs=0.08 * error)
    assert overall.p_value == pytest.approx(math.erfc(abs(overall.difference) / error / math.sqrt(2)), abs=0.01)
    for number in range(3):
        assert found[f"task {number}"].standard_error == pytest.approx(math.sqrt(squares[number]), rel=0.03)


def test_the_interval_covers_and_the_test_keeps_its_level() -> None:
    covered = rejected = 0
    for seed in range(300):
        # Two equal models: the true difference is zero.
        strata = {str(task): paired(*runs(60, 2, 0.0, 1000 * seed + task)) for task in range(2)}
        overall = paired_bootstrap(strata, resamples=400, seed=seed)["overall"]
        covered += overall.low <= 0 <= overall.high
        rejected += overall.p_value < 0.05
    # Binomial of 300 with 0.95: three standard deviations are 0.038.
    assert 0.91 <= covered / 300 <= 0.99
    assert rejected / 300 <= 0.09


def test_pairing_sees_what_unpaired_errors_hide() -> None:
    random = np.random.default_rng(0)
    first = np.repeat(random.random((100, 1)) < 0.5, 4, axis=1).astype(np.float64)
    second = np.maximum(first, random.random((100, 4)) < 0.1)
    found = paired_bootstrap({"task": paired(first, second)})["task"]
    assert found.low > 0 and found.p_value < 0.01
    assert found.standard_error < 0.5 * math.hypot(*(run.mean(axis=1).std() / 10 for run in (first, second)))


def test_clusters_of_unlike_size_weigh_by_their_images() -> None:
    found = paired_bootstrap({"task": Paired.of([[1.0, 1.0, 1.0], [0.0]], [[1.0], [0.0]])})["task"]
    assert (found.first, found.second, found.difference) == (0.75, 0.5, -0.25)
    assert (found.low, found.high) == (-0.25, 0.0)  # a prompt alone has no difference, both together -0.25


def test_seeded_and_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    strata = {"task": paired(*runs(30, 4, 0.1, 0))}
    whole = paired_bootstrap(strata, resamples=500)
    monkeypatch.setattr(statistics, "ENTRIES", 30 * 7)
    assert paired_bootstrap(strata, resamples=500) == whole
    assert paired_bootstrap(strata, resamples=500, seed=1) != whole


def test_equal_runs_differ_by_nothing() -> None:
    first, _ = runs(20, 4, 0.0, 3)
    found = paired_bootstrap({"task": paired(first, first)}, resamples=100)["overall"]
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert str(found).endswith("+0.0000 [+0.0000, +0.0000], p = 1.0000")


def test_what_cannot_be_resampled_is_refused() -> None:
    good = Paired.of([[1.0], [0.0]], [[1.0], [1.0]])
    for strata, options, message in (
        ({}, {}, "at least one stratum"),
        ({"overall": good}, {}, "none called 'overall'"),
        ({"task": Paired.of([[1.0]], [[1.0]])}, {}, "task: 1 prompt; a bootstrap needs two"),
        ({"task": Paired.of([[1.0], [0.0]], [[1.0]])}, {}, "do not pair"),
        ({"task": Paired.of([[math.nan], [0.0]], [[1.0], [1.0]])}, {}, "not finite"),
        ({"task": Paired.of([[], [0.0]], [[1.0], [1.0]])}, {}, "without any value"),
        ({"task": good}, {"confidence": 1.0}, "confidence"),
        ({"task": good}, {"resamples": 0}, "resamples"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_bootstrap(strata, **options)  # type: ignore[arg-type]


def results(path: Path, answers: dict[tuple[str, str], str], **metadata: Any) -> Path:
    rows = []
    for (tag, prompt), letters in answers.items():
        content = json.dumps({"tag": tag, "prompt": prompt, **metadata})
        for letter in letters:
            row = {"filename": "x", "tag": tag, "prompt": prompt, "correct": letter == "1", "reason": ""}
            rows.append({**row, "metadata": content, "details": "{}"})
    path.write_text(results_text(rows))
    return path


def test_two_results_files_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    answers = {("colors", f"c{i}"): "1100" for i in range(9)} | {("counting", f"n{i}"): "1000" for i in range(5)}
    better = {
        key: letters.replace("10", "11", 1) if key[1] in ("n0", "c0") else letters for key, letters in answers.items()
    }
    first = results(tmp_path / "a.jsonl", answers)
    second = results(tmp_path / "b.jsonl", dict(reversed(better.items())))  # the order of the rows does not matter
    found = compare_results(first, second, resamples=500)
    assert list(found) == ["colors", "counting", "overall"]
    assert (found["colors"].first, found["counting"].second) == (0.5, pytest.approx(6 / 20))
    assert found["overall"].difference == pytest.approx((1 / 36 + 1 / 20) / 2)


def test_unlike_prompt_sets_are_refused(tmp_path: Path) -> None:
    answers = {("colors", "p"): "1", ("colors", "q"): "0"}
    first = results(tmp_path / "a.jsonl", answers)
    for other, lacking in (
        (results(tmp_path / "b.jsonl", answers, include=[]), "b.jsonl, such as"),
        (results(tmp_path / "c.jsonl", {**answers, ("colors", "r"): "1"}), 'a.jsonl, such as .*"r"'),
    ):
        with pytest.raises(ValueError, match=f"unlike prompts.*{lacking}"):
            compare_results(first, other)
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        compare_results(first, tmp_path / "none.jsonl")
