"""Scores set beside other scores, where their fingerprints allow it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from rich.table import Table

from t2ikit.metrics.fingerprint import Score, compare, read_scores


def find_scores(folder: Path, snapshot: str, option: str) -> dict[str, Score]:
    """The scores of a run (those of its last step) or of an evaluation.

    Args:
        folder: a run folder, a folder that holds ``scores/``, or ``scores/`` itself.
        snapshot: whose scores, in a run.
        option: what gave the folder, for the message.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file that is no score.
    """
    places = [
        folder / "samples" / snapshot / "scores",
        folder / "scores",
        *([folder] if folder.name == "scores" else []),
    ]
    for place in places:
        steps = sorted(place.glob("step-*/"))
        scores = read_scores(steps[-1] if steps else place)
        if scores:
            return scores
    raise FileNotFoundError(
        f"{option} {folder}: no scores of {snapshot} in it; give a run, or a folder that holds scores/"
    )


def score_table(
    title: str,
    scores: Mapping[str, Score],
    others: Mapping[str, Score] | None = None,
    varied: Collection[str] = (),
    other_title: str = "other",
) -> Table:
    """A line a score; with others also theirs and the difference, for the scores that both have.

    Args:
        title: of the table.
        scores, others: by name.
        varied: fields of the fingerprints that may differ.
        other_title: of the other column.

    Raises:
        UnlikeFingerprints: a score whose fingerprints differ in another field; names it.
        ValueError: no score in common.
    """
    table = Table(title=title)
    table.add_column("score")
    table.add_column("value" if others is None else "this", justify="right")
    if others is not None:
        table.add_column(other_title, justify="right", overflow="fold")
        table.add_column("difference", justify="right")
        if not scores.keys() & others.keys():
            raise ValueError(f"no score in common: {', '.join(scores)} here, {', '.join(others)} there")
    for name, score in scores.items():
        cells = [name, shown(score)]
        if others is not None and name in others:
            other = others[name]
            compare(score.fingerprint, other.fingerprint, varied)
            cells += [shown(other), f"{score.value - other.value:+.4g}"]
        table.add_row(*cells)
    return table


def shown(score: Score) -> str:
    """The value, and its standard error where it has one."""
    error = score.standard_error
    return f"{score.value:.4g}" if error is None else f"{score.value:.4g} \u00b1 {error:.2g}"
