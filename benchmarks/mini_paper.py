"""The page of the mini-paper, from the scores of its sweeps: ``python -m benchmarks.mini_paper``.

experiments/<sweep>.scores/<cell>.json   read: the finished cells of `SWEEPS`
docs/mini-paper.md                       the tables and the verdicts between its two marks are replaced
docs/mini-paper.csv                      every score of every cell at every step
docs/images/mini_paper_curves.webp       scores and losses against steps
docs/images/mini_paper/<cell>.webp       samples of the first sweep's cells whose runs are on this machine (seed 0)
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from benchmarks.mini_paper_claims import (
    CLAIMS,
    DISTANCE,
    EXTENDED,
    GAP,
    HELD_OUT,
    KINDS,
    METHODS,
    NETWORKS,
    ORIGINAL,
    PLACES,
    SEEN,
    Done,
    differences,
    finished,
    interval,
    value,
    verdict,
)
from benchmarks.mini_paper_pictures import curves, grids
from t2ikit.config.errors import ConfigError
from t2ikit.config.sweep import Sweep, sweep_of
from t2ikit.files import write_whole
from t2ikit.report.published import numbers_of
from t2ikit.run.sweeps import finished_cells

EXPERIMENTS = Path("experiments")
SWEEPS = {"mini_paper": "the first sweep", "mini_paper_few": "few scenes", "mini_paper_cutmix": "CutMix's options"}
PAGE, TABLE = Path("docs/mini-paper.md"), Path("docs/mini-paper.csv")
IMAGES = Path("docs/images")
BEGIN, END = "<!-- made by python -m benchmarks.mini_paper: begin -->", "<!-- end -->"
TASKS = ("single_object", "two_object", "colors", "position", "color_attr")
FEW = ("ta", "crop", "cmall")
DISTRIBUTION = {
    DISTANCE: "Frechet distance",
    "val/precision": "precision",
    "val/recall": "recall",
    "val/density": "density",
    "val/coverage": "coverage",
    HELD_OUT: "held-out loss",
    f"{HELD_OUT}_train": "training loss",
    GAP: "gap",
}


def entry(*groups: Sequence[float]) -> str:
    """Mean and half width of the interval, as a table shows them; the values of several networks as groups."""
    if not any(groups):
        return "-"
    mean, half = interval(groups)
    return f"{mean:.3f}" + ("" if half is None else f" ± {half:.3f}")


def row(done: Done, kind: str, network: str, names: Iterable[str]) -> tuple[int, str]:
    """How many seeds of a kind are done, and the entries of some scores over them."""
    cells = finished(done, kind, network)
    found = [[v for scores in cells if (v := value(scores, name)) is not None] for name in names]
    return len(cells), " | ".join(map(entry, found))


def claims_table(done: Done) -> str:
    """Claim, the paper's numbers, differences by network and over both, verdicts; below how many were tested."""
    lines = [
        "| claim | the paper's difference (CAD-I, DiT-I) | here: difference of | CAD-I | DiT-I | both "
        "| seed pairs | effect |",
        "|---" * 8 + "|",
    ]
    tested = 0
    for claim in CLAIMS:
        groups = [differences(done, claim, [network]) for network in NETWORKS]
        words = verdict(groups, claim.sign)
        tested += sum(map(len, groups)) >= 3
        alone = [verdict([group], claim.sign) for group in groups]
        if all(groups) and set(alone) != {words}:
            names = zip(NETWORKS.values(), alone, strict=True)
            words = f"{words} ({', '.join(f'{name}: {said}' for name, said in names)})"
        numbers = " | ".join([*map(entry, groups), entry(*groups), str(sum(map(len, groups)))])
        lines.append(f"| {claim.text} | {claim.paper} | {claim.difference} | {numbers} | {words} |")
    return "\n".join(lines) + (
        "\n\n*Effect*: it appears where the interval lies on the claimed side of 0, is opposite where it lies on the "
        "other side, and cannot be said where it holds 0. Intervals are of 95 % (Student's t) over the training seeds; "
        "all cells share scenes and prompts, so what another choice of these would change is not in them. "
        "*Both* is the mean of the networks' means, its interval from the spread within each network. Of "
        f"{tested} claims that were tested, about {tested * 0.05:.0f} would be decided by chance alone, and many share "
        "their cells."
    )


def scores_table(done: Done, snapshot: str, version: str = "", prompts: str = "") -> str:
    """Tasks of GenEval by network and method; below ours the paper's of a version and kind of prompts, if given."""
    names = (*TASKS, "overall")
    lines = [f"| | seeds | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (len(names) + 2) + "|"]
    for network, shown in NETWORKS.items():
        for method, words in METHODS.items():
            count, ours = row(done, method, network, [f"{snapshot}/{name}" for name in names])
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
    """Distribution scores and losses at the end, by network and method, then those on few scenes."""
    lines = [f"| | seeds | {' | '.join(DISTRIBUTION.values())} |", "|---" * (len(DISTRIBUTION) + 2) + "|"]
    rows = [
        (method, network, f"{shown} {words}")
        for network, shown in NETWORKS.items()
        for method, words in METHODS.items()
    ]
    rows += [(f"few {method}", "cad_i", f"CAD-I {KINDS[f'few {method}'].words}") for method in FEW]
    for kind, network, words in rows:
        count, entries = row(done, kind, network, DISTRIBUTION)
        lines.append(f"| {words} | {count} | {entries} |")
    return "\n".join(lines)


def lowest_table(done: Done) -> str:
    """On few scenes: where held-out loss and Frechet distance were lowest, and how many had risen since."""
    turned = total = 0
    lines = ["| cell | lowest held-out loss | at the end | lowest Frechet distance | at the end |", "|---" * 5 + "|"]
    for name in (name for name in done if name.startswith("few-")):
        shown = [name]
        for score in (HELD_OUT, DISTANCE):
            step, least = min(done[name].series[score], key=lambda pair: pair[1])
            last, value_there = done[name].series[score][-1]
            shown += [f"{least:.3f}, step {step:,}", f"{value_there:.3f}"]
            turned, total = turned + (step < last), total + 1
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + f"\n\n{turned} of these {total} curves have turned before the end."


def cells_table(sweep: Sweep, done: Done) -> str:
    """The cells of a sweep, those that were not run with their command."""
    names = (f"{EXTENDED}/two_object", f"{EXTENDED}/position", f"{EXTENDED}/overall", f"{ORIGINAL}/overall", DISTANCE)
    lines = [f"| cell | {' | '.join(f'`{name}`' for name in names)} | gap |", "|---" * (len(names) + 2) + "|"]
    for name in sweep.cells:
        if name in done:
            found = [value(done[name], score) for score in (*names, GAP)]
            lines.append(f"| {name} | {' | '.join('-' if v is None else f'{v:.3f}' for v in found)} |")
        else:
            lines.append(f"| {name} | not run: `t2ikit sweep {sweep.path} --cell {name}` |{' |' * len(names)}")
    return "\n".join(lines)


def every_score(sweeps: Iterable[Sweep], done: Done) -> str:
    """All scores of all finished cells at all steps, as CSV."""
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["sweep", "cell", "step", "score", "value"])
    for sweep in sweeps:
        for name in sweep.cells:
            for score, series in done[name].series.items() if name in done else ():
                writer.writerows([sweep.path.stem, name, step, score, repr(number)] for step, number in series)
    return rows.getvalue()


def samples_table(pictures: Set[str], folder: str) -> str:
    """The pictures of the cells of seed 0 that there are, a row a network; ``folder``: as the page links it."""
    lines = [f"| | {' | '.join(METHODS.values())} |", "|---" * (len(METHODS) + 1) + "|"]
    for network, words in NETWORKS.items():
        names = [f"main-{network}-{method}-seed0.webp" for method in METHODS]
        alts = [f"{words} {method}" for method in METHODS.values()]
        cells = [
            f"![{alt}]({folder}/{name})" if name in pictures else "-" for alt, name in zip(alts, names, strict=True)
        ]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def counts(sweeps: Sequence[Sweep], done: Done) -> str:
    """How many cells of each sweep are done, what a cell cost, and on which processors they ran."""
    progress = [f"{sum(name in done for name in sweep.cells)} of {len(sweep.cells)}" for sweep in sweeps]
    shown = ", ".join(f"{words} {count}" for words, count in zip(SWEEPS.values(), progress, strict=True))
    cpu = [scores.cpu_seconds for scores in done.values() if scores.cpu_seconds is not None]
    known = "" if len(cpu) == len(done) else f" ({len(done) - len(cpu)} were interrupted and are not timed)"
    cost = f"; {min(cpu) / 60:.1f} to {max(cpu) / 60:.1f} CPU-minutes a cell{known}" if cpu else ""
    processors = Counter(scores.processor for scores in done.values())
    return f"Cells done: {shown}{cost}; processors: {', '.join(f'{name} {n}' for name, n in processors.most_common())}"


def page(sweeps: Sequence[Sweep], done: Done, pictures: Set[str], folder: str) -> str:
    """What stands between the marks.

    Args:
        sweeps: of `SWEEPS`, in their order.
        done: the finished cells.
        pictures: names of the files of samples that there are.
        folder: that of the images, as the page links it.
    """
    parts = [
        f"{counts(sweeps, done)}. All scores at all steps: [mini-paper.csv](mini-paper.csv).",
        "### Which effects appear\n\n" + claims_table(done),
        "### Tasks, extended prompts; two objects are pairs that training never shows\n\n"
        + scores_table(done, EXTENDED, "v2", "extended prompts"),
        "### Pairs that training shows, extended prompts\n\n" + scores_table(done, SEEN),
        "### Tasks, original prompts\n\n" + scores_table(done, ORIGINAL, "v1", "original prompts"),
        "### Judged by colour and place alone, extended prompts\n\n" + scores_table(done, PLACES),
        "### Distribution and overfitting\n\n"
        + losses_table(done)
        + "\n\nDistances and losses of AIO are those of AIO "
        "captions: they cannot be compared with the other rows.",
        f"![Scores and losses against steps]({folder}/mini_paper_curves.webp)\n\n"
        "*Mean over three seeds and their range. Tasks are scored twice, after 850 and 1,700 steps, the rest four "
        "times.*",
        "### Samples, seed 0: upper half single objects, lower half two objects (pairs seen)\n\n"
        "A place shows the same extended prompt in every picture; AIO has never seen captions like these.\n\n"
        + samples_table(pictures, f"{folder}/mini_paper"),
        "### 2,000 scenes: lowest and last\n\n" + lowest_table(done),
        "### CutMix's tau, p and setting (CAD-I)\n\n" + cells_table(sweeps[-1], done),
    ]
    missing = [
        f"`t2ikit sweep {sweep.path} --cell {name}`"
        for sweep in sweeps[:-1]
        for name in sweep.cells
        if name not in done
    ]
    if missing:
        parts.append("Not run yet of the other sweeps:\n\n" + "\n".join(f"- {command}" for command in missing))
    return "\n\n".join(parts)


def check_scores(done: Done) -> None:
    """Whether every finished cell has finite scores, the last ones of its series.

    Raises:
        ValueError: one has not.
    """
    for name, cell in done.items():
        wrong = [score for score, number in cell.scores.items() if not math.isfinite(number)]
        wrong += [score for score, number in cell.scores.items() if cell.series[score][-1][1] != number]
        if wrong or not cell.scores:
            raise ValueError(f"the scores of {name} are damaged: {', '.join(wrong) or 'there are none'}")


def write(arguments: argparse.Namespace) -> str:
    """Makes all of it, then writes it; what was made, in words.

    Raises:
        ConfigError, ValueError, OSError, KeyError: nothing is written.
    """
    sweeps = [sweep_of(EXPERIMENTS / f"{name}.yaml") for name in SWEEPS]
    done: Done = {
        name: scores
        for sweep in sweeps
        for name, scores in finished_cells(sweep, sweep.path.with_suffix(".scores")).items()
    }
    if not done:
        raise ValueError("no cell is done: t2ikit sweep experiments/mini_paper.yaml --jobs 2")
    check_scores(done)
    text = arguments.page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{arguments.page} lacks the marks {BEGIN} and {END}")
    plotted, samples = curves(done), grids(sweeps[0], done)
    folder = arguments.images / "mini_paper"
    pictures = {path.name for path in folder.glob("*.webp")} | set(samples)
    linked = Path(os.path.relpath(arguments.images, arguments.page.parent)).as_posix()
    made = page(sweeps, done, pictures, linked)
    table = every_score(sweeps, done)
    write_whole(arguments.images / "mini_paper_curves.webp", plotted)
    for name, picture in samples.items():
        write_whole(folder / name, picture)
    write_whole(arguments.table, table)
    write_whole(arguments.page, f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")
    return f"{arguments.page}: {counts(sweeps, done)}"


def main(arguments: list[str] | None = None) -> int:
    """Writes page, table and pictures; the exit status: 1 where they cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mini_paper", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="has the two marks (%(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="%(default)s")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder (%(default)s)")
    try:
        print(write(parser.parse_args(arguments)))
    except (ConfigError, ValueError, OSError, KeyError, TypeError) as error:
        print(f"the page is left as it was: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
