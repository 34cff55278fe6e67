"""Images/s of a training step on this machine, of made-up records: what reading data takes is not in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from t2ikit.run.cost import Inputs, Step, augment, build_model, count_step, decays_of
from t2ikit.run.experiment import Plan
from t2ikit.run.gpus import USABLE

_TRIALS = 20
"""A step may take this part of the time: larger micro-batches are not tried."""


def measured(plan: Plan, inputs: Inputs, seconds: float) -> Mapping[str, Any]:
    """Trains on made-up records for some seconds, at least one step after one that warms up.

    The micro-batch is that of the experiment; on a CPU, and where it does not fit, the largest power of two below it
    whose steps are short enough, or that fits.

    Args:
        plan: the checked experiment.
        inputs: of the experiment's micro-batch.
        seconds: how long.

    Returns:
        images_a_second, and what was measured: steps, rows, seconds, device.

    Raises:
        ConfigError: a constructor refuses its arguments.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(plan).to(device)
    _, batch_size = augment(plan, model)

    def step_of(rows: int) -> Step:
        return Step(model, plan.trainer, decays_of(plan), replace(inputs, rows=rows), device, batch_size)

    rows = _fitting(plan, inputs, device) if device.type == "cuda" else 1
    step = step_of(rows)
    took = _timed(step.whole, device)
    while device.type == "cpu" and 2 * rows <= inputs.rows and 2 * took < seconds / _TRIALS:
        rows *= 2
        step = step_of(rows)
        took = _timed(step.whole, device)
    steps, spent = 0, 0.0
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"this CPU, {torch.get_num_threads()} threads"
    with tqdm(total=round(seconds), unit="s", desc=f"measuring, {rows} rows", leave=False) as bar:
        while spent < seconds:
            spent += _timed(step.whole, device)
            steps += 1
            bar.update(min(round(spent), round(seconds)) - bar.n)
    return {
        "images_a_second": steps * step.accumulate * rows / spent,
        "steps": steps,
        "rows": rows,
        "seconds": spent,
        "device": name,
    }


def _fitting(plan: Plan, inputs: Inputs, device: torch.device) -> int:
    memory = count_step(plan, inputs).memory
    limit = torch.cuda.get_device_properties(device).total_memory * USABLE
    rows = inputs.rows
    while rows > 1 and memory.peak(rows) > limit:
        rows //= 2
    return rows


def _timed(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
