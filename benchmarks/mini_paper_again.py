"""Trains one cell of the mini-paper again and compares every score with the committed one, bit for bit.

``python -m benchmarks.mini_paper_again [CELL]``; exit status 0 where all are equal, 1 where one differs, 3 where one
differs with another torch, or on a processor that is another one or not known to be the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.mini_paper import EXPERIMENTS, SWEEPS
from t2ikit.config.errors import ConfigError
from t2ikit.config.sweep import Sweep, sweep_of
from t2ikit.run.sweep_scores import CellScores, read_cell
from t2ikit.run.sweeps import place_of

CELL = "few-cad_i-ta-seed0"
OTHER_MACHINE = 3
TIMED = "/seconds/"


def compared(before: CellScores, again: CellScores) -> list[str]:
    """Names of the scores of either cell that are no durations."""
    return [name for name in sorted({*before.series, *again.series}) if TIMED not in name]


def unequal(before: CellScores, again: CellScores) -> list[str]:
    """A line for each score whose values differ at some step, or that one of both lacks."""
    lines = []
    for name in compared(before, again):
        pairs = [[tuple(pair) for pair in scores.series.get(name, ())] for scores in (before, again)]
        if pairs[0] != pairs[1]:
            lines.append(f"{name}: {pairs[0]} before, {pairs[1]} now")
    return lines


def other_machine(before: CellScores, again: CellScores) -> list[str]:
    """In words what differs, or is not known to be the same, between the machines of two cells."""
    lines = []
    if before.versions.get("torch") != again.versions.get("torch"):
        lines.append(f"another torch: {before.versions.get('torch')} before, {again.versions.get('torch')} now")
    if again.processor.startswith(f"{before.processor} ("):
        lines.append(f"the processor may be another one: {before.processor!r} says no model, now {again.processor!r}")
    elif before.processor != again.processor:
        lines.append(f"another processor: {before.processor!r} before, {again.processor!r} now")
    return lines


def sweep_with(cell: str) -> Sweep | None:
    """The sweep that has a cell; None where there is none."""
    sweeps = (sweep_of(EXPERIMENTS / f"{name}.yaml") for name in SWEEPS)
    return next((sweep for sweep in sweeps if cell in sweep.cells), None)


def main(arguments: list[str] | None = None) -> int:
    """Trains and compares; see the module for the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mini_paper_again", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("cell", nargs="?", default=CELL, metavar="CELL", help="default: %(default)s")
    args = parser.parse_args(arguments)
    sweep = sweep_with(args.cell)
    if sweep is None:
        parser.error(f"no sweep of the mini-paper ({', '.join(SWEEPS)}) has a cell {args.cell}")
    place = place_of(sweep, sweep.cells[args.cell])
    try:
        before = place.finished()
    except ConfigError as error:
        parser.error(str(error))
    if before is None:
        parser.error(f"there is no {place.scores}: only a cell that is done can be compared")
    with tempfile.TemporaryDirectory() as folder:
        words = ["--cell", args.cell, "--scores", folder, "--run.directory", f"{folder}/runs"]
        command = [sys.executable, "-m", "t2ikit", "sweep", str(sweep.path), *words]
        status = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode  # as the sweep's --jobs
        again = read_cell(Path(folder) / f"{args.cell}.json")
    if status or again is None:
        print(f"{args.cell}: training ended with status {status}", file=sys.stderr)
        return 1
    lines = unequal(before, again)
    print("\n".join([f"{args.cell}: {len(lines)} of {len(compared(before, again))} scores differ", *lines]))
    machine = other_machine(before, again)
    print("".join(f"{line}; last digits may differ\n" for line in machine), end="")
    return 0 if not lines else OTHER_MACHINE if machine else 1


if __name__ == "__main__":
    sys.exit(main())
