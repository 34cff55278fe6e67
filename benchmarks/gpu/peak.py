"""What the machine can do at best: dense bf16 products of random numbers, and copies of memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.base import Measurement, Settings
from benchmarks.gpu.timing import seconds

PEAK = "dense bf16 matrix product, best of its shapes"


def peaks(settings: Settings) -> Iterator[Measurement]:
    """The peaks that shares are given of; products of the sizes of a DiT-I step beside the largest."""
    device = settings.device
    rows = 256 if settings.small else 32768  # 128 images of 256 tokens
    width = 64 if settings.small else 1024
    shapes = {
        "square": (8 * width, 8 * width, 8 * width),
        "long": (rows, 4 * width, 4 * width),
        "DiT-I's MLP, in": (rows, width, 4 * width),
        "DiT-I's MLP, out": (rows, 4 * width, width),
        "DiT-I's QKV": (rows, width, 3 * width),
        "DiT-I's projection": (rows, width, width),
    }
    # The first calls are slower: clocks go up, kernels are loaded.
    calls = {"repeats": 2, "warm_up": 1} if settings.small else {"repeats": 10, "warm_up": 30, "queued": 10}
    best = 0.0
    for name, (m, k, n) in shapes.items():
        a = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        b = torch.randn(n, k, device=device, dtype=torch.bfloat16)
        rate = 2 * m * k * n / seconds(lambda a=a, b=b: torch.nn.functional.linear(a, b), settings.until, **calls)  # type: ignore[misc]
        best = max(best, rate)
        yield Measurement(f"bf16 product, {name}, {m} x {k} x {n}", rate / 1e12, "TFLOP/s")
        if name == "long":
            yield Measurement(PEAK, best / 1e12, "TFLOP/s")
    count = 2**20 if settings.small else 2**30
    source = torch.randint(0, 255, (count,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    spent = seconds(lambda: target.copy_(source), settings.until, **calls)
    yield Measurement("copy in device memory, bytes read and written", 2 * count / spent / 1e12, "TB/s")
    if device == "cuda":
        host = torch.empty(count // 4, dtype=torch.uint8, pin_memory=True)
        spent = seconds(lambda: target[: count // 4].copy_(host, non_blocking=True), settings.until)
        yield Measurement("copy from page-locked memory to the device", count / 4 / spent / 1e9, "GB/s")
