"""What a search reached: the verifier's score against the number of candidates, as scores, tables and pictures.

Shape legend::

    B  images    N  candidates of an image
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t2ikit.evaluation.search import SELECTION, Search
from t2ikit.metrics.fingerprint import Fingerprint, Score
from t2ikit.metrics.statistics import clustered_error
from t2ikit.pictures import Images, image_grid, png
from t2ikit.prompts import Prompt

EVALUATIONS = f"{SELECTION}/network_evaluations"
_ACROSS = 16
_CONFIDENCE = 1.96  # standard errors on each side of 95 %


@dataclass(frozen=True)
class Selection:
    """What a search gave for B images.

    Attributes:
        search: its settings.
        prompts: B of them.
        values: [B, N] float64, the verifier's score of every candidate; NaN where it has none.
        evaluations: of a network, for one candidate.
        name: of the verifier's score.
    """

    search: Search
    prompts: Sequence[Prompt]
    values: Tensor
    evaluations: int
    name: str

    def curve(self) -> list[tuple[int, int, float, float]]:
        """Of the best of the first 1, 2, ..., N candidates: how many, network evaluations of an image, mean score of
        the verifier over the images that have one, its standard error with prompts as clusters (NaN for one prompt)."""
        best = self.search.running_best(self.values)
        points = []
        for count in range(1, best.shape[1] + 1):
            column = best[:, count - 1]
            known = (~column.isnan()).nonzero().flatten().tolist()
            scored = [float(column[row]) for row in known]
            error = clustered_error(scored, [self.prompts[row].text for row in known])
            mean = sum(scored) / len(scored) if scored else math.nan
            points.append((count, count * self.evaluations, mean, error))
        return points

    def scores(self, conditions: Mapping[str, Any], step: int | None) -> list[Score]:
        """``selection/...``: the verifier's score of the chosen images and of the first candidates, and network
        evaluations of an image.

        Args:
            conditions: of the images, for the fingerprints.
            step: optimizer steps of the weights, or None.
        """
        verifier, points = self.search.verifier, self.curve()
        described = {"metric": type(verifier).__name__, **verifier.fingerprint(), "num_images": len(self.values)}
        fingerprint = Fingerprint.from_dict({**described, **conditions})
        name = f"{SELECTION}/{self.name}"
        scores = [
            Score(label, mean, fingerprint, step, None if math.isnan(error) else error)
            for label, (_, _, mean, error) in ((name, points[-1]), (f"{name}_first", points[0]))
            if not math.isnan(mean)
        ]
        return [*scores, Score(EVALUATIONS, float(points[-1][1]), fingerprint, step)]

    def files(self, firsts: Tensor, images: Images) -> dict[str, bytes]:
        """Tables and pictures, file name -> content.

        Args:
            firsts: [n, 3, H, W] uint8, first candidates of the first n images.
            images: [B, 3, H, W] uint8, the chosen ones.
        """
        points = self.curve()
        header = ["candidates", "network_evaluations", self.name, "standard_error"]
        chosen = self.search.chosen(self.values)
        rows = ([prompt.text, chosen[row], *self.values[row].tolist()] for row, prompt in enumerate(self.prompts))
        columns = ["prompt", "chosen", *(f"candidate_{index}" for index in range(self.values.shape[1]))]
        return {
            "search_curve.csv": _table(header, points),
            "search_candidates.csv": _table(columns, rows),
            "search_curve.png": self._figure(points),
            "search_first_and_best.png": png(first_and_best(firsts, images[: len(firsts)])),
        }

    def _figure(self, points: Sequence[tuple[int, int, float, float]]) -> bytes:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        counts, _, means, errors = (list(column) for column in zip(*points, strict=True))
        figure = Figure(figsize=(4.2, 3.2), layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
        axes.plot(counts, means, marker="o", markersize=3, linewidth=1.3)
        if not any(map(math.isnan, errors)):
            low, high = (
                [mean + side * _CONFIDENCE * error for mean, error in zip(means, errors, strict=True)]
                for side in (-1, 1)
            )
            axes.fill_between(counts, low, high, alpha=0.2)
        axes.set_title(f"{self.search.method} search, {self.name} of its verifier\n(selection, no result)", fontsize=8)
        axes.set_xlabel(f"candidates N; an image takes {self.evaluations} N network evaluations", fontsize=8)
        axes.set_ylabel(f"best of N, mean of {len(self.values)} images", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        content = io.BytesIO()
        canvas.print_png(content)
        return content.getvalue()

    def __str__(self) -> str:
        points = self.curve()
        (_, _, first, _), (count, evaluations, best, _) = points[0], points[-1]
        return (
            f"{self.search.method} search: {self.name} of the verifier from {first:.4g} (first candidate) to "
            f"{best:.4g} (best of {count}); {evaluations} network evaluations an image, {self.evaluations} without it"
        )


def first_and_best(firsts: Tensor, bests: Tensor) -> Tensor:
    """Rows of first candidates, each above the row of the images that were chosen: [n, 3, H, W] uint8, twice, to
    [3, rows, width]."""
    across = min(_ACROSS, len(firsts))
    lines = []
    for start in range(0, len(firsts), across):
        for images in (firsts, bests):
            line = images[start : start + across]
            white = torch.full((across - len(line), *line.shape[1:]), 255, dtype=torch.uint8)
            lines.append(torch.cat([line, white]))
    return image_grid(torch.cat(lines), across)


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value != value else value for value in row] for row in rows])
    return text.getvalue().encode()
