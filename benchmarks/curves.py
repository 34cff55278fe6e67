"""Scores of a run against its training time: ``python -m benchmarks.curves RUN [RUN ...] --out FILE.png``.

Training time is steps x batch size / the median rate of the run, so that snapshots and pauses of the machine are left
out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from t2ikit.callbacks.metrics_csv import read_metrics

TASKS = ("single_object", "colors", "counting", "two_object", "position", "color_attr")
OTHERS = ("val/largest_color_share", "val/precision", "val/recall", "val/density", "val/coverage")

Series = list[tuple[int, float]]


def minutes_a_step(metrics: dict[str, Series], batch_size: int) -> float:
    """Minutes of training a step at the median rate; 1 / 60 without rates."""
    rates = [value for _, value in metrics.get("train/images_per_second", [])]
    return batch_size / statistics.median(rates) / 60 if rates else 1 / 60


def plot(runs: Sequence[Path], batch_size: int, out: Path) -> None:
    """Three panels a run: GenEval's tasks, distribution scores, and the losses.

    Args:
        runs: run folders with ``metrics.csv``.
        batch_size: samples a step.
        out: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(runs), 3, figsize=(13, 3.4 * len(runs)), squeeze=False)
    for panels, run in zip(rows, runs, strict=True):
        metrics = read_metrics(run / "metrics.csv")
        scale = minutes_a_step(metrics, batch_size)
        wanted = [
            [(f"geneval/{task}", task) for task in TASKS],
            [(name, name.removeprefix("val/")) for name in OTHERS],
            [("train/loss", "training loss"), ("val/loss", "validation loss (EMA)")],
        ]
        for panel, names in zip(panels, wanted, strict=True):
            for name, label in names:
                if name in metrics:
                    steps, values = zip(*metrics[name], strict=True)
                    marker = None if name == "train/loss" else "o"
                    panel.plot([step * scale for step in steps], values, marker=marker, markersize=3, label=label)
            panel.set_xlabel("minutes of training")
            panel.grid(alpha=0.3)
            panel.legend(fontsize=7)
        panels[2].set_yscale("log")
        panels[0].set_title(f"{run.parent.name}: GenEval of shapes", fontsize=10)
        panels[1].set_title("held-out captions", fontsize=10)
    figure.tight_layout()
    figure.savefig(out, dpi=90)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Plots the curves; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, with metrics.csv")
    parser.add_argument("--batch-size", type=int, default=32, help="samples a step (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="PNG (%(default)s)")
    args = parser.parse_args(arguments)
    plot(args.runs, args.batch_size, args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
