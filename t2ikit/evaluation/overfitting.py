"""Whether a model learns its training images by heart: losses of both splits, copies, and scores that turn.

Source: Figure 3 of "How far can we go with ImageNet for Text-to-Image generation?", whose models overfit ImageNet after
300,000 steps (version 1) or 200,000 (version 2).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from t2ikit.data.datamodule import DataModule
from t2ikit.diffusion import Process
from t2ikit.diffusion.objectives.denoising import fixed_times
from t2ikit.evaluation.reference_images import real_images
from t2ikit.evaluation.validation import LevelLosses
from t2ikit.files import require_folder
from t2ikit.metrics.base import Metric
from t2ikit.metrics.distribution.reference import ComparedMetric
from t2ikit.metrics.distribution.training_copies import PAIRS, TrainingCopies
from t2ikit.metrics.features.features import FeatureExtractor
from t2ikit.metrics.features.stored import StoredFeatures
from t2ikit.metrics.fingerprint import Score
from t2ikit.pictures import Images
from t2ikit.pretrained import cache_folder

NAME = "overfitting"
"""Before the names of its scores and files."""
COPIES, GAP, ALARM = f"{NAME}/copies", f"{NAME}/gap", f"{NAME}/alarm"
LESS_IS_BETTER = (COPIES, GAP, ALARM)
"""How the names of its scores begin, of all of which less is better: there is a gap for each stream behind a gate."""
PAIRS_FILE, LOSSES_FILE = f"{NAME}_{PAIRS}", f"{NAME}_losses.csv"
_FRECHET, _HELD_OUT, _TRAIN = "frechet_distance", "loss_fixed_t", "loss_fixed_t_train"
_SPLITS = ("val", "train")

History = Mapping[int, Mapping[str, float]]
"""Step -> scores by name."""
Points = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Turn:
    """A score of which less is better was best, and has been worse since.

    Attributes:
        step, best: where it was least, and how much.
        last: its newest value.
        snapshots: how many came since.
    """

    step: int
    best: float
    last: float
    snapshots: int


def turn(points: Points, patience: int, tolerance: float) -> Turn | None:
    """Whether a score of which less is better has turned: fell, and rose again.

    It has where each of the last ``patience`` values is above the least one by more than ``tolerance`` of it, and the
    least one is not the first. A plateau is no turn.

    Args:
        points: (step, value) in the order of the steps.
        patience: at least 1.
        tolerance: relative, at least 0.

    Example:
        >>> turn([(0, 9.0), (1, 2.0), (2, 3.0), (3, 4.0)], patience=2, tolerance=0.1)
        Turn(step=1, best=2.0, last=4.0, snapshots=2)
    """
    values = [value for _, value in points]
    best = min(range(len(values)), key=values.__getitem__, default=0)
    since = values[best + 1 :]
    if best == 0 or len(since) < patience:
        return None
    limit = values[best] + tolerance * abs(values[best])
    if any(not value > limit for value in since[-patience:]):
        return None
    return Turn(points[best][0], values[best], values[-1], len(since))


@dataclass(eq=False)
class Overfitting:
    """Watches whether a model learns its training images by heart, in a snapshot that compares with held-out images.

    Scores: ``overfitting/gap``, the loss at fixed t of held-out images minus that of training images, and
    ``overfitting/gap_NAME`` for each stream behind a gate, at the t where it is shown; ``overfitting/copies``, the
    share of generated images that are copies of a training image, see ``TrainingCopies``; ``overfitting/alarm``, 1
    where one of three signs is seen: a Frechet distance has turned, the held-out loss at fixed t has turned, or more
    than ``most_copies`` of the images are copies. An alarm is a line in the log and a file.

    Attributes:
        features: the network of the copies; by default that of the first metric of the snapshot that compares with the
            reference. DINOv2 for photos.
        train: the set of the training images.
        limit: only so many of them, evenly spaced; None takes all. Their features are computed once and kept below
            ``$T2IKIT_CACHE`` (or ``~/.cache/t2ikit``): 4 GB for a million images with DINOv2.
        quantile: of the distances of training images to each other, below which an image may be a copy.
        most_copies: share of copies above which there is an alarm.
        patience: snapshots in a row that must be worse than the best one.
        tolerance: by more than this share of the best value.
        pairs: nearest pairs in the picture.
        stop: end the run at an alarm.

    Raises:
        ValueError: a number out of range.
    """

    features: FeatureExtractor | None = None
    train: str = "train"
    limit: int | None = None
    quantile: float = 0.01
    most_copies: float = 0.05
    patience: int = 3
    tolerance: float = 0.1
    pairs: int = 16
    stop: bool = False

    def __post_init__(self) -> None:
        for option, least in (("limit", 2), ("patience", 1), ("pairs", 1)):
            value = getattr(self, option)
            if value is not None and value < least:
                raise ValueError(f"overfitting: {option} must be at least {least}, got {value}")
        for option in ("quantile", "most_copies"):
            if not 0.0 < getattr(self, option) <= 1.0:
                raise ValueError(f"overfitting: {option} must lie in (0, 1], got {getattr(self, option)}")
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(f"overfitting: tolerance must be at least 0, and finite, got {self.tolerance}")

    # ------------------------------------------------------------------ copies

    def metric(self, label: str, metrics: Sequence[Metric], reference: str | None, data: DataModule) -> TrainingCopies:
        """The metric of the copies.

        Args:
            label: of messages, such as ``callbacks.val``.
            metrics: those of the snapshot.
            reference: its held-out images.
            data: the data module, set up.

        Raises:
            ValueError: no held-out images, no feature network, or a cache that cannot be written.
            FileNotFoundError: the training images are gone.
        """
        if reference in (None, self.train):
            raise ValueError(
                f"{label}: overfitting compares with held-out images, the reference is {reference}: set reference to a "
                "split that is not trained on (val)"
            )
        compared = [metric.features for metric in metrics if isinstance(metric, ComparedMetric)]
        features = self.features or next(iter(compared), None)
        if features is None:
            raise ValueError(
                f"{label}: overfitting has no feature network: set overfitting.init_args.features, such as "
                "t2ikit.metrics.features.networks.DINOv2Features"
            )
        images = real_images(data, self.train, self.limit)
        chunks = images.records.manifest.chunk_sha256  # type: ignore[attr-defined]
        images_sha256 = _sha256([chunks, len(images)])
        folder = cache_folder() / "features" / _sha256([features.fingerprint(), images_sha256])[:32]
        require_folder(folder, "the folder of the training features ($T2IKIT_CACHE, by default ~/.cache/t2ikit)")
        size = next((metric.batch_size for metric in metrics if isinstance(metric, ComparedMetric)), 64)
        stored = StoredFeatures(
            folder,
            len(images),
            lambda rows, device: _features(features, images, rows, size, device),
            f"{features.name}, training images",
        )
        identity = {"training": self.train, "training_sha256": images_sha256, "num_training": len(images)}
        return TrainingCopies(
            features,
            batch_size=size,
            name=NAME,
            training=stored,
            images=images,
            identity=identity,
            quantile=self.quantile,
            pairs=self.pairs,
        )

    # ------------------------------------------------------------------ losses

    def gaps(
        self, levels: LevelLosses, losses: Sequence[Score], data: DataModule, process: Process, step: int | None
    ) -> tuple[list[Score], dict[str, bytes]]:
        """The scores ``overfitting/gap...``, and a table of the losses by t and source.

        Args:
            levels: loss at each fixed t of both splits and of the gated streams.
            losses: scores of the validation losses.
            data: whose gates say at which t a stream is shown.
            process: with which the model is trained.
            step: optimizer steps of the weights, or None.
        """
        times = fixed_times(process)
        held_out, train = (torch.tensor(levels[split], dtype=torch.float64) for split in _SPLITS)
        columns, gaps = {"held_out": held_out, "train": train}, {GAP: held_out - train}
        for gate in data.gates:
            quantile = torch.tensor(gate.quantile, dtype=torch.float64)
            shown = times > process.t(quantile).double()
            stream = torch.tensor(levels[str(gate.folder)], dtype=torch.float64)
            columns[gate.name] = torch.where(shown, stream, math.nan)
            gaps[f"{GAP}_{gate.name}"] = held_out - columns[gate.name]
        known = {score.name: score.fingerprint for score in losses}
        extra = {**known[_HELD_OUT].extra, "metric": GAP, "training_sha256": known[_TRAIN].reference_sha256}
        fingerprint = replace(known[_HELD_OUT], extra=extra)
        means = {name: float(gap.nanmean()) for name, gap in gaps.items()}
        scores = [Score(name, mean, fingerprint, step) for name, mean in means.items() if not math.isnan(mean)]
        return scores, {LOSSES_FILE: _table(times, columns)}

    # ------------------------------------------------------------------ the alarm

    def signs(self, history: History) -> list[str]:
        """What says that the model overfits, in sentences; none where nothing does.

        Args:
            history: scores of all snapshots so far, by step.
        """
        signs = []
        for name in watched(history):
            turned = turn(series(history, name), self.patience, self.tolerance)
            if turned is not None:
                signs.append(
                    f"{name} was {turned.best:.4g} at step {turned.step} and is {turned.last:.4g} now, "
                    f"{turned.snapshots} snapshots later"
                )
        copies = series(history, COPIES)
        if copies and copies[-1][1] > self.most_copies:
            signs.append(f"{copies[-1][1]:.3g} of the images are copies of training images")
        return signs


def watched(history: History) -> list[str]:
    """The scores that an alarm watches for a turn: Frechet distances, and the held-out loss at fixed t."""
    names = dict.fromkeys(name for scores in history.values() for name in scores)
    return [name for name in names if name.rpartition("/")[2] == _FRECHET or name == _HELD_OUT]


def series(history: History, name: str) -> list[tuple[int, float]]:
    """(step, value) of a score, in the order of the steps."""
    return [(step, history[step][name]) for step in sorted(history) if name in history[step]]


def curves(history: History, most_copies: float, title: str) -> bytes:
    """A PNG with the loss of both splits, the share of copies and the watched Frechet distances against steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = dict.fromkeys(name for scores in history.values() for name in scores)
    panels: list[tuple[str, dict[str, str]]] = [
        ("loss at fixed t", {"held-out images": _HELD_OUT, "training images": _TRAIN}),
        (
            "held-out minus training loss",
            {name.removeprefix(f"{NAME}/"): name for name in names if name.startswith(GAP)},
        ),
        ("share of copies", {"copies": COPIES}),
        *((name, {name: name}) for name in watched(history) if name != _HELD_OUT),
    ]
    figure = Figure(figsize=(3.3 * len(panels), 2.9), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for index, (heading, lines) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), index)
        for label, name in lines.items():
            points = series(history, name)
            if not points:
                continue
            axes.plot(
                [step for step, _ in points], [value for _, value in points], marker="o", ms=3, lw=1.3, label=label
            )
            if name in watched(history):
                step, best = min(points, key=lambda point: point[1])
                axes.plot([step], [best], marker="s", markersize=9, fillstyle="none", color="tab:red")
        if COPIES in lines.values():
            axes.axhline(most_copies, color="tab:red", lw=1, ls="--", label="alarm above")
            axes.set_ylim(bottom=0.0)
        axes.set_title(heading, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    content = io.BytesIO()
    canvas.print_png(content)
    return content.getvalue()


@torch.no_grad()
def _features(features: FeatureExtractor, images: Images, rows: range, size: int, device: torch.device) -> Tensor:
    """Features [n, D] float32 on the CPU of consecutive images; ValueError where they are not finite."""
    parts = [
        features(images[start : min(start + size, rows.stop)].to(device)).to("cpu", torch.float32)
        for start in range(rows.start, rows.stop, size)
    ]
    table = torch.cat(parts)
    broken = (~table.isfinite().all(dim=1)).nonzero()
    if len(broken):
        index = rows.start + int(broken[0])
        raise ValueError(f"{features.name} gives features that are not finite for training image {index}")
    return table


def _table(times: Tensor, columns: Mapping[str, Tensor]) -> bytes:
    """A line a level: t, and the loss of each source; empty where it is not shown at this t."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["t", *columns])
    for index, t in enumerate(times.tolist()):
        cells = [float(column[index]) for column in columns.values()]
        writer.writerow([t, *("" if math.isnan(cell) else cell for cell in cells)])
    return text.getvalue().encode()


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
