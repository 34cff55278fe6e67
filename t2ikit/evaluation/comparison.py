"""Scores set beside other scores, where their fingerprints allow it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from t2ikit.metrics.fingerprint import Score, compare, read_scores
from t2ikit.metrics.geneval.comparison import compare_results

RESULTS = "geneval_results.jsonl"


@dataclass(frozen=True)
class Found:
    """Scores in a folder.

    Attributes:
        scores: by name.
        details: folder of what they were made of; it may not exist.
    """

    scores: dict[str, Score]
    details: Path


def find_scores(folder: Path, snapshot: str, option: str) -> Found:
    """The scores of a run (those of its last step) or of an evaluation.

    Args:
        folder: a run folder, a folder that holds ``scores/``, or ``scores/`` itself.
        snapshot: whose scores, in a run.
        option: what gave the folder, for the message.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file that is no score.
    """
    folders = [
        folder / "samples" / snapshot / "scores",
        folder / "scores",
        *([folder] if folder.name == "scores" else []),
    ]
    for candidate in folders:
        steps = sorted(candidate.glob("step-*/"))
        scores = read_scores(steps[-1] if steps else candidate)
        if scores:
            details = candidate.parent / "details"
            return Found(scores, details / steps[-1].name if steps else details)
    raise FileNotFoundError(
        f"{option} {folder}: no scores of {snapshot} in it; give a run, or a folder that holds scores/"
    )


def score_table(
    title: str,
    scores: Mapping[str, Score],
    others: Mapping[str, Score] | None = None,
    varied: Collection[str] = (),
    other_title: str = "other",
    unknown: Mapping[str, Collection[str]] | None = None,
) -> Table:
    """A line a score; with others also theirs and the difference, for the scores that both have.

    Args:
        title: of the table.
        scores, others: by name.
        varied: fields of the fingerprints that may differ.
        other_title: of the other column.
        unknown: name of a score -> fields that may differ in it too, since one side does not know them.

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
            compare(score.fingerprint, other.fingerprint, (*varied, *(unknown or {}).get(name, ())))
            cells += [shown(other), f"{score.value - other.value:+.4g}"]
        table.add_row(*cells)
    return table


def paired_tables(details: Path, others: Path, other_title: str) -> list[Table]:
    """Where both have verdicts of GenEval: each task's difference with its confidence, paired by prompt.

    Args:
        details, others: the folders with ``geneval_results.jsonl``.
        other_title: of the other column.

    Raises:
        ValueError: verdicts of unlike prompts, or a file that cannot be read.
    """
    tables = []
    for ours in sorted(details.glob(f"*{RESULTS}")):
        theirs = others / ours.name
        if theirs.is_file():
            table = Table(title=f"{ours.name.removesuffix(RESULTS)}GenEval, paired by prompt")
            for column in ("task", "this", other_title, "difference", "95 % interval", "p"):
                table.add_column(column, justify="left" if column == "task" else "right", overflow="fold")
            for task, paired in compare_results(theirs, ours).items():
                interval = f"[{paired.low:+.3f}, {paired.high:+.3f}]"
                values = (f"{paired.second:.3f}", f"{paired.first:.3f}", f"{paired.difference:+.3f}")
                table.add_row(task, *values, interval, f"{paired.p_value:.2g}")
            tables.append(table)
    return tables


def shown(score: Score) -> str:
    """The value, and its standard error where it has one."""
    error = score.standard_error
    return f"{score.value:.4g}" if error is None else f"{score.value:.4g} \u00b1 {error:.2g}"
