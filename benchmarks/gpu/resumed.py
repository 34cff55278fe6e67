"""A run that is killed and gone on with, against one that is not: losses, EMA, snapshot."""

from __future__ import annotations

import contextlib
import csv
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.base import Measurement, Settings, reached

STEPS, EVERY = 60, 20


def killed(settings: Settings) -> Iterator[Measurement]:
    """``lightning run`` in processes of their own; the second is killed past its first checkpoint, then resumed."""
    import json

    from benchmarks.gpu.experiments import EXPERIMENTS, on_device
    from benchmarks.gpu.shapes import SHAPES

    steps, every = (9, 3) if settings.small else (STEPS, EVERY)
    values = {
        **{key: value for key, value in on_device(settings).items() if key != "callbacks.checkpoint"},
        **SHAPES,
        "trainer.max_steps": steps,
        "trainer.log_every_n_steps": 1,
        "model.learning_rate.warmup": 3,
        "callbacks.checkpoint.every_n_steps": every,
        "callbacks.geneval": None,
        "callbacks.val.steps": 4,
        "callbacks.val.at_start": False,
        "callbacks.val.prompts.limit": 32,
        "callbacks.table": None,
        "run.directory": str(settings.work / "runs"),
    }
    words = ["run", str(EXPERIMENTS / "base" / "shapes_pixels.yaml")]
    words += [f"--{key}={json.dumps(value)}" for key, value in values.items()]
    data = _start(settings, [*words, "--run.name=undisturbed"])
    data.join(max(settings.left, 1))
    if data.exitcode != 0:
        raise RuntimeError(f"the undisturbed run ended with {data.exitcode}: see its output above")
    runs = settings.work / "runs"
    process = _start(settings, [*words, "--run.name=killed"])
    first = runs / "killed" / "version_0" / "checkpoints" / f"step-{every:08d}.ckpt"
    while process.is_alive() and settings.left > 0 and not first.exists():
        time.sleep(0.005)
    time.sleep(0.0 if settings.small else 0.05)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    before = _losses(runs / "killed" / "version_0")
    resumed = _start(settings, [*words, "--run.name=killed", "--resume=last"])
    resumed.join(max(settings.left, 1))
    if resumed.exitcode != 0:
        raise RuntimeError(f"the resumed run ended with {resumed.exitcode}: see its output above")
    yield from _compare(
        runs / "undisturbed" / "version_0", runs / "killed" / "version_0", steps, max(before, default=0)
    )


def _start(settings: Settings, words: list[str]) -> Any:
    process = multiprocessing.get_context("fork").Process(target=_command, args=(settings.work, words))
    process.start()
    return process


def _command(work: Path, words: list[str]) -> None:
    from t2ikit.cli import main

    log = (work / "runs.log").open("a", buffering=1)
    errors = os.fdopen(os.dup(2), "w")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    status = 1
    with contextlib.suppress(SystemExit):
        try:
            status = main(words)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}"[:2000], file=errors, flush=True)
    os._exit(status)


def _compare(undisturbed: Path, resumed: Path, steps: int, killed_at: int) -> Iterator[Measurement]:
    import torch

    expected, losses = _losses(undisturbed), _losses(resumed)
    if expected.keys() != losses.keys() or max(expected, default=0) < steps - 1:
        raise RuntimeError(f"logged steps differ: {len(expected)} and {len(losses)} of {steps}")
    difference = max(abs(losses[step] - value) / abs(value) for step, value in expected.items())
    yield Measurement(
        f"loss of {steps} steps, killed at step {killed_at} and resumed, against undisturbed: relative difference",
        difference,
        "",
        goal="at most 1e-4",
        reached=reached(difference, 1e-4, "at most"),
        note="0 is bit for bit",
    )
    states = []
    for folder in (undisturbed, resumed):
        path = folder / "checkpoints" / f"step-{steps:08d}.ckpt"
        states.append(torch.load(path, map_location="cpu", weights_only=True)["callbacks"]["EMA"])
    averages = [next(iter(state["profiles"].values())) for state in states]
    largest = max(
        float((averages[0][name] - averages[1][name]).abs().max() / averages[0][name].abs().max().clamp(min=1e-12))
        for name in averages[0]
    )
    yield Measurement("EMA after it, largest relative difference", largest, "", note=f"{states[1]['step']} updates")
    images = sorted((resumed / "samples" / "val").glob("*.png"))
    yield Measurement("snapshots of the resumed run", len(images), "grids", goal="at least 1", reached=bool(images))


def _losses(folder: Path) -> dict[int, float]:
    """Step -> ``train/loss`` of a run."""
    path = folder / "metrics.csv"
    if not path.exists():
        return {}
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): float(row["value"]) for row in rows if row["name"] == "train/loss" and row["value"]}
