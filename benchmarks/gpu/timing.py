"""Seconds of work on a device, and the kernels that it launches."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# What a kernel is for, by the words in its name; the first that fits.
KINDS = (
    # Their names list the operations that they fuse, or what they do to all parameters, norms included.
    ("fused by the compiler", ("triton_poi", "triton_per", "triton_red", "cpp_fused")),
    ("over all parameters at once", ("multi_tensor", "foreach", "lpnorm")),
    ("attention", ("flash", "fmha", "attention", "sdpa", "dot_do_o")),  # the last: a part of cuDNN's backward pass
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk", "addmm", "::mm", "bmm", "linear")),
    ("fused by the compiler", ("triton_",)),
    ("norms", ("norm", "gammabeta")),
    ("copies and casts", ("copy", "memcpy", "memset", "_to_copy", "cat")),
    ("elementwise and reductions", ("elementwise", "reduce", "vectorized", "gelu", "index")),
)


def synchronise() -> None:
    """Waits for the GPU, where there is one in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], until: float, repeats: int = 20, warm_up: int = 3, queued: int = 1) -> float:
    """Median wall seconds of a call, the device's work included; fewer calls where time runs out.

    Args:
        work: what is timed.
        until: by ``time.monotonic``.
        repeats: of the timing.
        warm_up: calls before that.
        queued: calls of which each repeat takes the mean, without waiting between: for work of a few milliseconds,
            which waiting for the GPU and launching again would make slower than it is in a step.
    """
    for _ in range(warm_up):
        work()
    synchronise()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(queued):
            work()
        synchronise()
        times.append((time.perf_counter() - started) / queued)
        if time.monotonic() > until:
            break
    return statistics.median(times)


class Kernels:
    """Records what runs on the device (on the CPU: its operations) between ``start`` and ``stop``."""

    def __init__(self) -> None:
        self.gpu = torch.cuda.is_initialized()
        activities = [ProfilerActivity.CUDA] if self.gpu else [ProfilerActivity.CPU]
        self._profile = profile(activities=activities)
        self.milliseconds: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()

    def start(self) -> None:
        """Begins."""
        synchronise()
        self._profile.__enter__()

    def stop(self) -> None:
        """Ends, and sums up by name."""
        synchronise()
        self._profile.__exit__(None, None, None)
        for event in self._profile.events() or ():
            on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
            if on_gpu != self.gpu or getattr(event, "is_user_annotation", False) or event.name.startswith("Profiler"):
                continue
            spent: Any = event.self_device_time_total if self.gpu else event.self_cpu_time_total
            self.milliseconds[event.name] += spent / 1e3
            self.launches[event.name] += 1

    def kinds(self) -> dict[str, float]:
        """Milliseconds by what kernels are for, most first."""
        sums: Counter[str] = Counter()
        for name, spent in self.milliseconds.items():
            sums[kind(name)] += spent
        return dict(sums.most_common())

    def of(self, wanted: str) -> dict[str, int]:
        """Launches of the kernels of a kind, by name."""
        return {name: count for name, count in self.launches.most_common() if kind(name) == wanted}


def kind(name: str) -> str:
    """What a kernel is for, by its name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS if any(word in lower for word in words)), "other")


def short(name: str, length: int = 90) -> str:
    """A kernel's name without what no one reads, and without the mark of table cells."""
    for waste in ("void ", "at::native::", "at::", "(anonymous namespace)::", "<unnamed>::", "pytorch_flash::"):
        name = name.replace(waste, "")
    return name.replace("|", "/")[:length]
