"""The proof of growing: its experiment, and what it makes of scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from benchmarks.growing_proof import GROWN, LONG, STAGES, TIMES, Scores, step_cost, write_experiment, write_results
from t2ikit.config.compose import compose, stages_of
from t2ikit.run.experiment import check


@pytest.mark.long
def test_scratch_is_trained_for_as_long_as_growing_costs(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, small=False)
    assert tuple(stages_of(path)) == STAGES
    steps = {stage: check(compose(path, (), stage)).trainer["max_steps"] for stage in STAGES}
    assert {stage: steps[stage] for stage in GROWN} == dict.fromkeys(GROWN, 300)
    cost = {stage: step_cost(path, stage) for stage in STAGES}
    assert cost["frozen"] < cost["finetuned"] == cost["scratch"] == cost[LONG]
    growing = 1200 * cost["shallow"] + 300 * cost["frozen"]
    assert steps[LONG] * cost[LONG] == pytest.approx(growing, rel=0.001) and steps[LONG] > 1000


def test_the_tables_say_who_wins_and_how_often(tmp_path: Path) -> None:
    def scores(seed: int, stage: str, error: float) -> Scores:
        steps = 1067 if stage == LONG else 300
        return Scores(seed, stage, steps, 2.0, 60.0, {str(t): error + 0.01 * seed for t in TIMES}, 0.5, "0")

    means = {"frozen": 0.05, "finetuned": 0.04, "scratch": 0.06, LONG: 0.03}
    results = [scores(seed, stage, mean) for seed in (0, 1, 2) for stage, mean in means.items()]
    summarised = write_results(tmp_path, results)
    assert summarised["frozen wins where noise is strong"]
    gap = summarised["differences"]["frozen - scratch"]["error at t 0.8"]
    mean, half = gap["mean and interval"]
    assert gap["seeds below 0"] == 3 and mean == pytest.approx(-0.01) and half == pytest.approx(0, abs=1e-12)
    mean, half = summarised["stages"]["frozen"]["scores"]["error at t 0.8"]
    assert mean == pytest.approx(0.06) and half == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-3)
    assert summarised["differences"][f"frozen - {LONG}"]["error at t 0.2"]["seeds below 0"] == 0
    assert json.loads((tmp_path / "proof.json").read_text())["seeds"] == [0, 1, 2]
    assert len(list(csv.DictReader((tmp_path / "proof.csv").open()))) == 12
    assert "| frozen | 300 | 2.0 | 60.0 | 0.0600 ± 0.0248" in (tmp_path / "proof.md").read_text()

    worse = [scores(s.seed, s.stage, 0.1 if (s.seed, s.stage) == (2, "frozen") else means[s.stage]) for s in results]
    assert not write_results(tmp_path, worse)["frozen wins where noise is strong"]
