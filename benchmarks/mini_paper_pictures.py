"""Curves and samples of the mini-paper, as the bytes of WebP files."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from benchmarks.mini_paper_claims import EXTENDED, GAP, HELD_OUT, METHODS, NETWORKS, SEEN, Done, finished, series
from t2ikit.checkpoints.runs import is_finished
from t2ikit.config.sweep import Sweep
from t2ikit.run.sweep_scores import CellScores, mean_and_interval
from t2ikit.run.sweeps import place_of

SHOWN = {
    "geneval/overall": "GenEval, extended prompts",
    "geneval_seen/two_object": "two objects, pairs seen",
    "geneval_seen/position": "position, pairs seen",
    "val/frechet_distance": "Frechet distance",
    HELD_OUT: "held-out loss at fixed t",
    GAP: "held-out − training loss",
}


def curves(done: Done) -> bytes:
    """A row a network and number of scenes, a panel a score, a line a method: means over seeds, with their range.

    A network or a method without a finished cell is left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [(network, "", title) for network, title in NETWORKS.items()]
    figures.append(("cad_i", "few ", "CAD-I, 2,000 scenes"))
    figures = [(net, few, title) for net, few, title in figures if any(finished(done, few + m, net) for m in METHODS)]
    figure, rows = pyplot.subplots(len(figures), len(SHOWN), figsize=(20, 3.3 * len(figures)), squeeze=False)
    for panels, (network, few, title) in zip(rows, figures, strict=True):
        for panel, (score, shown) in zip(panels, SHOWN.items(), strict=True):
            for color, (method, label) in enumerate(METHODS.items()):
                if cells := finished(done, few + method, network):
                    _plot_line(panel, cells, score, label, f"C{color}")
            panel.set_title(f"{title}: {shown}", fontsize=9)
            panel.set_xlabel("steps")
            panel.grid(alpha=0.3)
        panels[0].legend(fontsize=7)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, dpi=80, format="webp")
    pyplot.close(figure)
    return file.getvalue()


def _plot_line(panel: Any, cells: list[CellScores], score: str, label: str, color: str) -> None:
    """Mean over some cells, with their range."""
    by_step: dict[int, list[float]] = {}
    for cell in cells:
        for step, value in series(cell, score):
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    means = [mean_and_interval(by_step[step])[0] for step in steps]
    panel.plot(steps, means, marker="o", markersize=3, label=label, color=color)
    ranges = [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps]
    panel.fill_between(steps, *ranges, alpha=0.15, color=color)


def grids(sweep: Sweep, done: Done) -> dict[str, bytes]:
    """The last samples of every finished cell of seed 0 whose run is on this machine, by name of the file: single
    objects, then pairs seen."""
    found = {}
    for name, cell in sweep.cells.items():
        if cell.seed or name not in done:
            continue
        for version in filter(is_finished, place_of(sweep, cell).versions()):
            paths = [sorted((version / f"samples/{snapshot}").glob("step-*.png"))[-1:] for snapshot in (EXTENDED, SEEN)]
            if all(paths) and f"{name}.webp" not in found:
                file = io.BytesIO()
                _halves(*(Image.open(path) for (path,) in paths)).save(file, "webp", quality=85, method=6)
                found[f"{name}.webp"] = file.getvalue()
    return found


def _halves(first: Image.Image, second: Image.Image) -> Image.Image:
    """The upper halves of two grids of one size, one above the other."""
    joined, middle = first.copy(), first.height // 2
    joined.paste(second.crop((0, 0, second.width, first.height - middle)), (0, middle))
    return joined
