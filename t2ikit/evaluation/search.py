"""Test-time search: of every image several candidates are sampled, and a verifier chooses one of them.

Source: Ma et al., "Inference-time scaling for diffusion models beyond scaling denoising steps", 2025: random search and
zero-order search.

Shape legend::

    B  images of a batch    N  candidates of an image    R  rows, each a candidate of an image
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from t2ikit.evaluation.scoring import exact
from t2ikit.metrics.base import CPU, Metric, Samples, join, samples_of
from t2ikit.prompts import Prompt

SELECTION = "selection"
"""What the scores of a verifier are called in front: of images that it has chosen they are no result."""

Rows = Sequence[tuple[int, int]]
"""(row of the image in its batch, candidate) of each row."""
Render = Callable[[Tensor, Rows], Tensor]
"""Samples x_0 from noise [R, C, H, W] and returns images [R, 3, H, W] uint8 on the CPU."""


@dataclass(frozen=True)
class Chosen:
    """What a search gave for B images.

    Attributes:
        images: [B, 3, H, W] uint8, the candidates that the verifier chose.
        firsts: [B, 3, H, W] uint8, the first candidates: the images without a search.
        values: [B, N] float64, the verifier's score of every candidate; NaN where it has none.
    """

    images: Tensor
    firsts: Tensor
    values: Tensor


@dataclass(frozen=True)
class Search:
    """Which candidates are sampled, and who chooses.

    The first candidate is the image that is sampled without a search. Image i depends on (seed, i, prompt) and on the
    settings of the search alone.

    Attributes:
        verifier: any metric that scores an image by itself. It is no result of the images that it has chosen.
        method: "random": every candidate has noise of its own. "zero-order": candidates are neighbours of the best
            noise so far, which a better one replaces after each round.
        candidates: N, the first one counted.
        score: which score of the verifier decides; None where it has only one.
        neighbours: of zero-order, candidates in a round.
        similarity: of zero-order, cosine between the noise of a neighbour and the best one, both of one length.

    Raises:
        ValueError: a number out of range.
    """

    verifier: Metric
    method: Literal["random", "zero-order"] = "random"
    candidates: int = 16
    score: str | None = None
    neighbours: int = 4
    similarity: float = 0.95

    def __post_init__(self) -> None:
        if self.method not in ("random", "zero-order"):
            raise ValueError(f"search: method is random or zero-order, got {self.method!r}")
        for option, least in (("candidates", 2), ("neighbours", 1)):
            if getattr(self, option) < least:
                raise ValueError(f"search: {option} must be at least {least}, got {getattr(self, option)}")
        if not -1.0 < self.similarity < 1.0:
            raise ValueError(f"search: similarity is a cosine in (-1, 1), got {self.similarity}")
        if self.verifier.statistics_file is not None:
            raise ValueError(
                f"search: {self.verifier.title} compares sets of images and cannot be the verifier: it takes a metric "
                "that scores an image by itself, such as PickScore or CLIPScore"
            )

    # ------------------------------------------------------------------ what a score says of it

    def conditions(self) -> dict[str, Any]:
        """Everything that the choice depends on, for the fingerprint of every score of the images."""
        described: dict[str, Any] = {"method": self.method, "candidates": self.candidates}
        if self.method == "zero-order":
            described |= {"neighbours": self.neighbours, "similarity": self.similarity}
        verifier = {"metric": type(self.verifier).__name__, **self.verifier.fingerprint()}
        return {**described, "verifier": verifier | ({} if self.score is None else {"score": self.score})}

    def check(self, prompts: Sequence[Prompt], metrics: Sequence[Metric], label: str) -> None:
        """Refuses a verifier that cannot choose, or that is also to judge; before anything is sampled.

        Args:
            prompts: of all images.
            metrics: what will be computed of the images.
            label: of messages, such as ``callbacks.val``.

        Raises:
            ValueError: what to change.
        """
        for metric in metrics:
            if metric.name != SELECTION and self._judges_as(metric):
                raise ValueError(
                    f"{label}: {metric.title} has chosen these images (search.verifier), so its score of them is no "
                    f"result: leave it out of the metrics ({SELECTION}/... says what the search reached), or set its "
                    f"name to {SELECTION}"
                )
        title = f"{label}: search.verifier {self.verifier.title}"
        blank = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        try:
            self.verifier.check(samples_of(blank.expand(len(prompts), -1, -1, -1), prompts))
            with exact():
                names = list(self._results(samples_of(blank, prompts[:1]))[0])
        except (ValueError, ImportError, OSError) as error:
            raise ValueError(f"{title} cannot score an image: {error}") from error
        if self.score is None and len(names) != 1 or self.score is not None and self.score not in names:
            raise ValueError(f"{title}: search.score is {self.score}; set it to one of its scores: {', '.join(names)}")

    def _judges_as(self, metric: Metric) -> bool:
        """Whether a metric is the verifier: one class a kind of the other, with the same network."""
        if not (isinstance(metric, type(self.verifier)) or isinstance(self.verifier, type(metric))):
            return False
        ours, theirs = self.verifier.fingerprint(), metric.fingerprint()
        return all(ours.get(field) == theirs.get(field) for field in ("features", "features_sha256"))

    # ------------------------------------------------------------------ the candidates

    def rounds(self) -> list[range]:
        """The candidates that are sampled together, round after round: their noise depends on earlier rounds alone."""
        if self.method == "random":
            return [range(self.candidates)]
        starts = range(1, self.candidates, self.neighbours)
        return [range(1), *(range(start, min(start + self.neighbours, self.candidates)) for start in starts)]

    def images_at_once(self, batch_size: int) -> int:
        """How many images are searched together, so that the candidates of a round make a batch."""
        return max(1, batch_size // max(map(len, self.rounds())))

    def batches(self, count: int, batch_size: int) -> int:
        """How many batches the candidates of ``count`` images make."""
        return sum(math.ceil(count * len(candidates) / batch_size) for candidates in self.rounds())

    def choose(
        self,
        prompts: Sequence[Prompt],
        fresh: Callable[[int], Tensor],
        render: Render,
        batch_size: int,
        device: torch.device = CPU,
    ) -> Chosen:
        """The best of N candidates of each of B images; of equal ones the earliest.

        Args:
            prompts: B of them.
            fresh: candidate -> noise [B, C, H, W] on the CPU that no other candidate has.
            render: samples at most ``batch_size`` rows.
            batch_size: rows sampled at once; changes images by rounding at most.
            device: where the verifier looks at them.
        """
        count = len(prompts)
        values = torch.full((count, self.candidates), math.nan, dtype=torch.float64)
        best = [-math.inf] * count
        noise, images, firsts = fresh(0), list[Tensor](), list[Tensor]()
        for candidates in self.rounds():
            pivot = noise.clone()
            rows = [(row, candidate) for candidate in candidates for row in range(count)]
            starts = torch.cat([self._noise(pivot, fresh, candidate) for candidate in candidates])
            for first in range(0, len(rows), batch_size):
                chunk = rows[first : first + batch_size]
                rendered = render(starts[first : first + batch_size], chunk)
                scored = self.values(rendered, [prompts[row] for row, _ in chunk], device)
                for index, (row, candidate) in enumerate(chunk):
                    values[row, candidate] = scored[index]
                    if candidate == 0:
                        images.append(rendered[index])
                        firsts.append(rendered[index])
                    worth = self._worth(scored[index])
                    if worth > best[row]:
                        best[row], images[row], noise[row] = worth, rendered[index], starts[first + index]
        return Chosen(torch.stack(images), torch.stack(firsts), values)

    def _noise(self, pivot: Tensor, fresh: Callable[[int], Tensor], candidate: int) -> Tensor:
        if candidate == 0:
            return pivot
        return fresh(candidate) if self.method == "random" else neighbour(pivot, fresh(candidate), self.similarity)

    # ------------------------------------------------------------------ the verifier

    @property
    def less_is_better(self) -> bool:
        """Whether the verifier chooses the candidate with the least score."""
        names = self.verifier.less_is_better
        return self.score in names if self.score is not None else bool(names)

    def _worth(self, value: float) -> float:
        if math.isnan(value):
            return -math.inf
        return -value if self.less_is_better else value

    def running_best(self, values: Tensor) -> Tensor:
        """The verifier's score of the best of the first 1, 2, ..., N candidates, [B, N] like ``values``."""
        worth = torch.where(values.isnan(), -math.inf, -values if self.less_is_better else values)
        best = worth.cummax(dim=1).values
        return torch.where(best.isinf(), math.nan, -best if self.less_is_better else best)

    def chosen(self, values: Tensor) -> list[int]:
        """Which candidate was chosen of each image, by the scores [B, N] of all."""
        worth = torch.where(values.isnan(), -math.inf, -values if self.less_is_better else values)
        return [int(np.argmax(row)) for row in worth.numpy()]  # of equal ones the first

    def score_name(self, prompt: Prompt) -> str:
        """Name of the score that decides."""
        if self.score is not None:
            return self.score
        return next(iter(self._results(samples_of(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [prompt]))[0]))

    def values(self, images: Tensor, prompts: Sequence[Prompt], device: torch.device = CPU) -> list[float]:
        """The verifier's score of each image [R, 3, H, W] uint8 by itself; NaN where it says nothing of it."""
        with exact():
            results = self._results(samples_of(images, prompts, device))
        return [next(iter(result.values())) if self.score is None else result[self.score] for result in results]

    def _results(self, samples: Samples) -> list[dict[str, float]]:
        """All scores of each image as if it were the only one: what any metric makes of a set of one."""
        metric, size = self.verifier, self.verifier.batch_size
        starts = range(0, len(samples), size)
        rows = join([metric.observe(samples.batch(start, min(start + size, len(samples)))) for start in starts])
        results = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice|invalid value encountered", RuntimeWarning)
            for index in range(len(samples)):
                entry = slice(index, index + 1)
                one = Samples(
                    samples.images[entry], samples.prompts[entry], samples.metadata[entry], device=samples.device
                )
                results.append(dict(metric.score(one, rows[entry]).values))
        return results


def neighbour(pivot: Tensor, fresh: Tensor, similarity: float) -> Tensor:
    """Noise of the length of ``pivot`` at a given cosine to it, in the direction of other noise.

    Args:
        pivot, fresh: [B, C, H, W] standard normal, on the CPU.
        similarity: the cosine of each row with its pivot.

    Returns:
        [B, C, H, W] as pivot. A row depends on its own rows alone.
    """
    turned = torch.empty_like(pivot)
    for row in range(len(pivot)):
        old, new = pivot[row].double(), fresh[row].double()
        aside = new - (new * old).sum() / (old * old).sum() * old
        length = (old * old).sum().sqrt() / (aside * aside).sum().sqrt()
        turned[row] = similarity * old + math.sqrt(1.0 - similarity**2) * length * aside
    return turned
