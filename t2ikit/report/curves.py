"""The figures of a run: losses, scores and rates against steps, of one run or of several above each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from t2ikit.report.page import Cell, Paragraph, Plotted, Table
from t2ikit.report.plots import Line, lines
from t2ikit.report.run_folder import Run

Points = Sequence[tuple[int, float]]

MOST_POINTS = 500
"""Points of a line; longer ones are thinned to every n-th value and the last."""
MOST_ROWS = 25
MOST_OTHERS = 24
_LOG_EVERY = 50
_BIN = re.compile(r"train/loss_t/([\d.]+)-([\d.]+)")
_FIXED, _FIXED_TRAIN = "loss_fixed_t", "loss_fixed_t_train"
_TIMES = "/seconds/"
_RATES = {"train/learning_rate": "learning rate", "train/images_per_second": "images per second"}


@dataclass(frozen=True)
class Curve:
    """A line with its name in the legend, its points, the number of its colour, and whether it is dashed."""

    name: str
    points: Points
    color: int
    dashed: bool = False


def losses(runs: Sequence[Run]) -> list[Paragraph | Plotted]:
    """Training loss against that of held-out images, losses at fixed levels of noise, by source, by noise bin."""
    return [*_held_out(runs), *_fixed(runs), *_by_source(runs), *_by_noise(runs)]


def scores(runs: Sequence[Run]) -> Iterator[Plotted]:
    """A figure for each score that some run has at two steps or more."""
    names = dict.fromkeys(name for run in runs for name in run.series if _is_score(name))
    for name in names:
        found = [Curve(run.name, run.series[name], index) for index, run in enumerate(runs) if name in run.series]
        if any(len(curve.points) > 1 for curve in found):
            yield figure(f"{name} against steps", name, found)


def rates(runs: Sequence[Run]) -> list[Paragraph | Plotted]:
    """Learning rate, images per second, and whatever else was logged."""
    others = {name: name for run in runs for name in run.series if _is_other(name)}
    names = {**_RATES, **{name: name for name in others if name not in _RATES}}
    figures: list[Paragraph | Plotted] = []
    for name, title in names.items():
        found = [Curve(run.name, run.series[name], index) for index, run in enumerate(runs) if name in run.series]
        if found and len(figures) < MOST_OTHERS:
            figures.append(figure(title.capitalize() if name in _RATES else name, title, found))
    left = sum(any(name in run.series for run in runs) for name in names) - len(figures)
    return [*figures, *([Paragraph(f"{left} more logged values are left out: metrics.csv has them.")] if left else [])]


def figure(caption: str, y: str, curves: Sequence[Curve], by_order: bool = False) -> Plotted:
    """Curves over steps with the table of their numbers.

    Args:
        caption, y: what it shows.
        curves: its lines.
        by_order: colours go with the order of the lines, from the first to the last one.
    """
    styled = [Line(curve.name, thinned(curve.points, MOST_POINTS), curve.color, curve.dashed) for curve in curves]
    return Plotted(caption, lines("step", y, styled, by_order), _table(caption, curves))


def thinned(points: Points, most: int) -> Points:
    """At most ``most`` of the points, evenly spaced, the last one among them; those that are no number are left out."""
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) <= most:
        return finite
    stride = (len(finite) - 1) / (most - 1)
    return [finite[round(index * stride)] for index in range(most)]


def _table(caption: str, curves: Sequence[Curve]) -> Table:
    steps = sorted({step for curve in curves for step, _ in curve.points})
    shown = [step for step, _ in thinned([(step, 0.0) for step in steps], MOST_ROWS)]
    values = [dict(curve.points) for curve in curves]
    rows: list[list[Cell]] = [[step, *(number(value.get(step)) for value in values)] for step in shown]
    cut = len(shown) < len(steps)
    notes = [f"{len(shown)} of {len(steps)} steps; metrics.csv of the run has all of them."] if cut else []
    return Table(caption, ["step", *(curve.name for curve in curves)], rows, notes)


def number(value: float | None) -> str | None:
    """A value with four digits."""
    return None if value is None else f"{value:.4g}"


def _held_out(runs: Sequence[Run]) -> list[Plotted]:
    several, curves = len(runs) > 1, list[Curve]()
    for index, run in enumerate(runs):
        for name, points in run.series.items():
            held_out = name.endswith("/loss") and not name.startswith("train/") and _TIMES not in name
            if name == "train/loss" or held_out:
                title = name.replace("/loss", " loss" if held_out else "ing loss")
                color = index if several else len(curves)
                curves.append(Curve(f"{run.name}: {title}" if several else title, points, color, several and held_out))
    caption = (
        "Loss of training images and of held-out ones (dashed where runs are compared)"
        if several
        else ("Loss of training images and of held-out ones")
    )
    return [figure(caption, "loss", curves)] if curves else []


def _fixed(runs: Sequence[Run]) -> list[Paragraph | Plotted]:
    several, curves = len(runs) > 1, list[Curve]()
    for index, run in enumerate(runs):
        for name, points in run.series.items():
            if name.endswith((f"/{_FIXED}", f"/{_FIXED_TRAIN}")):
                train = name.endswith(_FIXED_TRAIN)
                title = f"{name.partition('/')[0]}, {'training' if train else 'held-out'} images"
                color = index if several else len(curves)
                curves.append(Curve(f"{run.name}: {title}" if several else title, points, color, several and train))
    if not curves:
        return []
    text = (
        "The next figure compares runs of any objective: the error of the velocity at eight fixed levels of noise, "
        "with the averaged weights. Where the line of held-out images leaves that of training images upwards, the "
        "model overfits."
    )
    return [Paragraph(text), figure("Loss at fixed levels of noise, training against held-out images", "loss", curves)]


def _by_source(runs: Sequence[Run]) -> list[Plotted]:
    several, curves = len(runs) > 1, list[Curve]()
    for index, run in enumerate(runs):
        names = [name for name in run.series if name.startswith("train/loss/")]
        for row, name in enumerate(names):
            title = name.removeprefix("train/loss/")
            color = index if several else row
            curves.append(
                Curve(f"{run.name}: {title}" if several else title, run.series[name], color, several and row > 0)
            )
    return [figure("Training loss by source and by part", "loss", curves)] if len(curves) > len(runs) else []


def _by_noise(runs: Sequence[Run]) -> Iterator[Plotted]:
    for run in runs:
        bins = {name: match for name in run.series if (match := _BIN.fullmatch(name))}
        if len(bins) < 2:
            continue
        ordered = sorted(bins, key=lambda name: float(bins[name][1]))
        curves = [
            Curve(f"t {bins[name][1]} to {bins[name][2]}", run.series[name], index)
            for index, name in enumerate(ordered)
        ]
        of_run = f"{run.name}: training" if len(runs) > 1 else "Training"
        yield figure(f"{of_run} loss by noise level t (1 is pure noise)", "loss", curves, by_order=True)


def _is_score(name: str) -> bool:
    end = name.rpartition("/")[2]
    return not name.startswith("train/") and _TIMES not in name and end not in ("loss", _FIXED, _FIXED_TRAIN)


def _is_other(name: str) -> bool:
    return name.startswith("train/") and name != "train/loss" and not name.startswith(("train/loss/", "train/loss_t/"))


def seconds_of(
    series: Mapping[str, Points], images_a_step: int | None, every: int | None = None
) -> tuple[float | None, float]:
    """Seconds of training, and of evaluation, by what a run logged; None where it did not say.

    Args:
        series: of the run.
        images_a_step: samples of an optimizer step.
        every: steps from one logged value to the next (``trainer.log_every_n_steps``); None for Lightning's 50.
    """
    speeds, training = series.get("train/images_per_second", ()), 0.0
    before = max(0, speeds[0][0] - (every or _LOG_EVERY)) if speeds else 0  # a fork begins late
    for step, speed in speeds:
        if images_a_step is not None and speed > 0 and step > before:
            training += (step - before) * images_a_step / speed
        before = step
    evaluation = math.fsum(value for name, points in series.items() if _TIMES in name for _, value in points)
    return (training if speeds and images_a_step is not None else None), evaluation
