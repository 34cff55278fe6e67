"""``t2ikit sweep``: the cells of an experiment's sweep, and their table."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from t2ikit import stopping
from t2ikit.commands.arguments import add_trust, expanded, positive
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import find_experiment
from t2ikit.config.overrides import take_all_overrides as take_overrides
from t2ikit.config.sweep import Sweep, sweep_of
from t2ikit.files import require_folder
from t2ikit.launch import first_rank

__all__ = ["add_parser", "run", "take_overrides"]

DESCRIPTION = """\
Trains the cells of an experiment's `sweep` that are missing, then prints the table of scores: means over seeds with
95 % intervals. Any number of these commands, on machines that share the folder of the runs, work together: no cell is
trained twice at a time, and one that was killed goes on from its last checkpoint. A cell is done where its file of
scores is; these files are small, to be committed."""

EXAMPLES = """examples:
  t2ikit sweep recipe.yaml --list
  t2ikit sweep recipe.yaml --jobs 2
  t2ikit sweep recipe.yaml --cell rates-low-none-seed0
  t2ikit sweep recipe.yaml --list --commands > cells.txt      # line N is the job of array index N (docs/runs.md)

in the experiment:
  sweep:
    scores: [geneval/overall]                    # columns of the table; without it all
    grids:
      rates:
        seeds: [0, 1, 2]
        axes:
          rate: {low: {model: {init_args: {optimizer: {init_args: {lr: 0.0005}}}}}, high: null}
          decay: {none: {model: {init_args: {optimizer: {init_args: {weight_decay: 0.0}}}}}, some: null}
Runs are in <run.directory>/<run.name>/<cell>/version_<N>, scores in FILE.scores/<cell>.json.
Any option of the experiment may be overridden for all cells: --trainer.max_steps 1000
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``sweep`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sweep",
        help="train the cells of a sweep that are missing",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("experiment", metavar="FILE", type=expanded, help="experiment with a `sweep`: a file, or a name")
    add("--list", action="store_true", help="train nothing: print the state of every cell, and the table")
    commands_help = "with --list: print a command for each cell instead, a line each, for the jobs of an array"
    add("--commands", action="store_true", help=commands_help)
    add(
        "--jobs",
        type=positive,
        metavar="N",
        help="cells at once on this machine (default: 1), which share its cores and GPUs",
    )
    add("--cell", metavar="NAME", help="train this cell only, in this process")
    add("--scores", type=expanded, metavar="DIR", help="folder of the scores (default: FILE.scores, beside FILE.yaml)")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs what was parsed; returns the exit status.

    0; 1 for a cell that failed, 3 for one that runs elsewhere, 75 for one that a signal has stopped.

    Raises:
        ConfigError: no sweep, or a cell that cannot be trained.
    """
    if args.commands and not args.list:
        raise ConfigError("--commands is about --list: give --list --commands")
    if args.cell is not None and (args.list or args.jobs is not None):
        raise ConfigError(f"--cell trains one cell in this process: leave out {'--list' if args.list else '--jobs'}")
    if args.list and args.jobs is not None:
        raise ConfigError("--list trains nothing: leave out --jobs")
    sweep = sweep_of(args.experiment, args.overrides)
    scores: Path = args.scores or args.experiment.with_suffix(".scores")
    words = ["sweep", str(args.experiment), "--scores", str(scores)]
    words += [word for name in args.trust for word in ("--trust", name)]
    words += [f"--{override.key}={override.text}" for override in args.overrides]
    if args.commands:
        for name in sweep.cells:
            print(f"t2ikit {shlex.join([*words, '--cell', name])}")
        return 0
    if args.list:
        from t2ikit.run.sweeps import place_of

        width = max(map(len, sweep.cells))
        for name, cell in sweep.cells.items():
            print(f"{name:{width}}  {place_of(sweep, cell, scores).state()}")
        return _print_table(sweep, scores)
    require_folder(scores, "--scores")
    from t2ikit.run.experiment import origins_of
    from t2ikit.run.sweeps import run_cell, run_missing

    origins = origins_of(experiment=find_experiment(args.experiment), trusted=args.trust)
    if args.cell is not None:
        command = f"t2ikit {shlex.join([*words, '--cell', args.cell])}"
        with stopping.handled():
            try:
                return run_cell(sweep, args.cell, scores, origins, command)
            except stopping.Stopped as error:
                if first_rank():
                    print(f"\nStopped by {error.reason} before the first step.", file=sys.stderr)
                return stopping.STATUS
    status = run_missing(sweep, scores, origins, args.jobs or 1, words)
    return _print_table(sweep, scores) or status


def _print_table(sweep: Sweep, scores: Path) -> int:
    from t2ikit.run.sweep_scores import table
    from t2ikit.run.sweeps import finished_cells

    done = finished_cells(sweep, scores)
    print(f"\n{len(done)} of {len(sweep.cells)} cells are done")
    if done or sweep.paper.columns:
        print(f"\n{table(sweep, done)}")
    return 0
