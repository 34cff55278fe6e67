"""The table of ``t2ikit plan``: one block a run, and the sum of several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from t2ikit.run.gpus import USABLE
from t2ikit.run.plan import Assumptions, Estimate, memory_of

_WIDTH = 24


def table(estimates: Sequence[Estimate], assumptions: Assumptions) -> Iterator[str]:
    """The lines of the table."""
    for estimate in estimates:
        yield estimate.name
        for label, text in _rows(estimate):
            yield f"  {label:<{_WIDTH - 1}} {text}"
        for note in estimate.notes:
            yield f"  not counted: {note}"
        yield ""
    if len(estimates) > 1 and all(estimate.steps is not None for estimate in estimates):
        yield f"all {len(estimates)} runs"
        yield f"  {'training':<{_WIDTH}}{_flops(sum(estimate.total_flops or 0.0 for estimate in estimates))}"
        for gpu in assumptions.gpus:
            hours = sum(estimate.gpus[gpu.name].hours for estimate in estimates)
            energy = sum(estimate.gpus[gpu.name].kilowatt_hours for estimate in estimates)
            yield f"  {gpu.name:<{_WIDTH}}{_hours(hours)}, at most {energy:,.3g} kWh (arithmetic)"
        yield ""
    yield f"arithmetic: FLOPs over {assumptions.utilisation:g} of the peak in the data sheet of the GPU; energy at the"
    yield f"limit of the board; a micro-batch fits into {USABLE:g} of the memory. Steps are counted eager: compiled"
    yield "blocks keep less. Snapshots, validation and reading data are not in the hours."


def _rows(estimate: Estimate) -> Iterator[tuple[str, str]]:
    yield from _work(estimate)
    for label, step in (("memory", estimate.step), ("memory, checkpointed", estimate.checkpointed)):
        if step is not None:
            memory = memory_of(step)
            parts = ", ".join(f"{part} {_bytes(count)}" for part, count in memory.items() if part != "peak" and count)
            more = "" if step is estimate.step else f", {step.flops / estimate.step.flops:.2f} x the FLOPs"
            yield label, f"{_bytes(memory['peak'])} at a micro-batch of {estimate.inputs.rows}{more} ({parts})"
    sets = ", ".join(f"{name} {_bytes(count)}" for name, count in estimate.disk.items())
    how = "prepared" if estimate.prepared else "to prepare"
    yield "data on the disk", f"{_bytes(sum(estimate.disk.values()))} {how} ({sets})"
    if estimate.measured is not None:
        rate, rows, steps = (estimate.measured[key] for key in ("images_a_second", "rows", "steps"))
        hours = (
            "" if estimate.steps is None else f", {estimate.steps * estimate.batch / rate / 3600:,.3g} hours like it"
        )
        what = f"{steps} steps of {rows} in {estimate.measured['seconds']:.0f} s, {estimate.measured['device']}"
        yield "measured here", f"{rate:,.3g} images/s{hours} ({what})"
    for name, gpu in estimate.gpus.items():
        fits = f"micro-batch {gpu.micro_batch}" if gpu.micro_batch else "no micro-batch fits"
        if gpu.micro_batch and (pieces := estimate.batch // estimate.devices // gpu.micro_batch) > 1:
            count = "one GPU" if estimate.devices == 1 else f"{estimate.devices} GPUs"
            fits += f" (--trainer.accumulate_grad_batches {pieces} on {count})"
        if gpu.checkpointed is not None:
            fits += f", {gpu.checkpointed or 'none'} checkpointed"
        cost = "" if math.isnan(gpu.hours) else f", {_hours(gpu.hours)}, at most {gpu.kilowatt_hours:,.3g} kWh"
        yield name, f"{gpu.images_a_second:,.3g} images/s{cost}; {fits} (arithmetic)"


def _work(estimate: Estimate) -> Iterator[tuple[str, str]]:
    """Parameters and FLOPs."""
    for label, counts in (("trained", estimate.parameters.trained), ("frozen", estimate.parameters.frozen)):
        if counts:
            parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
            yield f"parameters, {label}", f"{sum(counts.values()):,}" + (f" ({parts})" if len(counts) > 1 else "")
    tokens = " and ".join(map(str, estimate.inputs.tokens))
    each = f"{estimate.batch} samples of {_flops(estimate.image_flops)}, text padded to {tokens} tokens"
    yield "training step", f"{_flops(estimate.image_flops * estimate.batch)}: {each}"
    if estimate.total_flops is not None:
        yield "training", f"{_flops(estimate.total_flops)}: {estimate.steps:,} steps"
    for name, count in estimate.samples.items():
        yield f"an image of {name}", _flops(count)


def _scaled(value: float, unit: str) -> str:
    for prefix, factor in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value / 1e3:.4g} k{unit}"


def _flops(count: float) -> str:
    return _scaled(count, "FLOP")


def _bytes(count: float) -> str:
    return "0" if count == 0 else _scaled(count, "B")


def _hours(hours: float) -> str:
    return f"{hours:,.1f} GPU-hours" if hours >= 10 else f"{hours:.2g} GPU-hours"
