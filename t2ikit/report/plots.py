"""Figures of plotly in one style: colours that can be told apart in light and dark, and no background of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Plot

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c7ae6", "#7f8c8d")
"""Okabe and Ito's colours, which colour-blind readers can tell apart, and two more."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")


@dataclass(frozen=True)
class Series:
    """Values by name, with their standard errors.

    Attributes:
        name: in the legend.
        values: one a category; None for none.
        errors: one a category, or none at all.
        hollow: drawn as outlines, such as numbers of a paper.
    """

    name: str
    values: Sequence[float | None]
    errors: Sequence[float | None] = ()
    hollow: bool = False


def points(categories: Sequence[str], series: Sequence[Series], y: str, lines: Mapping[str, float]) -> Plot:
    """Markers above categories, one kind a series.

    Args:
        categories: of the horizontal axis.
        series: each with a value a category.
        y: what the values are.
        lines: dashed levels by their name.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for index, entry in enumerate(series):
        figure.add_trace(
            Scatter(
                x=list(categories),
                y=list(entry.values),
                name=entry.name,
                mode="markers",
                marker=_marker(index, entry.hollow),
                error_y={"type": "data", "array": list(entry.errors), "thickness": 1.5} if entry.errors else None,
            )
        )
    for index, (name, level) in enumerate(lines.items()):  # names of near levels stand at other ends
        where = ("top right", "bottom left", "top left", "bottom right")[index % 4]
        line = {"dash": "dash", "width": 1.5, "color": "#7f8c8d"}
        figure.add_hline(level, line=line, annotation={"text": name}, annotation_position=where)
    return _styled(figure, "", y)


def plane(x: str, y: str, marks: Mapping[str, Sequence[tuple[str, float, float]]], hollow: Sequence[str] = ()) -> Plot:
    """Named points in the plane.

    Args:
        x, y: what the axes are.
        marks: (name, x, y) of the points of each series.
        hollow: series that are drawn as outlines.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for index, (name, entries) in enumerate(marks.items()):
        figure.add_trace(
            Scatter(
                x=[entry[1] for entry in entries],
                y=[entry[2] for entry in entries],
                text=[entry[0] for entry in entries],
                name=name,
                mode="markers+text",
                textposition="top center",
                textfont={"size": 11},
                marker=_marker(index, name in hollow),
            )
        )
    return _styled(figure, x, y)


def curves(x: str, y: str, series: Mapping[str, Sequence[tuple[float, float, float]]]) -> Plot:
    """Lines with error bars over numbers.

    Args:
        x, y: what the axes are.
        series: (x, y, standard error) of the points of each line.
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for index, (name, entries) in enumerate(series.items()):
        figure.add_trace(
            Scatter(
                x=[entry[0] for entry in entries],
                y=[entry[1] for entry in entries],
                error_y={"type": "data", "array": [entry[2] for entry in entries]},
                name=name,
                mode="lines+markers",
                marker=_marker(index, False),
                line={"color": COLORS[index % len(COLORS)]},
            )
        )
    return _styled(figure, x, y)


def _marker(index: int, hollow: bool) -> dict[str, object]:
    color, symbol = COLORS[index % len(COLORS)], SYMBOLS[index % len(SYMBOLS)]
    return {"color": color, "size": 11, "symbol": f"{symbol}-open" if hollow else symbol, "line": {"width": 2}}


def _styled(figure: Plot, x: str, y: str) -> Plot:
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        template="none",
        paper_bgcolor=clear,
        plot_bgcolor=clear,
        margin={"l": 56, "r": 12, "t": 8, "b": 48},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        font={"family": "system-ui, sans-serif", "size": 13},
        hovermode="closest",
        showlegend=len(figure.data) > 1,
    )
    figure.update_xaxes(title={"text": x}, automargin=True, showgrid=True)
    figure.update_yaxes(title={"text": y}, automargin=True, showgrid=True, rangemode="tozero")
    return figure
