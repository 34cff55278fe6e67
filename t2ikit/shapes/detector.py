"""The exact detector of the embedded data set: what a real detector and a colour classifier do for photos.

Because the scenes are known, no network is needed. The background is fitted as a linear gradient; what differs from it
is segmented; a segment's colour is the one of GenEval's ten that explains its inner pixels (`segments.py`). Area
and centroid (moments of order 0 and 1 of the soft coverage) give centre and radius of every outline, and the outline
whose outline overlaps the coverage best is its shape. The overlap is also the score: blots and noise get low ones.

Shapes: an image is [3, H, W] uint8; coverage float64 [h, w] in [0, 1] of the patch around a segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.shapes.geometry import SHAPES, TEXTURES, VARIANTS, class_name, inside, local, marked, moments
from t2ikit.shapes.segments import Segment, segments

_ANGLES = np.deg2rad([-9.0, -4.5, 4.5, 9.0])
_CANDIDATES = 3  # outlines, best without an angle, that are also tried with one
_FINEST = 64  # larger images are averaged down to between this and twice this


@dataclass(frozen=True)
class Found:
    """One object of an image.

    Attributes:
        class_name: texture and outline that fit best, such as "striped circle".
        color: name of its colour.
        box: x0, y0, x1, y1 in pixels, the far side excluded.
        area: pixels that it covers.
        purity: share of its inner pixels that have its colour (or that of its texture), in [0, 1].
        fit: intersection over union of its coverage and the rendered outline, in [0, 1].
    """

    class_name: str
    color: str
    box: tuple[float, float, float, float]
    area: float
    purity: float
    fit: float

    @property
    def score(self) -> float:
        """Confidence in [0, 1]: 0 at a fit of 0.6, 1 at 0.88, times the purity (full from 0.8 on)."""
        return float(np.clip((self.fit - 0.6) / 0.28, 0, 1) * np.clip(self.purity / 0.8, 0, 1))


class ShapesDetector:
    """Finds the objects of an image; the detector of `t2ikit.metrics.geneval.metric.GenEval` for this data set.

    Args:
        least_score: what is less certain is not reported.
    """

    def __init__(self, least_score: float = 0.05) -> None:
        self.least_score = least_score

    def __call__(self, image: Tensor | np.ndarray) -> list[dict[str, Any]]:
        """Detections of an image [3, H, W] uint8, best first: {"class", "box" [4] in pixels, "score", "color"}.

        Raises:
            ValueError: the image is not uint8 [3, H, W].
        """
        detections = sorted(self.find(image), key=lambda detection: -detection.score)
        return [
            {
                "class": detection.class_name,
                "box": list(detection.box),
                "score": detection.score,
                "color": detection.color,
            }
            for detection in detections
            if detection.score >= self.least_score
        ]

    def find(self, image: Tensor | np.ndarray) -> list[Found]:
        """Everything that stands out from the background of an image [3, H, W] uint8, however badly it fits."""
        pixels, factor = seen_pixels(image)
        return [_identify(segment, factor) for segment in segments(pixels)]

    def fingerprint(self) -> dict[str, Any]:
        """What names this detector in a score."""
        return {"features": "shapes-detector-1", "least_score": self.least_score}


class LargestColorShare(Metric):
    """Share of the images whose largest object has the colour that the prompt asks for.

    Counted are the images whose metadata names a colour, as "color" (a record of the data set) or in a single "include"
    clause (GenEval), and whose prompt has that word. Which shape the object has does not matter.

    Args:
        least_purity: share of the object's inner pixels that must have its colour.
    """

    def __init__(self, least_purity: float = 0.5) -> None:
        self.least_purity = least_purity

    def check(self, samples: Samples) -> None:
        """Refuses samples none of whose prompts asks for a colour."""
        if not any(_colors(samples)):
            raise ValueError(
                "LargestColorShare: no prompt names the colour of its object: use long captions (data.captions=long)"
            )

    def observe(self, batch: SampleBatch) -> Rows:
        """Whether the colour is right, or None where the prompt asks for none."""
        return [
            None if color is None else largest_color(image, self.least_purity) == color
            for image, color in zip(batch.images, _colors(batch), strict=True)
        ]

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``largest_color_share`` in [0, 1]."""
        return Result({"largest_color_share": float(np.mean([right for right in rows if right is not None]))})

    def fingerprint(self) -> dict[str, Any]:
        """Detector and threshold."""
        return {"features": "shapes-detector-1", "metric": "largest_color_share", "least_purity": self.least_purity}


def _colors(samples: Samples | SampleBatch) -> list[str | None]:
    """The colour that each prompt asks for."""
    colors = []
    for prompt, metadata in zip(samples.prompts, samples.metadata, strict=True):
        color = _asked_color(metadata)
        words = prompt.lower().replace(".", " ").replace(",", " ").split()
        colors.append(color if color in words else None)
    return colors


def largest_color(image: Tensor | np.ndarray, least_purity: float = 0.5) -> str | None:
    """The colour of the largest object of an image [3, H, W] uint8; None where nothing has a colour."""
    candidates = [segment for segment in segments(seen_pixels(image)[0]) if segment.purity >= least_purity]
    return max(candidates, key=lambda segment: segment.area).color if candidates else None


def _asked_color(metadata: dict[str, Any]) -> str | None:
    clauses = metadata.get("include", [])
    value = clauses[0].get("color") if len(clauses) == 1 else metadata.get("color")
    return value if isinstance(value, str) else None


def seen_pixels(image: Tensor | np.ndarray) -> tuple[np.ndarray, int]:
    """An image [3, H, W] uint8 as float64 [h, w, 3], averaged down by the factor that is returned with it."""
    array = image.numpy(force=True) if isinstance(image, Tensor) else np.asarray(image)
    if array.ndim != 3 or array.shape[0] != 3 or array.dtype != np.uint8:
        raise ValueError(f"the detector needs an image uint8 [3, H, W]; got {array.dtype} {array.shape}")
    factor = max(min(array.shape[1:]) // _FINEST, 1)
    height, width = array.shape[1] // factor, array.shape[2] // factor
    blocks = array[:, : height * factor, : width * factor].reshape(3, height, factor, width, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float64).transpose(1, 2, 0), factor


def _identify(segment: Segment, factor: int) -> Found:
    shape, pose, fit = _outline(segment.coverage)
    texture = _texture(segment, pose) if segment.textured else "plain"
    x0, y0, x1, y1 = (factor * side for side in segment.box)
    name = class_name(shape, texture)
    return Found(name, segment.color, (x0, y0, x1, y1), segment.area * factor**2, segment.purity, fit)


@dataclass(frozen=True)
class _Pose:
    """Centre in pixels of the patch, radius in pixels, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float

    def points(self, shape: tuple[int, ...], samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Object coordinates (u, v), each [h * samples, w * samples], of the sample points of a patch [h, w]."""
        x = (np.arange(shape[1] * samples) + 0.5) / samples - self.x
        y = (np.arange(shape[0] * samples) + 0.5) / samples - self.y
        return local(x[None, :], y[:, None], self.angle, self.radius)


def _sampling(coverage: np.ndarray) -> int:
    """Samples a pixel and axis: more for small objects."""
    return 4 if max(coverage.shape) <= 16 else 3 if max(coverage.shape) <= 32 else 2


def _pooled(samples: np.ndarray, n: int) -> np.ndarray:
    """Mean over the n x n samples of each pixel."""
    return samples.reshape(samples.shape[0] // n, n, samples.shape[1] // n, n).sum(axis=(1, 3)) / n**2


def _outline(coverage: np.ndarray) -> tuple[str, _Pose, float]:
    """The outline that overlaps a coverage [h, w] best, its pose from area and centroid, and the overlap."""
    area = float(coverage.sum())
    x = float(coverage.sum(axis=0) @ (np.arange(coverage.shape[1]) + 0.5)) / area
    y = float(coverage.sum(axis=1) @ (np.arange(coverage.shape[0]) + 0.5)) / area
    n = _sampling(coverage)

    def fitted(shape: str, angle: float) -> tuple[float, str, _Pose]:
        unit = moments(shape)
        radius = (area / unit.area) ** 0.5
        c, s = np.cos(angle) * radius, np.sin(angle) * radius
        pose = _Pose(x - (c * unit.u - s * unit.v), y - (s * unit.u + c * unit.v), radius, float(angle))
        rendered = _pooled(inside(shape, *pose.points(coverage.shape, n)), n)
        shared = float(np.minimum(rendered, coverage).sum())
        return shared / (float(rendered.sum()) + area - shared), shape, pose

    upright = sorted((fitted(shape, 0.0) for shape in SHAPES), key=lambda fit: -fit[0])[:_CANDIDATES]
    turned = [fitted(shape, angle) for _, shape, _ in upright if shape not in ("circle", "ring") for angle in _ANGLES]
    fit, shape, pose = max(upright + turned, key=lambda one: one[0])
    return shape, pose, fit


def _texture(segment: Segment, pose: _Pose) -> str:
    """The texture whose marks correlate best with the share of the second colour in the covered pixels."""
    covered = segment.coverage > 0.9
    line = segment.second - segment.first
    share = np.clip((segment.patch[covered] - segment.first) @ line / (line @ line), 0, 1)
    share = share - share.mean()
    n = _sampling(segment.coverage)
    u, v = pose.points(segment.coverage.shape, n)
    best, chosen = -np.inf, "plain"
    for texture in TEXTURES[1:]:
        for variant in range(VARIANTS[texture]):
            marks = _pooled(marked(texture, variant, u, v), n)[covered]
            marks = marks - marks.mean()
            match = float(share @ marks / np.sqrt((share @ share) * (marks @ marks) + 1e-9))
            if match > best:
                best, chosen = match, texture
    return chosen
