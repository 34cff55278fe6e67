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
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
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
    value,
    verdict,
)
from benchmarks.mini_paper_pictures import plot_curves, save_grids
from t2ikit.config.sweep import Sweep, sweep_of
from t2ikit.files import write_whole
from t2ikit.report.published import numbers_of
from t2ikit.run.sweep_scores import mean_and_interval
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


def entry(values: Sequence[float]) -> str:
    """Mean and half width of the interval, as a table shows them."""
    if not values:
        return "-"
    mean, half = mean_and_interval(values)
    return f"{mean:.3f}" + ("" if half is None else f" ± {half:.3f}")


def row(done: Done, kind: str, network: str, names: Iterable[str]) -> tuple[int, str]:
    """How many seeds of a kind are done, and the entries of some scores over them."""
    cells = finished(done, kind, network)
    found = [[v for scores in cells if (v := value(scores, name)) is not None] for name in names]
    return len(cells), " | ".join(map(entry, found))


def claims_table(done: Done) -> str:
    """Claim, differences by network and over both, verdict over both."""
    lines = ["| claim | difference of | CAD-I | DiT-I | both | pairs | here |", "|---" * 7 + "|"]
    for claim in CLAIMS:
        own = [entry(differences(done, claim, [network])) for network in NETWORKS]
        gaps = differences(done, claim)
        words = " | ".join([claim.text, claim.difference, *own, entry(gaps), str(len(gaps))])
        lines.append(f"| {words} | {verdict(gaps, claim.sign)} |")
    return "\n".join(lines)


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
    """On few scenes: where held-out loss and Frechet distance were lowest, and how far they had risen at the end."""
    lines = ["| cell | lowest held-out loss | at the end | lowest Frechet distance | at the end |", "|---" * 5 + "|"]
    for name in (name for name in done if name.startswith("few-")):
        shown = [name]
        for score in (HELD_OUT, DISTANCE):
            step, least = min(done[name].series[score], key=lambda pair: pair[1])
            shown += [f"{least:.3f}, step {step:,}", f"{done[name].series[score][-1][1]:.3f}"]
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


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


def samples_table(images: Path, shown: str) -> str:
    """The pictures of the cells of seed 0 that there are, a row a network."""
    lines = [f"| | {' | '.join(METHODS.values())} |", "|---" * (len(METHODS) + 1) + "|"]
    for network, words in NETWORKS.items():
        names = [f"main-{network}-{method}-seed0.webp" for method in METHODS]
        cells = [f"![{name}]({shown}/{name})" if (images / name).is_file() else "-" for name in names]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def counts(sweeps: Sequence[Sweep], done: Done) -> str:
    """How many cells of each sweep are done, what a cell cost, and on which processors they ran."""
    progress = [f"{sum(name in done for name in sweep.cells)} of {len(sweep.cells)}" for sweep in sweeps]
    shown = ", ".join(f"{words} {count}" for words, count in zip(SWEEPS.values(), progress, strict=True))
    cpu = [scores.cpu_seconds for scores in done.values() if scores.cpu_seconds is not None]
    cost = f"; {min(cpu) / 60:.1f} to {max(cpu) / 60:.1f} CPU-minutes a cell" if cpu else ""
    processors = Counter(scores.processor for scores in done.values())
    return f"Cells done: {shown}{cost}; processors: {', '.join(f'{name} {n}' for name, n in processors.most_common())}"


def page(sweeps: Sequence[Sweep], done: Done, images: Path) -> str:
    """What stands between the marks; the pictures that ``images`` holds are shown."""
    parts = [
        f"{counts(sweeps, done)}. All scores at all steps: [mini-paper.csv](mini-paper.csv).",
        "### Which claims appear\n\n"
        + claims_table(done)
        + f"\n\nIntervals are of 95 %: of {len(CLAIMS)} claims one or two may be decided by chance alone.",
        "### Tasks, extended prompts; two objects are pairs that training never shows\n\n"
        + scores_table(done, EXTENDED, "v2", "extended prompts"),
        "### Pairs that training shows, extended prompts\n\n" + scores_table(done, SEEN),
        "### Tasks, original prompts\n\n" + scores_table(done, ORIGINAL, "v1", "original prompts"),
        "### Judged by colour and place alone, extended prompts\n\n" + scores_table(done, PLACES),
        "### Distribution and overfitting\n\n"
        + losses_table(done)
        + "\n\nDistances and losses of AIO are those of AIO "
        "captions: they cannot be compared with the other rows.",
        "![Scores and losses against steps](images/mini_paper_curves.webp)",
        "### Samples, seed 0: upper half single objects, lower half two objects (pairs seen)\n\n"
        + samples_table(images / "mini_paper", "images/mini_paper"),
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


def main(arguments: list[str] | None = None) -> int:
    """Writes page, table and pictures; the exit status: 1 without a finished cell."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mini_paper", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="%(default)s")
    parser.add_argument("--table", type=Path, default=TABLE, help="%(default)s")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder (%(default)s)")
    args = parser.parse_args(arguments)
    sweeps = [sweep_of(EXPERIMENTS / f"{name}.yaml") for name in SWEEPS]
    done: Done = {
        name: scores
        for sweep in sweeps
        for name, scores in finished_cells(sweep, sweep.path.with_suffix(".scores")).items()
    }
    if not done:
        print("no cell is done: t2ikit sweep experiments/mini_paper.yaml --jobs 2", file=sys.stderr)
        return 1
    text = args.page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{args.page} lacks the marks {BEGIN} and {END}")
    plot_curves(done, args.images / "mini_paper_curves.webp")
    save_grids(sweeps[0], args.images / "mini_paper")  # the page shows no others
    write_whole(args.table, every_score(sweeps, done))
    write_whole(args.page, f"{before}{BEGIN}\n\n{page(sweeps, done, args.images)}\n\n{END}{after}")
    print(f"{args.page}: {counts(sweeps, done)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
