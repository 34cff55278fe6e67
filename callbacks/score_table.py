"""Ends a run with a table: every score of every snapshot, first and last."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table

from t2ikit.callbacks.snapshot import scores_folder
from t2ikit.evaluation.comparison import shown
from t2ikit.metrics.fingerprint import Score, UnlikeFingerprints, compare, read_scores


class ScoreTable(L.Callback):
    """Prints the scores of all snapshots at their first and last step when the run ends.

    A column is the first or last step of all snapshots; a score of another step has its own beside it. List it after
    the snapshots.

    Args:
        note: a sentence below the table, e.g. what the scores may be compared with.
    """

    def __init__(self, note: str = "") -> None:
        super().__init__()
        self.note = note
        self._started = time.perf_counter()

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        histories = {name: history for name, history in pl_module.run_log.scores.items() if history}
        if not histories or not trainer.is_global_zero:
            return
        first = min(min(history) for history in histories.values())
        last = max(max(history) for history in histories.values())
        networks: set[str] = set()
        table = Table(title="Scores" if getattr(pl_module, "averages", None) is None else "Scores (EMA weights)")
        table.add_column("score")
        columns = sorted({first, last})
        for step in columns:
            table.add_column(f"step {step}", justify="right")
        refused: dict[str, list[str]] = {}
        for snapshot, history in histories.items():
            steps = min(history), max(history)
            before, after = (read_scores(scores_folder(trainer, snapshot, step)) for step in steps)
            networks |= {score.fingerprint.features for score in after.values() if score.fingerprint.features}
            for name, value in history[steps[1]].items():
                later = shown(after[name]) if name in after else f"{value:.4g}"
                only = len(history) == 1  # a snapshot of one step is shown once, under its step
                unlike = None if only or name not in history[steps[0]] else _unlike(before.get(name), after.get(name))
                if unlike is not None:
                    refused.setdefault(unlike, []).append(f"{snapshot}/{name}")
                earlier = None if only or unlike is not None else history[steps[0]].get(name)
                cells = ["-", _at(later, steps[1], last)]
                if earlier is not None:
                    cells[0] = _at(f"{earlier:.4g}", steps[0], first)
                if only and steps[0] == first:
                    cells = [later, "-"]
                table.add_row(f"{snapshot}/{name}", *cells[: len(columns)])
        console = Console(width=100)
        console.print(table)
        for line in (f"Features: {', '.join(sorted(networks))}." if networks else "", self.note):
            if line:
                console.print(line, highlight=False, soft_wrap=True)
        for reason, names in refused.items():
            console.print(f"{', '.join(names)}: {reason}", highlight=False)
        minutes = (time.perf_counter() - self._started) / 60
        evaluation = pl_module.run_log.evaluation_seconds / 60
        console.print(f"{minutes:.1f} minutes in all, {evaluation:.1f} of them evaluation")


def _at(value: str, step: int, column: int) -> str:
    """A score, with its step where the column is of another one."""
    return value if step == column else f"{value} (step {step})"


def _unlike(first: Score | None, second: Score | None) -> str | None:
    """Why two scores are not put side by side; None if they may be."""
    if first is None or second is None:
        return "the first score is not shown: its file is gone"
    try:
        compare(first.fingerprint, second.fingerprint)
    except UnlikeFingerprints as error:
        return f"the first score is not shown: {error}"
    return None
