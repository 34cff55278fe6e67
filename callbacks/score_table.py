"""Ends a run with a table: every score of every snapshot, first and last."""

from __future__ import annotations

import time

import lightning as L
from rich.console import Console
from rich.table import Table

from t2ikit.callbacks.snapshot import Snapshot


class ScoreTable(L.Callback):
    """Prints the scores of all snapshots at their first and last step when the run ends.

    List it after the snapshots.

    Args:
        note: a sentence below the table, e.g. what the scores may be compared with.
    """

    def __init__(self, note: str = "") -> None:
        super().__init__()
        self.note = note
        self._started = time.perf_counter()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        snapshots = [callback for callback in trainer.callbacks if isinstance(callback, Snapshot) and callback.history]
        if not snapshots or not trainer.is_global_zero:
            return
        first = min(min(snapshot.history) for snapshot in snapshots)
        last = max(max(snapshot.history) for snapshot in snapshots)
        networks = {getattr(getattr(metric, "features", None), "name", None) for s in snapshots for metric in s.metrics}
        caption = " ".join([*(f"Features: {name}." for name in sorted(filter(None, networks))), self.note])
        table = Table(title="Scores (EMA weights)", caption=caption or None)
        table.add_column("score")
        table.add_column(f"step {first}", justify="right")
        table.add_column(f"step {last}", justify="right")
        for snapshot in snapshots:
            before, after = snapshot.history[min(snapshot.history)], snapshot.history[max(snapshot.history)]
            for name in after:
                values = [f"{scores[name]:.4g}" if name in scores else "-" for scores in (before, after)]
                table.add_row(f"{snapshot.name}/{name}", *values)
        console = Console(width=100)
        console.print(table)
        minutes = (time.perf_counter() - self._started) / 60
        evaluation = sum(snapshot.evaluation_seconds for snapshot in snapshots) / 60
        console.print(f"{minutes:.1f} minutes in all, {evaluation:.1f} of them evaluation")
