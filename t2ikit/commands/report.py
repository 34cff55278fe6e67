"""``t2ikit report``: what runs did, as one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from t2ikit.commands.arguments import expanded
from t2ikit.config.errors import ConfigError
from t2ikit.files import require_folder, write_whole

DESCRIPTION = """\
Writes one HTML file about one run or several: losses and scores against steps, grids of samples with a slider, scores
with their fingerprints beside the paper's numbers, what differs between the experiments, and what the runs cost. The
file holds everything and asks nothing of any network. A run that still trains, was killed or lacks files gives a page
that says what is missing."""

EXAMPLES = """examples:
  t2ikit report runs/quickstart/version_0
  t2ikit report runs/dit_i_ta runs/dit_i_cmall --out cutmix.html
  t2ikit report runs/shapes_growing/version_0      (every stage of it)
  t2ikit report runs/mine --paper "CAD-I TA + CutMix"

A folder of versions stands for its newest one, a version with stages for all of them."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``report`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "report",
        help="one page about runs: curves, samples, scores, differences, cost",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", type=expanded, help="run folder, such as runs/quickstart/version_0")
    add("--out", type=expanded, metavar="FILE", help="the page (default: report.html in the folder of the first run)")
    add("--title", metavar="TEXT", help="heading of the page (default: the names of the runs)")
    add("--paper", action="append", default=[], metavar="ROW", help="show this row of a paper too; repeatable")
    return parser


def run(args: argparse.Namespace) -> int:
    """Writes the page; returns the exit status.

    Raises:
        ConfigError: a path without a run, a row that no paper has, or a place that cannot be written to.
    """
    from t2ikit.report.run import run_page
    from t2ikit.report.run_folder import read_runs

    runs = read_runs(args.runs)
    out: Path = args.out or runs[0].folder / "report.html"
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder: name a file, such as {out / 'report.html'}")
    require_folder(out.absolute().parent, "--out")
    title = args.title or f"Report: {', '.join(entry.name for entry in runs[:3])}{' ...' if len(runs) > 3 else ''}"
    write_whole(out, run_page(runs, title, args.paper))
    print(f"page: {out} ({out.stat().st_size / 1e6:.1f} MB, {len(runs)} run{'s' if len(runs) > 1 else ''})")
    for entry in runs:
        for sentence in entry.missing:
            print(f"  {entry.name}: {sentence}")
    return 0
