"""Every metric of a snapshot on the same images, spread over all ranks: scores with fingerprints, files, costs.

Each rank looks at its own share of the images, on its device; the first one sums up. What a metric sees of an image
does not depend on the other images, so a score does not depend on the ranks. The peak of memory is that of the
GPU where one is in use, else of the process.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from t2ikit import ranks
from t2ikit.metrics.base import Metric, Rows, Samples, join, look
from t2ikit.metrics.fingerprint import Fingerprint, Score

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Of one piece of work.

    Attributes:
        what: its name.
        seconds: wall clock.
        memory: bytes at the peak: allocated on the GPU, or resident in the whole process.
        place: "GPU" or "process".
    """

    what: str
    seconds: float
    memory: int
    place: str

    def __str__(self) -> str:
        return f"{self.what}: {self.seconds:.1f} s, at most {self.memory / 2**20:,.0f} MiB ({self.place})"


@contextlib.contextmanager
def measured(what: str, costs: list[Cost]) -> Iterator[None]:
    """Appends the cost of the block to ``costs`` when the block ends well."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # Linux: resets the peak; elsewhere it is that of the process so far
    started = time.perf_counter()
    yield
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    memory = torch.cuda.max_memory_allocated() if on_gpu else _peak()
    costs.append(Cost(what, seconds, memory, "GPU" if on_gpu else "process"))


def score_samples(
    samples: Samples,
    metrics: Sequence[Metric],
    conditions: Mapping[str, Any],
    step: int | None,
    label: str,
    costs: list[Cost],
) -> tuple[list[Score], dict[str, bytes]]:
    """Computes every metric; every rank must call it.

    Args:
        samples: all images, with their reference, on every rank; each reads its share of them.
        metrics: one with a ``name`` has its scores called ``<name>/<score>``, so that two of a kind can
            read the same images.
        conditions: of the images, for the fingerprints: prompts, seeds, sampler, ...
        step: optimizer steps of the weights, or None.
        label: of the progress bar and in messages, the option of the experiment.
        costs: gets a cost for each metric, as it is on this rank.

    Returns:
        The scores, on all ranks; on the first one also the files of the metrics, name -> content.

    Raises:
        ValueError: two metrics give one score, or a score is not finite.
        OtherRankFailed: another rank failed.
    """
    scores: dict[str, Score] = {}
    files: dict[str, bytes] = {}
    bar = tqdm(metrics, desc=f"{label}: metrics", leave=False, unit="metric", disable=ranks.this() > 0)
    for metric in bar:
        bar.set_postfix_str(metric.title)
        with measured(metric.title, costs), exact(), _offloaded(metric):
            for images in metric.sets(samples):
                _observe(metric, images)
            given = ranks.from_first(lambda: _sum_up(metric, samples, conditions, step, label, files))  # noqa: B023
        for score in given:
            if score.name in scores:
                raise ValueError(
                    f"{label}: two metrics give {score.name}; set `name` of one of them (as in DistributionMetrics), "
                    "or use two snapshots"
                )
            scores[score.name] = score
    return list(scores.values()), files


def write_references(folder: Path, samples: Samples, metrics: Sequence[Metric]) -> dict[Path, list[str]]:
    """Writes the statistics of the reference under every network of the metrics; every rank must call it.

    Args:
        folder: gets a file for each network, and for each way in which the network is shown images. Where two of them
            have one name, the second file is called ``NAME_2.npz``.
        samples: no images, and the reference.
        metrics: those that compare with a reference and have no file of it yet are taken.

    Returns:
        On all ranks, file -> titles of the metrics that can read it.
    """
    files: dict[Path, list[str]] = {}
    keys: dict[str, list[Hashable]] = {}
    for metric in metrics:
        if metric.statistics_file is None:
            continue
        name, known = Path(metric.statistics_file), keys.setdefault(metric.statistics_file, [])
        if metric.rows_key() not in known:
            known.append(metric.rows_key())
        number = known.index(metric.rows_key()) + 1
        path = folder / (name if number == 1 else name.with_stem(f"{name.stem}_{number}"))
        if path not in files:
            assert samples.reference is not None
            with exact(), _offloaded(metric):
                _observe(metric, samples.reference)
                ranks.from_first(lambda: metric.write_statistics(path, samples))  # noqa: B023
        files.setdefault(path, []).append(metric.title)
    return files


def score_name(metric: Metric, name: str) -> str:
    """What a score of the metric is called in a snapshot."""
    return name if metric.name is None else f"{metric.name}/{name}"


def _observe(metric: Metric, samples: Samples) -> None:
    """Has every rank look at its share of the images, unless a metric of the same key has; the first keeps the rows."""

    def work() -> Rows | None:
        known = metric.rows_key() in samples.rows
        return None if known else look(metric, samples, ranks.share(len(samples)))

    parts = ranks.to_first(work)
    rows = None if parts is None else join([part for part in parts if part is not None])
    samples.rows.setdefault(metric.rows_key(), rows)


def _sum_up(
    metric: Metric,
    samples: Samples,
    conditions: Mapping[str, Any],
    step: int | None,
    label: str,
    files: dict[str, bytes],
) -> list[Score]:
    """The metric's scores; its files are added to ``files``. On the first rank."""
    result = metric.score(samples, samples.rows[metric.rows_key()])
    described = {"metric": type(metric).__name__, **metric.fingerprint_of(samples), **conditions}
    fingerprint = Fingerprint.from_dict(described)
    for name, value in result.values.items():
        if not math.isfinite(value):
            raise ValueError(f"{label}: {name} of {metric.title} is {value}: look at the images and at its settings")
    prefix = "" if metric.name is None else f"{metric.name}_"
    files.update({f"{prefix}{name}": content for name, content in result.files.items()})
    return [
        Score(score_name(metric, name), float(value), fingerprint, step, result.errors.get(name))
        for name, value in result.values.items()
    ]


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Feature networks in whole float32: a GPU may round products to TF32, in training on purpose."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def _offloaded(metric: Metric) -> Iterator[None]:
    """Frees the GPU of the metric's networks afterwards."""
    try:
        yield
    finally:
        metric.offload()


def _peak() -> int:
    """Peak of the resident memory, bytes."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
