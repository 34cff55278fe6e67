"""An analysis as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from t2ikit.config.origins import printable
from t2ikit.report.preference.analysis import Analysis, Pair, Preference
from t2ikit.report.preference.statistics import Estimate, ExactTest


def tables(analysis: Analysis) -> list[Table]:
    """One for every two models, one of the strengths where there are some, one of sides, one of raters."""
    found = [_pair_table(pair) for pair in analysis.pairs]
    if analysis.strengths:
        found.append(_strength_table(analysis))
    return [*found, _side_table(analysis), _rater_table(analysis)]


def _table(title: str, columns: Sequence[str]) -> Table:
    """The first column left, the others right."""
    table = Table(title=Text(printable(title)))  # a name in brackets is no markup
    for index, name in enumerate(columns):
        table.add_column(Text(printable(name)), justify="right" if index else "left", overflow="fold")
    return table


def _add(table: Table, cells: Sequence[str]) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _pair_table(pair: Pair) -> Table:
    table = _table(f"{pair.first} against {pair.second}", ["", *pair.questions])
    rows = {
        "ratings": lambda part: str(part.ratings),
        f"{pair.first} is better": lambda part: _percent(part.shares.first),
        "unsure": lambda part: _percent(part.shares.same),
        f"{pair.second} is better": lambda part: _percent(part.shares.second),
        f"net: {pair.first} - {pair.second}": lambda part: _percent(part.shares.net, "+"),
        f"prompts for {pair.first}, tied, for {pair.second}": _prompts,
        f"{pair.first} among decided prompts": lambda part: _tested(part.prompts),
        "sign test, p": lambda part: f"{part.prompts.p:.2g}",
        "Krippendorff's alpha, nominal": lambda part: _number(part.alpha_nominal),
        "Krippendorff's alpha, ordinal": lambda part: _number(part.alpha_ordinal),
    }
    for name, cell in rows.items():
        _add(table, [name, *(cell(part) for part in pair.questions.values())])
    return table


def _prompts(part: Preference) -> str:
    return f"{part.prompts.hits}, {part.prompts_tied}, {part.prompts.misses}"


def _strength_table(analysis: Analysis) -> Table:
    how = "Davidson" if analysis.ties == "davidson" else "Bradley-Terry, a tie half a win of each"
    table = _table(f"Elo ({how})", ["model", *analysis.strengths])
    for model in analysis.models:
        _add(table, [model, *(_points(part.elo[model]) for part in analysis.strengths.values())])
    if any(part.left_out for part in analysis.strengths.values()):
        counts = [str(part.left_out) for part in analysis.strengths.values()]
        _add(table, ["resamples left out: infinite", *counts])
    return table


def _side_table(analysis: Analysis) -> Table:
    table = _table("Sides", ["", *analysis.sides])
    _add(table, ["left among decided ratings", *(_tested(test) for test in analysis.sides.values())])
    _add(table, ["exact test, p", *(f"{test.p:.2g}" for test in analysis.sides.values())])
    return table


def _rater_table(analysis: Analysis) -> Table:
    columns = ["rater", "answered", "unsure", "left", "median s", "same answer to repeats", "order"]
    table = _table("Raters", columns)
    for rater in analysis.raters:
        seconds = "–" if rater.median_ms is None else f"{rater.median_ms / 1000:.1f}"
        cells = [rater.name, f"{rater.answered} of {rater.asked}", _share(rater.same), _share(rater.left), seconds]
        repeats = f"{rater.agreed} of {rater.repeats}" if rater.repeats else "–"
        _add(table, [*cells, repeats, "as asked" if rater.follows else "another"])
    return table


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(estimate: Estimate, sign: str = "") -> str:
    limits = _limits(estimate, 100, f"{sign}.1f")
    return f"{100 * estimate.value:{sign}.1f} %{limits}"


def _tested(test: ExactTest) -> str:
    return "–" if test.share is None else _percent(test.share)


def _points(estimate: Estimate) -> str:
    return f"{estimate.value:+.0f}{_limits(estimate, 1, '+.0f')}"


def _limits(estimate: Estimate, factor: float, form: str) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{factor * estimate.low:{form}}, {factor * estimate.high:{form}}]"
