"""Scores against the guidance weight: table, CSV and figure, as Figure 9 of "Greedy Growing Enables High-Resolution
Pixel-Based Diffusion Models" (2024, arXiv 2405.16759) shows FID, FD-DINOv2, CMMD and CLIPScore.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich.table import Table

from t2ikit.evaluation.search import SELECTION
from t2ikit.evaluation.validation import SCORES
from t2ikit.files import partial_of, publish, write_whole
from t2ikit.metrics.fingerprint import Score, compare

NO_CURVES = (*SCORES, "kid_std", "num_images", "num_prompts")
"""Scores that guidance does not move, or that say how sure another one is."""

Sweep = Mapping[float, Sequence[Score]]


def columns(sweep: Sweep) -> list[str]:
    """Names of the scores that every weight has, in their order.

    Raises:
        UnlikeFingerprints: the scores of two weights differ in more than the guidance.
    """
    first, *rest = ({score.name: score for score in scores} for scores in sweep.values())
    names = [name for name in first if all(name in other for other in rest)]
    for name in names:
        for other in rest:
            compare(first[name].fingerprint, other[name].fingerprint, ("guidance",))
    return names


def curves(sweep: Sweep) -> list[str]:
    """The scores that are worth a panel of the figure; what a search reached is no result."""
    judged = [name for name in columns(sweep) if not name.startswith(f"{SELECTION}/")]
    return [name for name in judged if _plain(name) not in NO_CURVES and not name.endswith("_se")]


def best(values: Sequence[float], less_is_better: bool) -> int | None:
    """Index of the best value; None where all are equal."""
    if len(set(values)) == 1:
        return None
    return (min if less_is_better else max)(range(len(values)), key=lambda index: values[index])


def write_csv(path: Path, sweep: Sweep) -> None:
    """One line a weight: guidance, every score, and its standard error where there is one."""
    names = columns(sweep)
    table = {weight: {score.name: score for score in scores} for weight, scores in sweep.items()}
    unsure = [name for name in names if any(row[name].standard_error is not None for row in table.values())]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["guidance", *(column for name in names for column in _columns_of(name, unsure))])
    for weight, row in table.items():
        cells: list[str] = [repr(weight)]
        for name in names:
            cells.append(repr(row[name].value))
            if name in unsure:
                error = row[name].standard_error
                cells.append("" if error is None else repr(error))
        writer.writerow(cells)
    write_whole(path, text.getvalue())


def sweep_table(sweep: Sweep, less_is_better: Collection[str]) -> Table:
    """A line a score, a column a weight, the best value marked: the least of the scores ``less_is_better``."""
    table = Table(title="scores by guidance weight (best: *)")
    table.add_column("score")
    for weight in sweep:
        table.add_column(f"w = {weight:g}", justify="right")
    plotted = curves(sweep)
    for name in columns(sweep):
        values = [next(score.value for score in scores if score.name == name) for scores in sweep.values()]
        top = best(values, name in less_is_better) if name in plotted else None
        table.add_row(name, *(f"{value:.4g}{'*' if index == top else ''}" for index, value in enumerate(values)))
    return table


def plot_sweep(path: Path, sweep: Sweep, title: str, less_is_better: Collection[str]) -> None:
    """A panel a score: its curve over the guidance weight, standard errors as bars, the best weight marked.

    Args:
        path: of the PNG file.
        sweep: scores by guidance weight.
        title: of the figure.
        less_is_better: names of the scores of which the least value is the best; of the others it is the greatest.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, weights = curves(sweep), sorted(sweep)
    rows = [{score.name: score for score in sweep[weight]} for weight in weights]
    across = min(4, max(1, math.ceil(math.sqrt(len(names)))))
    down = max(1, math.ceil(len(names) / across))
    figure = Figure(figsize=(3.2 * across, 2.6 * down), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for panel, name in enumerate(names, start=1):
        axes = figure.add_subplot(down, across, panel)
        values = [row[name].value for row in rows]
        errors = [row[name].standard_error or 0.0 for row in rows]
        axes.errorbar(weights, values, errors if any(errors) else None, marker="o", markersize=4, linewidth=1.3)
        less = name in less_is_better
        top, better = best(values, less), "lower" if less else "higher"
        summary = f"always {values[0]:.4g}"
        if top is not None:
            axes.plot(weights[top], values[top], marker="s", markersize=11, fillstyle="none", color="tab:red")
            summary = f"best {values[top]:.4g} at {weights[top]:g}"
        axes.set_title(f"{name} ({better} is better)\n{summary}", fontsize=8)
        axes.set_xlabel("guidance w", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        canvas.print_png(str(partial))
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(name: str) -> str:
    return name.rpartition("/")[2]


def _columns_of(name: str, unsure: Sequence[str]) -> list[str]:
    return [name, f"{name}_standard_error"] if name in unsure else [name]
