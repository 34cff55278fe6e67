"""Records from the page cache to the memory of the GPU, as training reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from benchmarks.base import Measurement, Settings
from benchmarks.gpu.experiments import latents
from benchmarks.gpu.steps import RECORDS
from benchmarks.gpu.timing import synchronise
from t2ikit.data import DataModule


def throughput(settings: Settings) -> Iterator[Measurement]:
    """Samples a second by number of workers: loader, page-locked memory, copy, floats and posterior apart."""
    root = latents(settings, 32, 64 if settings.small else RECORDS)
    rows = 16 if settings.small else 128
    for workers in (0,) if settings.small else (0, 1, 2, 4):
        if settings.left < 4:
            return
        data = DataModule(str(root), batch_size=rows, num_workers=workers)
        data.setup()
        data.add_stream("cmall", "train_cmall", 0.4, 0.5)
        count, started = 0, 0.0
        ready = 1 + 2 * workers  # workers are up, chunks compared, and what was made before the first batch is taken
        for index, batch in enumerate(data.train_dataloader()):
            moved = batch.to(torch.device(settings.device))
            if index == ready:
                synchronise()
                started = time.perf_counter()
            elif index > ready:
                count += len(moved)
            if settings.left < 3:
                break
        synchronise()
        rate = count / (time.perf_counter() - started)
        states = [tensor for text in batch.texts.values() for tensor in (text.tokens, text.scales)]
        size = sum(tensor.nbytes for tensor in (batch.image, *states) if tensor is not None) / rows
        yield Measurement(
            f"loader to GPU, 180 tokens, B={rows}, {workers} workers",
            rate,
            "samples/s",
            goal="at least 645",
            reached=rate >= 645,
            note=f"{rate * size / 1e9:.2f} GB/s",
        )
