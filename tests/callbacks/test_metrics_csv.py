from __future__ import annotations

from pathlib import Path

import pytest

from t2ikit.callbacks.metrics_csv import MetricsCSV, read_metrics


def test_values_keep_all_their_digits_and_runs_append(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    MetricsCSV(str(tmp_path)).log_metrics({"train/loss": value, "a,b": 1}, step=3)
    MetricsCSV(str(tmp_path)).log_metrics({"train/loss": 2.0}, step=4)
    series = read_metrics(tmp_path / "metrics.csv")
    assert series["train/loss"] == [(3, value), (4, 2.0)]
    assert series["a,b"] == [(3, 1.0)]


def test_a_resume_takes_out_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    logger = MetricsCSV(str(tmp_path))
    for step in (10, 20, 30):
        logger.log_metrics({"loss": float(step)}, step=step)
    with open(logger.path, "a") as file:
        file.write("40,lo")
    before = logger.path.read_bytes()
    logger = MetricsCSV(str(tmp_path), step=20)
    assert logger.path.read_bytes() == before  # a resume that is refused now loses nothing
    for step, value in ((30, 31.0), (30, 32.0)):
        logger.log_metrics({"loss": value}, step=step)
    assert read_metrics(logger.path)["loss"] == [(10, 10.0), (20, 20.0), (30, 31.0), (30, 32.0)]


def test_another_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"metrics\.csv"):
        read_metrics(tmp_path / "x.csv")


@pytest.mark.parametrize("line", ["4,loss", "four,loss,1.0", "4,loss,1.0,2.0", "4,loss,1.0.0"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,name,value\n2,loss,1.0\n{line}\n6,loss,1.0\n")
    with pytest.raises(ValueError, match=r"metrics\.csv: line 3 is damaged"):
        read_metrics(path)
    with pytest.raises(ValueError, match="line 3 is damaged"):
        MetricsCSV(str(tmp_path), step=2).log_metrics({"loss": 1.0}, step=3)
