"""The table at the end of a run: every score once under its step, and EMA only where there is one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t2ikit.callbacks.score_table import ScoreTable
from t2ikit.learner import RunLog
from t2ikit.metrics.fingerprint import Fingerprint, Score, write_scores


def printed(folder: Path, capsys: pytest.CaptureFixture[str], histories: dict[str, Any], averages: Any = None) -> str:
    module = SimpleNamespace(run_log=RunLog(scores=histories), averages=averages)
    trainer: Any = SimpleNamespace(is_global_zero=True, default_root_dir=str(folder))
    ScoreTable().on_fit_end(trainer, module)
    return capsys.readouterr().out


def row(text: str, name: str) -> list[str]:
    [line] = [line for line in text.splitlines() if name in line]
    return [cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")]


def test_a_score_of_one_step_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(tmp_path, capsys, {"val": {8: {"loss": 0.5}}})
    assert row(text, "val/loss") == ["val/loss", "0.5"] and "step 8" in text
    text = printed(tmp_path, capsys, {"val": {8: {"loss": 0.5}}, "start": {0: {"loss": 2.0}}})
    assert row(text, "val/loss") == ["val/loss", "-", "0.5"]
    assert row(text, "start/loss") == ["start/loss", "2", "-"]


def test_a_score_of_another_step_than_its_column_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    histories = {
        "samples": {0: {"loss": 9.0}, 1000: {"loss": 1.0}},
        "geneval": {300: {"overall": 0.1}, 900: {"overall": 0.5}},
        "once": {500: {"loss": 2.0}},
    }
    for snapshot, history in histories.items():
        for step, values in history.items():
            scores = [Score(name, value, Fingerprint(), step) for name, value in values.items()]
            write_scores(tmp_path / "samples" / snapshot / "scores" / f"step-{step:08d}", scores)
    text = printed(tmp_path, capsys, histories)
    assert row(text, "score ") == ["score", "step 0", "step 1000"]
    assert row(text, "samples/loss") == ["samples/loss", "9", "1"]
    assert row(text, "geneval/overall") == ["geneval/overall", "0.1 (step 300)", "0.5 (step 900)"]
    assert row(text, "once/loss") == ["once/loss", "-", "2 (step 500)"]


def test_the_title_says_ema_only_where_weights_are_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    histories = {"val": {8: {"loss": 0.5}}}
    assert "EMA" not in printed(tmp_path, capsys, histories)
    assert "Scores (EMA weights)" in printed(tmp_path, capsys, histories, averages=object())
