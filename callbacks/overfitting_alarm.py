"""What a snapshot that watches overfitting does after its scores: curves, the nearest pairs, and the alarm.

samples/NAME/overfitting.png     losses of both splits, copies and Frechet distances against steps
samples/NAME/overfitting.json    the alarm: what says that the model overfits; there as long as something does
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit import ranks
from t2ikit.callbacks.logged_grids import log_picture
from t2ikit.evaluation.overfitting import ALARM, PAIRS_FILE, History, Overfitting, curves
from t2ikit.files import write_whole
from t2ikit.photos import read_rgb


def judge(trainer: L.Trainer, watch: Overfitting, name: str, history: History, folder: Path) -> dict[str, float]:
    """Says whether the model overfits, by line, file and figure; returns what is logged of it.

    The history decides, so a run that goes on from a checkpoint comes to the same.

    Args:
        trainer: of the run; it ends after this step where the experiment asks for that.
        watch: the settings.
        name: of the snapshot.
        history: its scores so far.
        folder: of its results.
    """
    signs = watch.signs(history)
    ranks.from_first(lambda: _publish(trainer, watch, name, history, folder, signs))
    if signs and watch.stop:
        trainer.should_stop = True
    return {f"{name}/{ALARM}": float(bool(signs))}


def log_pairs(trainer: L.Trainer, name: str, files: Mapping[str, bytes], step: int) -> None:
    """Shows the picture of the nearest pairs in every logger; on the first rank."""
    if PAIRS_FILE in files:
        for logger in trainer.loggers:
            log_picture(logger, f"{name}/nearest_pairs", _picture(files[PAIRS_FILE]), step)


def _publish(
    trainer: L.Trainer, watch: Overfitting, name: str, history: History, folder: Path, signs: list[str]
) -> None:
    step, alarm = max(history), folder / "overfitting.json"
    figure = curves(history, watch.most_copies, f"{name}, step {step}: {'overfitting' if signs else 'no alarm'}")
    write_whole(folder / "overfitting.png", figure)
    for logger in trainer.loggers:
        log_picture(logger, f"{name}/overfitting", _picture(figure), step)
    if not signs:
        alarm.unlink(missing_ok=True)
        return
    write_whole(alarm, json.dumps({"step": step, "signs": signs}, indent=1) + "\n")
    end = "the run ends, as overfitting.stop asks" if watch.stop else "the run goes on"
    tqdm.write(f"{name}: overfitting at step {step}: {'; '.join(signs)} ({end}; {alarm})")


def _picture(content: bytes) -> Tensor:
    """A PNG as [3, H, W] uint8."""
    return torch.from_numpy(read_rgb(content).copy())
