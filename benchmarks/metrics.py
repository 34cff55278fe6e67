"""PRDC against the ``prdc`` package, the Frechet distance against scipy's ``sqrtm``, pixel pipelines, GenEval's rules.

``python -m benchmarks prdc frechet pixels geneval``. PRDC runs in processes of its own, since memory is their peak.

Shapes: N rows of D features a set.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import scipy.linalg
import torch

from benchmarks.base import Benchmark, Measurement, Settings, cpu_seconds, reached
from t2ikit.metrics import Moments, frechet_distance
from t2ikit.metrics.distribution.precision_recall import prdc
from t2ikit.metrics.features.pixels import PIPELINES, preprocess
from t2ikit.metrics.geneval.metric import summarize
from t2ikit.metrics.geneval.rules import COLORS, TASKS, judge

ROOT = Path(__file__).parents[1]
SIDES = ("ours", "package")
PROMPTS = dict(zip(TASKS, (80, 99, 80, 94, 100, 100), strict=True))


@dataclass(frozen=True)
class Run:
    """One computation in its own process.

    Attributes:
        seconds: CPU seconds of all of its threads.
        megabytes: peak memory beyond what the process held with its inputs.
        total_megabytes: peak memory of the process.
        scores: precision, recall, density, coverage.
    """

    seconds: float
    megabytes: float
    total_megabytes: float
    scores: dict[str, float]


def run_prdc(side: str, count: int, width: int, threads: int = 1) -> Run:
    """PRDC of ``side`` ("ours" or "package") on two seeded normal sets [count, width], in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.metrics", side, str(count), str(width), str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def prdc_here(side: str, count: int, width: int, threads: int) -> Run:
    """The same in this process."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(count, width, generator=generator), torch.randn(count, width, generator=generator)
    fake += 0.02  # a density of about one, as good models have
    work: Callable[[torch.Tensor, torch.Tensor], dict[str, Any]]
    if side == "ours":
        work = prdc
    else:
        from prdc import compute_prdc

        def work(first: torch.Tensor, second: torch.Tensor) -> dict[str, Any]:
            with contextlib.redirect_stdout(io.StringIO()):
                return dict(compute_prdc(first.numpy(), second.numpy(), nearest_k=5))

    work(real[:50], fake[:50])
    before, started = _memory("VmRSS"), time.process_time()
    scores = work(real, fake)
    seconds, peak = time.process_time() - started, _memory("VmHWM")
    return Run(seconds, peak - before, peak, {name: float(value) for name, value in scores.items()})


def _memory(field: str) -> float:
    """Megabytes of this process: "VmRSS" now, "VmHWM" at its peak (without Linux, the peak for both)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def compare_prdc(count: int, width: int, repeats: int, threads: int = 1) -> list[Measurement]:
    """Time and memory of both sides, in turns."""
    runs: dict[str, list[Run]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            runs[side].append(run_prdc(side, count, width, threads))
    # float32 products may flip near ties in the package; ours are exact.
    apart = max(abs(value - runs["package"][0].scores[name]) for name, value in runs["ours"][0].scores.items())
    seconds, memory = (
        {side: median(getattr(run, field) for run in side_runs) for side, side_runs in runs.items()}
        for field in ("seconds", "megabytes")
    )
    sizes = f"N={count:,}, D={width:,}"
    faster, smaller = seconds["package"] / seconds["ours"], memory["ours"] / max(memory["package"], 1e-9)
    return [
        Measurement(
            f"PRDC, {sizes}",
            seconds["ours"],
            "s",
            "prdc package",
            seconds["package"],
            "3 x faster",
            reached(faster, 3.0, "at least"),
            f"scores at most {apart:.1g} apart",
        ),
        Measurement(
            f"PRDC, {sizes}, peak memory beyond the inputs",
            memory["ours"],
            "MB",
            "prdc package",
            memory["package"],
            "a quarter",
            reached(smaller, 0.25, "at most"),
        ),
    ]


def _measure_prdc(settings: Settings) -> list[Measurement]:
    rows = compare_prdc(10_000, 1024, 3 if settings.full else 1, settings.threads)
    if settings.full:
        large = run_prdc("ours", 50_000, 1024, settings.threads)
        what = "PRDC, N=50,000, D=1,024"
        rows.append(Measurement(what, large.seconds, "s", note="the package would hold 32 GB"))
        fits = reached(large.total_megabytes, 2000, "at most")
        peak = "peak memory of the process"
        rows.append(Measurement(f"{what}, {peak}", large.total_megabytes, "MB", goal="below 2 GB", reached=fits))
    return rows


def compare_frechet(width: int, repeats: int) -> list[Measurement]:
    """The distance of two sets [2 D, D] from their moments, against the square root of the product."""
    random = np.random.default_rng(0)
    mixing = random.normal(size=(width, width)) * np.geomspace(1, 1e-2, width)
    sets = [random.normal(size=(2 * width, width)) @ mixing * spread + spread for spread in (1.0, 1.2)]
    first, second = (Moments.of(rows) for rows in sets)
    means, covariances = [first.mean, second.mean], [first.covariance, second.covariance]

    def ours() -> float:
        return frechet_distance(means[0], covariances[0], means[1], covariances[1])

    def theirs() -> float:
        first, second = (covariance.numpy() for covariance in covariances)
        shift = (means[0] - means[1]).numpy()
        root = scipy.linalg.sqrtm(first @ second)
        return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)

    seconds = cpu_seconds({"ours": ours, "theirs": theirs}, repeats, warm_up=0)
    apart = abs(ours() / theirs() - 1) if width <= 256 or repeats > 1 else None
    faster = reached(seconds["theirs"] / seconds["ours"], 5.0, "at least")
    note = "" if apart is None else f"relative difference {apart:.1g}"
    what = f"Frechet distance from moments, D={width:,}"
    return [Measurement(what, seconds["ours"], "s", "scipy sqrtm", seconds["theirs"], "5 x faster", faster, note)]


def _measure_frechet(settings: Settings) -> list[Measurement]:
    return compare_frechet(2048, 3 if settings.full else 1)


def throughput(count: int, size: int = 256, repeats: int = 3) -> list[Measurement]:
    """Images a second and core through every pixel pipeline."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)

    def through(name: str) -> Callable[[], object]:
        return lambda: [preprocess(name, image) for image in images]

    seconds = cpu_seconds({name: through(name) for name in PIPELINES}, repeats)
    return [
        Measurement(f"pixels for {name}, from {size} x {size}", count / spent, "images/s")
        for name, spent in seconds.items()
    ]


def _measure_pixels(settings: Settings) -> list[Measurement]:
    return throughput(64 if settings.full else 16)


def verdicts(images: int = 4) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Metadata and random detections of as many images as GenEval has, by task."""
    random = np.random.default_rng(0)
    metadata, detections = [], []
    for task, count in PROMPTS.items():
        for index in range(count):
            clause = {"class": "dog", "count": 1 + index % 3, "color": COLORS[index % len(COLORS)]}
            entry = {"tag": task, "include": [clause], "prompt": f"{task} {index}"}
            for _ in range(images):
                corners = random.uniform(0, 200, size=(8, 2))
                metadata.append(entry)
                detections.append(
                    [
                        {
                            "class": ("dog", "cat")[int(random.integers(2))],
                            "box": [*corner, *(corner + 50)],
                            "score": float(random.random()),
                            "color": COLORS[int(random.integers(len(COLORS)))],
                        }
                        for corner in corners
                    ]
                )
    return metadata, detections


def _measure_geneval(settings: Settings) -> list[Measurement]:
    metadata, detections = verdicts()

    def work() -> object:
        rows = []
        for entry, detected in zip(metadata, detections, strict=True):
            correct, reason = judge(entry, detected)
            rows.append({"tag": entry["tag"], "correct": correct, "reason": reason, "metadata": entry["prompt"]})
        return summarize(rows)

    seconds = cpu_seconds({"ours": work})["ours"]
    return [Measurement(f"GenEval, verdicts and summary of {len(metadata):,} images, 8 boxes each", seconds, "s")]


BENCHMARKS = (
    Benchmark("prdc", "precision, recall, density, coverage against the prdc package: time and memory", _measure_prdc),
    Benchmark("frechet", "Frechet distance against scipy's matrix square root", _measure_frechet),
    Benchmark("pixels", "images a second through every pixel pipeline", _measure_pixels),
    Benchmark("geneval", "GenEval's verdicts and summary of a whole run", _measure_geneval),
)

if __name__ == "__main__":
    if sys.argv[1] not in SIDES:
        sys.exit(f"{sys.argv[1]} is none of {', '.join(SIDES)}")
    print(json.dumps(vars(prdc_here(sys.argv[1], *map(int, sys.argv[2:])))))
