"""Each attention of DiT-I and CAD-I L by itself: kernel, time and rate, forward and backward, at the step's sizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.base import Measurement, Settings
from benchmarks.gpu.peak import PEAK
from benchmarks.gpu.timing import Kernels, seconds, short
from t2ikit.denoisers.layers import attend, key_bias

# name: queries, keys, heads, head width, whether keys are masked
SHAPES = {
    "DiT-I, image tokens": (256, 256, 16, 64, False),
    "DiT-I, text": (256, 209, 16, 64, True),
    "refine blocks": (208, 208, 16, 64, True),
    "CAD-I L, condition": (256, 209, 16, 64, True),
    "CAD-I L, read": (256, 256, 16, 16, False),
    "CAD-I L, latents": (256, 256, 16, 64, False),
    "CAD-I L, write": (256, 256, 16, 16, False),
}


def kernels(settings: Settings) -> Iterator[Measurement]:
    """Time and kernels of ``attend`` on random numbers in bf16, 128 rows, 180 of 192 tokens visible."""
    rows = 2 if settings.small else 128
    peak = settings.measured.get(PEAK)
    for name, (queries, keys, heads, width, masked) in SHAPES.items():
        q, k, v = (
            torch.randn(rows, count, heads, width, device=settings.device, dtype=torch.bfloat16, requires_grad=True)
            for count in (queries, keys, keys)
        )
        visible = torch.arange(keys, device=settings.device).expand(rows, -1) < keys - 12
        bias = key_bias(visible, q) if masked else None
        gradient = torch.randn(rows, queries, heads * width, device=settings.device, dtype=torch.bfloat16)

        def work(
            q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v, bias: torch.Tensor | None = bias
        ) -> None:
            torch.autograd.grad(attend(q, k, v, bias), (q, k, v), gradient)  # noqa: B023  # called in this turn only

        spent = seconds(work, settings.until, *((2, 1) if settings.small else (10, 10, 10)))
        seen = Kernels()
        seen.start()
        work()
        seen.stop()
        rate = 3.5 * 4 * rows * heads * queries * keys * width / spent  # the backward pass has 5 products, forward 2
        share = f", {rate / 1e12 / peak:.2f} of the peak" if peak else ""
        used = ", ".join(short(kernel, 60) for kernel in list(seen.of("attention"))[:3])
        yield Measurement(
            f"attention, {name}, {queries} x {keys}, head {width}{', masked' if masked else ''}",
            1e3 * spent,
            "ms",
            note=f"{rate / 1e12:.0f} TFLOP/s{share}; {used}",
        )
