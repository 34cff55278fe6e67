"""Curves and samples of the mini-paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.mini_paper_claims import EXTENDED, METHODS, NETWORKS, SEEN, Done, finished
from t2ikit.config.sweep import Sweep
from t2ikit.run.sweep_scores import CellScores, mean_and_interval
from t2ikit.run.sweeps import place_of

SHOWN = {
    "geneval/overall": "GenEval, extended prompts",
    "geneval/two_object": "two objects",
    "geneval/position": "position",
    "val/frechet_distance": "Frechet distance",
    "val/loss_fixed_t": "held-out loss at fixed t",
    "val/loss_fixed_t_train": "training loss at fixed t",
}


def plot_curves(done: Done, out: Path) -> None:
    """A row a network and number of scenes, a panel a score, a line a method: means over seeds, with their range.

    Args:
        done: finished cells.
        out: the WebP.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = [(network, "", title) for network, title in NETWORKS.items()]
    if any(name.startswith("few-") for name in done):
        figures.append(("cad_i", "few ", "CAD-I, 2,000 scenes"))
    figure, rows = pyplot.subplots(len(figures), len(SHOWN), figsize=(20, 3.3 * len(figures)), squeeze=False)
    for panels, (network, few, title) in zip(rows, figures, strict=True):
        for panel, (score, shown) in zip(panels, SHOWN.items(), strict=True):
            for method, label in METHODS.items():
                _plot_line(panel, finished(done, few + method, network), score, label)
            panel.set_title(f"{title}: {shown}", fontsize=9)
            panel.set_xlabel("steps")
            panel.grid(alpha=0.3)
        panels[0].legend(fontsize=7)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)
    pyplot.close(figure)


def _plot_line(panel: Any, cells: list[CellScores], score: str, label: str) -> None:
    """Mean over some cells, with their range; a method keeps its colour where it has no cell."""
    by_step: dict[int, list[float]] = {}
    for cell in cells:
        for step, value in cell.series.get(score, ()):
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    means = [mean_and_interval(by_step[step])[0] for step in steps]
    line = panel.plot(steps, means, marker="o", markersize=3, label=label)[0]
    ranges = [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps]
    panel.fill_between(steps, *ranges, alpha=0.15, color=line.get_color())


def save_grids(sweep: Sweep, folder: Path) -> None:
    """The last samples of every cell of seed 0 that was trained on this machine: single objects, then pairs seen."""
    for name, cell in sweep.cells.items():
        if cell.seed:
            continue
        for version in place_of(sweep, cell).versions()[:1]:
            grids = [sorted((version / f"samples/{snapshot}").glob("step-*.png"))[-1:] for snapshot in (EXTENDED, SEEN)]
            if all(grids):
                folder.mkdir(parents=True, exist_ok=True)
                _halves(*(Image.open(path) for (path,) in grids)).save(folder / f"{name}.webp", quality=85, method=6)


def _halves(first: Image.Image, second: Image.Image) -> Image.Image:
    """The upper halves of two grids of one size, one above the other."""
    joined, middle = first.copy(), first.height // 2
    joined.paste(second.crop((0, 0, second.width, first.height - middle)), (0, middle))
    return joined
