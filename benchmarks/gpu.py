"""Images a second and model FLOPs utilisation of whole training steps on a GPU, bf16 autocast, eager and compiled.

The peak is measured: the best dense bf16 matrix product found on the same GPU, not the data sheet's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.base import Benchmark, Measurement, Settings, reached
from benchmarks.counting import flops, on_meta
from benchmarks.training import Step
from t2ikit.denoisers import Denoiser, DiTI
from t2ikit.denoisers.cad_i import cad_i_l

TOKENS, ROWS, GOAL = 192, 128, 0.55
SCHEDULE = (250_000 * 1024, 50_000 * 1024)  # images at 256 and at 512 pixels: the paper's DiT-I


def _seconds(work: Callable[[], object], repeats: int, warm_up: int = 3) -> float:
    """Mean wall seconds of a call, the device's work included."""
    for _ in range(warm_up):
        work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def measured_peak() -> float:
    """Dense bf16 FLOP/s of this GPU: the best of some square matrix products."""
    best = 0.0
    for side in (4096, 8192, 12288):
        a = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
        best = max(best, 2 * side**3 / _seconds(lambda a=a: a @ a, 20))  # type: ignore[misc]
    return best


def _rate(build: Callable[[], Denoiser], rows: int, compiled: bool) -> tuple[float, float]:
    """Images a second of a whole step, and peak memory in bytes."""
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        denoiser = build()
    step = Step(denoiser, rows, TOKENS)
    loss = torch.compile(step.loss, dynamic=False) if compiled else step.loss

    def work() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            value = loss()
        value.backward()
        step.update()

    return rows / _seconds(work, 5), float(torch.cuda.max_memory_allocated())


def _measure(settings: Settings) -> list[Measurement]:
    if settings.device != "cuda":
        print("gpu: measured with --device cuda only")
        return []
    peak = measured_peak()
    found = [Measurement("dense bf16 matrix product", peak / 1e12, "TFLOP/s")]
    rates: dict[tuple[str, int], float] = {}
    for size, rows in ((32, ROWS), (64, ROWS // 4)):
        builds: list[tuple[str, Callable[[], Denoiser]]] = [
            ("DiT-I", lambda size=size: DiTI(input_size=size)),  # type: ignore[misc]
            ("CAD-I L", lambda size=size: cad_i_l(input_size=size)),  # type: ignore[misc]
        ]
        for name, build in builds:
            counted = Step(on_meta(build), 10, TOKENS)  # type: ignore[arg-type]
            cost = flops(counted.backward) / 10
            for compiled in (False, True):
                rate, memory = _rate(build, rows, compiled)
                rates[name, size] = max(rate, rates.get((name, size), 0.0))
                label = f"{name}, {8 * size} pixels, B={rows}, {'compiled' if compiled else 'eager'}"
                used = rate * cost / peak
                goal = ("at least 0.55", reached(used, GOAL, "at least")) if name == "DiT-I" else ("", None)
                found.append(Measurement(label, rate, "images/s", note=f"{memory / 2**30:.1f} GiB"))
                found.append(Measurement(f"{label}, utilisation of the measured peak", used, "", "", None, *goal))
    hours = sum(images / rates["DiT-I", size] / 3600 for images, size in zip(SCHEDULE, (32, 64), strict=True))
    ok = reached(hours, 200, "at most")
    found.append(
        Measurement("DiT-I, the paper's whole schedule at these rates", hours, "h", "", None, "at most 200", ok)
    )
    return found


BENCHMARKS = (Benchmark("gpu", "images/s and utilisation of DiT-I and CAD-I L (needs --device cuda)", _measure),)
