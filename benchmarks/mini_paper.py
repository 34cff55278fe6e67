"""The page of the mini-paper, from the scores of its sweeps: ``python -m benchmarks.mini_paper``.

    experiments/mini_paper.scores/<cell>.json          read: the finished cells of the first sweep
    experiments/mini_paper_cutmix.scores/<cell>.json   read: those of the second one
    docs/mini-paper.md                                 the tables and the verdicts between its two marks are replaced
    docs/mini-paper.csv                                every score of every cell at every step
    docs/images/mini_paper_curves.webp                 scores and losses against steps
    docs/images/mini_paper/<cell>.webp                 samples of cells whose runs are on this machine (seed 0)

A verdict is taken from paired differences: one number a seed and network, their mean with its 95 % interval by
Student's t. A claim appears where the interval lies on the claimed side of 0, is contradicted where it lies on the
other one, and cannot be said where it holds 0.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mini_paper_pictures import plot_curves, save_grids
from t2ikit.config.sweep import Sweep, sweep_of
from t2ikit.files import write_whole
from t2ikit.report.published import numbers_of
from t2ikit.run.sweep_scores import CellScores, mean_and_interval
from t2ikit.run.sweeps import finished_cells

EXPERIMENTS = Path("experiments")
PAGE, TABLE = Path("docs/mini-paper.md"), Path("docs/mini-paper.csv")
IMAGES = Path("docs/images")
BEGIN, END = "<!-- made by python -m benchmarks.mini_paper: begin -->", "<!-- end -->"
NETWORKS = {"cad_i": "CAD-I", "dit_i": "DiT-I"}
METHODS = {"aio": "AIO", "ta": "TA", "crop": "TA + Crop", "cmall": "TA + CutMix"}
TASKS = ("single_object", "two_object", "colors", "position", "color_attr")
EXTENDED, SEEN, ORIGINAL, PLACES = "geneval", "geneval_seen", "geneval_original", "geneval/colors_and_places"
GAP = "gap"
"""Validation loss at fixed t minus that of as many training records: how far a network has overfitted."""


@dataclass(frozen=True)
class Claim:
    """What the papers say of a difference between two kinds of cells.

    Attributes:
        text: the claim.
        score: name of the score, or `GAP`.
        first, second: methods, the claimed better one first.
        sign: +1 where the claim is that the first has more of the score, -1 less.
        other_score: score of the second one, where it is not ``score``.
    """

    text: str
    score: str
    first: str
    second: str
    sign: int = 1
    other_score: str | None = None


CLAIMS = (
    Claim("Long captions raise GenEval (extended prompts)", f"{EXTENDED}/overall", "ta", "aio"),
    Claim("Long captions raise GenEval (original prompts)", f"{ORIGINAL}/overall", "ta", "aio"),
    Claim("CutMix raises two objects, pairs never seen", f"{EXTENDED}/two_object", "cmall", "ta"),
    Claim("CutMix raises position, pairs never seen", f"{EXTENDED}/position", "cmall", "ta"),
    Claim("CutMix raises two objects, pairs seen", f"{SEEN}/two_object", "cmall", "ta"),
    Claim("CutMix raises position, pairs seen", f"{SEEN}/position", "cmall", "ta"),
    Claim("CutMix raises two objects, by colour and place alone", f"{PLACES}/two_object", "cmall", "ta"),
    Claim("CutMix raises position, by colour and place alone", f"{PLACES}/position", "cmall", "ta"),
    Claim("CutMix raises GenEval", f"{EXTENDED}/overall", "cmall", "ta"),
    Claim("CutMix delays overfitting", GAP, "cmall", "ta", -1),
    Claim("Crop delays overfitting", GAP, "crop", "ta", -1),
    Claim("Crop raises two objects, pairs seen", f"{SEEN}/two_object", "crop", "ta"),
    Claim("Crop lowers the Frechet distance", "val/frechet_distance", "crop", "ta", -1),
    Claim(
        "Extended prompts score higher than original ones", f"{EXTENDED}/overall", "ta", "ta", 1, f"{ORIGINAL}/overall"
    ),
)

Done = Mapping[str, CellScores]


def value(scores: CellScores, name: str) -> float | None:
    """A score of a cell, or the gap of its losses; None where it has none."""
    if name == GAP:
        held_out, train = (scores.scores.get(f"val/loss_fixed_t{split}") for split in ("", "_train"))
        return None if held_out is None or train is None else held_out - train
    return scores.scores.get(name)


def differences(sweep: Sweep, done: Done, claim: Claim, networks: Iterable[str] = NETWORKS) -> list[float]:
    """First minus second of every pair of cells that differ in the method alone, both finished."""
    found = []
    for network in networks:
        for seed in sorted({cell.seed for cell in sweep.cells.values()}):
            names = [f"main-{network}-{method}-seed{seed}" for method in (claim.first, claim.second)]
            if not all(name in done for name in names):
                continue
            first = value(done[names[0]], claim.score)
            second = value(done[names[1]], claim.other_score or claim.score)
            if first is not None and second is not None:
                found.append(first - second)
    return found


def verdict(gaps: Sequence[float], sign: int) -> str:
    """In words what paired differences say of a claim."""
    if len(gaps) < 3:
        return "cannot be said: fewer than three pairs"
    mean, half = mean_and_interval(gaps)
    assert half is not None
    if sign * mean > half:
        return "**appears**"
    return "**contradicted**" if -sign * mean > half else "cannot be said: the interval holds 0"


def entry(values: Sequence[float]) -> str:
    """Mean and half width of the interval, as a table shows them."""
    if not values:
        return "-"
    mean, half = mean_and_interval(values)
    return f"{mean:.3f}" + ("" if half is None else f" ± {half:.3f}")


# ------------------------------------------------------------------ tables


def row(done: Done, network: str, method: str, names: Iterable[str]) -> tuple[int, str]:
    """How many seeds of a network and method are done, and the entries of some scores over them."""
    cells = [scores for name, scores in done.items() if name.startswith(f"main-{network}-{method}-")]
    found = [[v for scores in cells if (v := value(scores, name)) is not None] for name in names]
    return len(cells), " | ".join(map(entry, found))


def claims_table(sweep: Sweep, done: Done) -> str:
    """Claim, differences by network and over both, verdict over both."""
    lines = [
        "| claim | difference of | CAD-I | DiT-I | both | pairs | here |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        own = [entry(differences(sweep, done, claim, [network])) for network in NETWORKS]
        gaps = differences(sweep, done, claim)
        name = claim.score if claim.other_score is None else f"{claim.score} and {claim.other_score}"
        kinds = (
            METHODS[claim.first] if claim.first == claim.second else f"{METHODS[claim.first]} − {METHODS[claim.second]}"
        )
        what = f"{'loss gap' if name == GAP else f'`{name}`'}, {kinds}"
        lines.append(
            f"| {claim.text} | {what} | {' | '.join(own)} | {entry(gaps)} | {len(gaps)} | {verdict(gaps, claim.sign)} |"
        )
    return "\n".join(lines)


def scores_table(done: Done, snapshot: str, version: str = "", prompts: str = "") -> str:
    """Tasks of GenEval by network and method; below ours the paper's of a version and kind of prompts, if given."""
    names = (*TASKS, "overall")
    lines = [f"| | seeds | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (len(names) + 2) + "|"]
    for network, shown in NETWORKS.items():
        for method, words in METHODS.items():
            count, ours = row(done, network, method, [f"{snapshot}/{name}" for name in names])
            lines.append(f"| {shown} {words} | {count} | {ours} |")
            paper = {
                number.score.partition("/")[2]: number.value
                for number in numbers_of(f"{shown} {words}")
                if number.version == version and number.score.startswith("geneval") and number.prompts == prompts
            }
            if paper:
                theirs = " | ".join(f"*{paper[name]:.2f}*" if name in paper else "" for name in names)
                lines.append(f"| *paper, {version}* | | {theirs} |")
    return "\n".join(lines)


def losses_table(done: Done) -> str:
    """Distribution scores and losses by network and method."""
    names = {
        "val/frechet_distance": "Frechet distance",
        "val/precision": "precision",
        "val/recall": "recall",
        "val/density": "density",
        "val/coverage": "coverage",
        "val/loss_fixed_t": "held-out loss",
        "val/loss_fixed_t_train": "training loss",
        GAP: "gap",
    }
    lines = [f"| | {' | '.join(names.values())} |", "|---" * (len(names) + 1) + "|"]
    for network, shown in NETWORKS.items():
        for method, words in METHODS.items():
            lines.append(f"| {shown} {words} | {row(done, network, method, names)[1]} |")
    return "\n".join(lines)


def cutmix_table(sweep: Sweep, done: Done) -> str:
    """The cells of the second sweep, those that were not run with their command."""
    names = (
        f"{EXTENDED}/two_object",
        f"{EXTENDED}/position",
        f"{EXTENDED}/overall",
        f"{ORIGINAL}/overall",
        "val/frechet_distance",
    )
    lines = [f"| cell | {' | '.join(f'`{name}`' for name in names)} | gap |", "|---" * (len(names) + 2) + "|"]
    for name in sweep.cells:
        if name in done:
            found = [value(done[name], score) for score in (*names, GAP)]
            lines.append(f"| {name} | {' | '.join('-' if v is None else f'{v:.3f}' for v in found)} |")
        else:
            lines.append(f"| {name} | not run: `t2ikit sweep {sweep.path} --cell {name}` |{' |' * len(names)}")
    return "\n".join(lines)


def every_score(sweeps: Sequence[tuple[Sweep, Done]]) -> str:
    """All scores of all finished cells at all steps, as CSV."""
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["sweep", "cell", "step", "score", "value"])
    for sweep, done in sweeps:
        for name in sweep.cells:
            for score, series in done[name].series.items() if name in done else ():
                writer.writerows([sweep.path.stem, name, step, score, repr(number)] for step, number in series)
    return rows.getvalue()


def page(main: Sweep, done: Done, cutmix: Sweep, done_cutmix: Done) -> str:
    """What stands between the marks."""
    cpu = [scores.cpu_seconds for scores in done.values() if scores.cpu_seconds is not None]
    minutes = f"; {min(cpu) / 60:.1f} to {max(cpu) / 60:.1f} CPU-minutes a cell" if cpu else ""
    parts = [
        f"{len(done)} of {len(main.cells)} cells of the first sweep are done, "
        f"{len(done_cutmix)} of {len(cutmix.cells)} of the second{minutes}. "
        "All scores at all steps: [mini-paper.csv](mini-paper.csv).",
        "### Which claims appear\n\n" + claims_table(main, done),
        "### Tasks, extended prompts; two objects are pairs that training never shows\n\n"
        + scores_table(done, EXTENDED, "v2", "extended prompts"),
        "### Pairs that training shows, extended prompts\n\n" + scores_table(done, SEEN),
        "### Tasks, original prompts\n\n" + scores_table(done, ORIGINAL, "v1", "original prompts"),
        "### Judged by colour and place alone, extended prompts\n\n" + scores_table(done, PLACES),
        "### Distribution and overfitting\n\n" + losses_table(done),
        "![Scores and losses against steps](images/mini_paper_curves.webp)",
        "### CutMix's settings, p and tau (CAD-I)\n\n" + cutmix_table(cutmix, done_cutmix),
    ]
    return "\n\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Writes page, table and pictures; the exit status: 1 without a finished cell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mini_paper", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="%(default)s")
    parser.add_argument("--table", type=Path, default=TABLE, help="%(default)s")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder (%(default)s)")
    args = parser.parse_args(arguments)
    sweeps = []
    for name in ("mini_paper", "mini_paper_cutmix"):
        sweep = sweep_of(EXPERIMENTS / f"{name}.yaml")
        sweeps.append((sweep, finished_cells(sweep, EXPERIMENTS / f"{name}.scores")))
    (first, done), (second, done_cutmix) = sweeps
    if not done:
        print("no cell is done: t2ikit sweep experiments/mini_paper.yaml --jobs 2", file=sys.stderr)
        return 1
    text = args.page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{args.page} lacks the marks {BEGIN} and {END}")
    plot_curves(done, NETWORKS, METHODS, args.images / "mini_paper_curves.webp")
    save_grids(first, args.images / "mini_paper")
    write_whole(args.table, every_score(sweeps))
    write_whole(args.page, f"{before}{BEGIN}\n\n{page(first, done, second, done_cutmix)}\n\n{END}{after}")
    print(f"{args.page}: {len(done)} of {len(first.cells)} cells, {len(done_cutmix)} of {len(second.cells)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
