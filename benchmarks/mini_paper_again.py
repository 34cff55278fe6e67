"""Trains one cell of the mini-paper again and compares every score with the committed one, bit for bit.

``python -m benchmarks.mini_paper_again [CELL]``; exit status 0 where all are equal, 1 where one differs on the same
kind of processor, 3 where the processor is another one, on which the last digits may differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.mini_paper import EXPERIMENTS, SWEEPS
from t2ikit.config.sweep import sweep_of
from t2ikit.run.sweep_scores import CellScores, read_cell

CELL = "few-cad_i-ta-seed0"
OTHER_PROCESSOR = 3
TIMED = "/seconds/"


def unequal(before: CellScores, again: CellScores) -> list[str]:
    """A line for each score whose values differ at some step, or that one of both lacks."""
    lines = []
    for name in sorted({*before.series, *again.series}):
        if TIMED in name:
            continue
        pairs = [[tuple(pair) for pair in scores.series.get(name, ())] for scores in (before, again)]
        if pairs[0] != pairs[1]:
            lines.append(f"{name}: {pairs[0]} before, {pairs[1]} now")
    return lines


def sweep_with(cell: str) -> Path | None:
    """The experiment that has a cell; None where there is none."""
    paths = (EXPERIMENTS / f"{name}.yaml" for name in SWEEPS)
    return next((path for path in paths if cell in sweep_of(path).cells), None)


def main(arguments: list[str] | None = None) -> int:
    """Trains and compares; see the module for the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mini_paper_again", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("cell", nargs="?", default=CELL, metavar="CELL", help="default: %(default)s")
    args = parser.parse_args(arguments)
    experiment = sweep_with(args.cell)
    if experiment is None:
        parser.error(f"no sweep of the mini-paper ({', '.join(SWEEPS)}) has a cell {args.cell}")
    path = experiment.with_suffix(".scores") / f"{args.cell}.json"
    before = read_cell(path)
    if before is None:
        parser.error(f"there is no {path}: only a cell that is done can be compared")
    with tempfile.TemporaryDirectory() as folder:
        words = ["--cell", args.cell, "--scores", folder, "--run.directory", f"{folder}/runs"]
        status = subprocess.run([sys.executable, "-m", "t2ikit", "sweep", str(experiment), *words]).returncode
        again = read_cell(Path(folder) / f"{args.cell}.json")
    if status or again is None:
        print(f"{args.cell}: training ended with status {status}", file=sys.stderr)
        return 1
    lines = unequal(before, again)
    print("\n".join([f"{args.cell}: {len(lines)} of {len(again.series)} scores differ", *lines]))
    if before.versions != again.versions:
        print(f"other versions: {dict(before.versions)} before, {dict(again.versions)} now")
    if before.processor != again.processor:
        print(f"another processor: {before.processor!r} before, {again.processor!r} now; last digits may differ")
        return OTHER_PROCESSOR if lines else 0
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
