"""Peak memory of an evaluation by the number of its pictures: they stay on disk, so it should hardly grow.

``python -m benchmarks evaluation_memory --full``. The pictures are rendered shapes of 256 pixels, each scene in its
eight mirror images, in the folder of an evaluation whose sampling is done; the reference are 1,000 other such
pictures, which go the same way. What is measured follows sampling: the embedded features, Frechet distance, PRDC.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.base import Benchmark, Measurement, Settings, reached
from benchmarks.snapshots import RecordsOfImages, perturbed
from t2ikit.batch import Text
from t2ikit.denoisers import CADI
from t2ikit.evaluation import Evaluation
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.evaluation.sampling import identity_of
from t2ikit.evaluation.settings import Sampling
from t2ikit.metrics import DistributionMetrics, RandomConvFeatures
from t2ikit.prompts import Encode, Prompt, PromptSource
from t2ikit.shapes.scenes import render, scenes

ROOT = Path(__file__).parents[1]
SIZE, TEXT_DIM, REFERENCE = 256, 8, 1_000
GIGABYTE = 1e9


class _Texts(PromptSource):
    def __init__(self, count: int) -> None:
        self.count = count

    def prompts(self) -> list[Prompt]:
        return [Prompt(f"picture {index}") for index in range(self.count)]

    def states(self, prompts: Sequence[Prompt], encode: Encode) -> list[Text]:
        return [Text.from_rows([torch.ones(1, TEXT_DIM)])] * len(prompts)


def _pictures(seed: int, count: int, size: int) -> Iterator[tuple[int, Tensor]]:
    """Batches [8, 3, size, size] with the index of their first picture: a scene turned and mirrored."""
    for first in range(0, count, 8):
        (scene,) = scenes(seed, "val", first, 1, "simple")
        picture = torch.from_numpy(render(scene, size))
        turned = [torch.rot90(picture, turns, (1, 2)) for turns in range(4)]
        yield first, torch.stack([*turned, *(view.flip(2) for view in turned)])[: count - first]


def evaluate_here(count: int, size: int = SIZE, reference: int = REFERENCE) -> dict[str, float]:
    """Renders the pictures and evaluates them in this process.

    Args:
        count: of the pictures.
        size: their pixels.
        reference: how many they are compared with.

    Returns:
        ``rendering`` and ``seconds``, by the clock, ``cpu`` seconds; ``peak``, bytes resident at most; the scores.
    """
    module = perturbed(
        CADI(size, 3, size // 4, 16, 8, 32, 1, 1, text_dim=TEXT_DIM, read_write_heads=2, compute_heads=2)
    )
    source, sampling = _Texts(count), Sampling(steps=1)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        images, real = (
            ImageStore(Path(folder) / "images", count),
            ImageStore(Path(folder) / "real", reference),
        )
        images.open(identity_of(module, source.states(source.prompts(), list), sampling))
        for seed, store in enumerate((images, real)):
            for first, pictures in _pictures(seed, store.count, size):
                store.add(first, pictures)
        rendering = time.perf_counter() - started
        records = RecordsOfImages(real.images())
        data: Any = SimpleNamespace(trainer=None, record_set=lambda split: records)
        metric = DistributionMetrics(RandomConvFeatures(), batch_size=8)  # the fastest on a CPU
        started, cpu = time.perf_counter(), time.process_time()
        evaluation = Evaluation("val", source, [metric], "val")
        evaluated = evaluation.evaluate(module, data, sampling, images.folder, weights="raw", step=0)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    scores = {score.name: score.value for score in evaluated.scores}
    peak = max(cost.memory for cost in evaluated.costs)
    return {"rendering": rendering, "seconds": seconds, "cpu": cpu, "peak": peak, **scores}


def _measure(settings: Settings) -> Iterator[Measurement]:
    smallest = 0.0
    for count in (1_000, 10_000, 50_000) if settings.full else (100, 1_000):
        command = [sys.executable, "-m", "benchmarks.evaluation_memory", str(count), str(settings.threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        smallest = smallest or found["peak"]
        label = f"evaluation of {count:,} pictures of {SIZE} against {REFERENCE:,}"
        note = (
            f"{found['seconds']:,.0f} s, {found['cpu']:,.0f} s of a core; rendering before {found['rendering']:,.0f} s"
        )
        yield Measurement(f"{label}, peak memory", found["peak"] / 1e6, "MB", note=note)
        more = (found["peak"] - smallest) / GIGABYTE
        yield Measurement(
            f"{label}, more than the smallest", more, "GB", goal="at most 2 GB", reached=reached(more, 2.0, "at most")
        )


BENCHMARKS = (Benchmark("evaluation_memory", "peak memory of an evaluation by the number of its pictures", _measure),)

if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(evaluate_here(int(sys.argv[1]))))
