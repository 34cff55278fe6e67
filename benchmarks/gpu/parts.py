"""The parts of the series, most worth first. Nothing here imports torch: parts are loaded in their own processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from benchmarks.base import Benchmark, Measurement, Settings


def _late(room: str, function: str, *args: object) -> Callable[[Settings], Iterable[Measurement]]:
    """``benchmarks.gpu.ROOM.FUNCTION(settings, *args)``, imported when it is called."""

    def measure(settings: Settings) -> Iterable[Measurement]:
        measurements: Iterable[Measurement] = getattr(import_module(f"benchmarks.gpu.{room}"), function)(
            settings, *args
        )
        return measurements

    return measure


NO_CUDA = 77
"""Exit status of a part that could not begin to use the GPU."""

_EXPERIMENT = ("lightning", "jsonargparse", "omegaconf", "yaml")

PARTS = (
    Benchmark("peak", "dense bf16 products and copies of memory: the measured peaks", _late("peak", "peaks"), 20),
    Benchmark(
        "vectors",
        "check vectors of CAD-I, DiT-I against float64, in fp32 and bf16",
        _late("correct", "vectors"),
        25,
        ("safetensors", "lightning"),
    ),
    Benchmark(
        "resume",
        "a run killed and gone on with, with EMA and a snapshot, against one undisturbed",
        _late("resumed", "killed"),
        75,
        _EXPERIMENT,
    ),
    Benchmark(
        "losses", "loss of 50 steps, eager against compiled", _late("correct", "compiled_losses"), 55, _EXPERIMENT
    ),
    Benchmark("dit_eager", "DiT-I at 256, eager", _late("steps", "step", "DiT-I", 256, None), 60, _EXPERIMENT),
    Benchmark("cad_plain", "CAD-I L as the released program computes it", _late("steps", "released"), 30, _EXPERIMENT),
    Benchmark("cad_eager", "CAD-I L at 256, eager", _late("steps", "step", "CAD-I L", 256, None), 45, _EXPERIMENT),
    Benchmark(
        "dit_blocks",
        "DiT-I at 256, its blocks compiled",
        _late("steps", "step", "DiT-I", 256, "blocks"),
        90,
        _EXPERIMENT,
    ),
    Benchmark(
        "cad_blocks",
        "CAD-I L at 256, its blocks compiled",
        _late("steps", "step", "CAD-I L", 256, "blocks"),
        90,
        _EXPERIMENT,
    ),
    Benchmark("attention", "kernel and time of each attention", _late("attention", "kernels"), 20),
    Benchmark(
        "sampling",
        "DDIM with guidance: eager, blocks compiled, by CUDA graphs",
        _late("sampling", "sampling"),
        75,
        _EXPERIMENT,
    ),
    Benchmark("loader", "records to GPU memory", _late("feed", "throughput"), 30, _EXPERIMENT),
    Benchmark("dit_largest", "DiT-I at 256, the largest batch", _late("steps", "largest", "DiT-I"), 60, _EXPERIMENT),
    Benchmark(
        "cad_largest", "CAD-I L at 256, the largest batch", _late("steps", "largest", "CAD-I L"), 60, _EXPERIMENT
    ),
    Benchmark(
        "shapes",
        "an experiment on shapes at full speed for two minutes",
        _late("shapes", "run"),
        200,
        _EXPERIMENT,
    ),
    Benchmark(
        "dit_512", "DiT-I at 512, its blocks compiled", _late("steps", "step", "DiT-I", 512, "blocks"), 130, _EXPERIMENT
    ),
    Benchmark("networks", "images/s of the metrics' networks, random weights", _late("networks", "rates"), 45),
    Benchmark(
        "dit_compiled", "DiT-I at 256, compiled", _late("steps", "step", "DiT-I", 256, "default"), 130, _EXPERIMENT
    ),
    Benchmark(
        "cad_compiled", "CAD-I L at 256, compiled", _late("steps", "step", "CAD-I L", 256, "default"), 130, _EXPERIMENT
    ),
)
