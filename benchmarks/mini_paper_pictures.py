"""Curves and samples of the mini-paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from t2ikit.config.sweep import Sweep
from t2ikit.run.sweep_scores import CellScores, mean_and_interval
from t2ikit.run.sweeps import place_of

SHOWN = {
    "geneval/overall": "GenEval, extended prompts",
    "geneval/two_object": "two objects",
    "geneval/position": "position",
    "val/loss_fixed_t": "held-out loss at fixed t",
    "val/loss_fixed_t_train": "training loss at fixed t",
}


def plot_curves(
    done: Mapping[str, CellScores], networks: Mapping[str, str], methods: Mapping[str, str], out: Path
) -> None:
    """A row a network, a panel a score, a line a method: means over seeds, with their range.

    Args:
        done: finished cells, ``main-<network>-<method>-seed<N>``.
        networks, methods: keys in the cells' names, and what is shown of them.
        out: the WebP.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(len(networks), len(SHOWN), figsize=(17, 3.3 * len(networks)), squeeze=False)
    for panels, (network, network_name) in zip(rows, networks.items(), strict=True):
        for panel, (score, title) in zip(panels, SHOWN.items(), strict=True):
            for method, label in methods.items():
                cells = [scores for name, scores in done.items() if name.startswith(f"main-{network}-{method}-")]
                by_step: dict[int, list[float]] = {}
                for cell in cells:
                    for step, value in cell.series.get(score, ()):
                        by_step.setdefault(step, []).append(value)
                steps = sorted(by_step)
                means = [mean_and_interval(by_step[step])[0] for step in steps]
                line = panel.plot(steps, means, marker="o", markersize=3, label=label)[0]
                ranges = [min(by_step[step]) for step in steps], [max(by_step[step]) for step in steps]
                panel.fill_between(steps, *ranges, alpha=0.15, color=line.get_color())
            panel.set_title(f"{network_name}: {title}", fontsize=9)
            panel.set_xlabel("steps")
            panel.grid(alpha=0.3)
        panels[0].legend(fontsize=7)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)
    pyplot.close(figure)


def save_grids(sweep: Sweep, folder: Path) -> None:
    """The last samples for GenEval's extended prompts of every cell of seed 0 that was trained on this machine."""
    for name, cell in sweep.cells.items():
        if cell.seed:
            continue
        for version in place_of(sweep, cell).versions()[:1]:
            for picture in sorted((version / "samples/geneval").glob("step-*.png"))[-1:]:
                folder.mkdir(parents=True, exist_ok=True)
                Image.open(picture).save(folder / f"{name}.webp", quality=85, method=6)
