"""Precision, recall, density and coverage of a generated set against a real one.

Shape legend::

    N  real samples    M  generated samples    D  features    R  rows of a block

Definitions: Kynkaanniemi et al. 2019 (improved precision and recall) and Naeem et al. 2020, Equations 3 to 6
(density and coverage). ``r_k(x)`` is the distance of ``x`` to its k-th neighbour in its own set, itself left out;
every comparison with a radius is strict.

How it is computed: squared distances come in blocks from a float32 matrix product of the centred rows; a distance
within the rounding error of a radius is computed again in float64, from the differences themselves. The result is
therefore that of exact arithmetic (duplicates are at distance zero), at the price of a float32 product, in memory that
does not grow with N times M. A set's distances to itself are computed once for both of a pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2ikit.metrics.distribution.nearest import Nearest, below, true_positions

BLOCK_ENTRIES = 2**23  # distances held at a time: 32 MiB of float32
PAIR_ENTRIES = 2**18  # feature values held at a time when pairs are settled in float64
CHUNK = 1024  # rows converted to float64 at a time
SPARE = 6  # neighbours kept beyond the k-th, so that it can be settled among those that rounding may swap


@dataclass(frozen=True)
class PRDCPreset:
    """One published way to compute the four numbers.

    Attributes:
        k: which neighbour gives the radius.
        distance: "euclidean" or "cosine".
        chunks: both sets are cut into that many runs of consecutive rows, scored apart and averaged.
        rows: at most that many rows of each set, taken at random without replacement; None = all.
    """

    k: int
    distance: str
    chunks: int = 1
    rows: int | None = None


PRESETS = {
    "imagenet_t2i": PRDCPreset(k=3, distance="euclidean", chunks=5),
    "dgm_eval": PRDCPreset(k=5, distance="euclidean", rows=10_000),
    "synthreal": PRDCPreset(k=5, distance="cosine"),
}
"""``imagenet_t2i``: the code behind the tables of "How far can we go with ImageNet" (row order matters: each chunk is
scored against the chunk of the same place). ``dgm_eval``: Stein et al. 2023. ``synthreal``: arXiv 2602.19946."""


@dataclass(frozen=True)
class _Rows:
    """A set of features ready for blockwise distances.

    Attributes:
        exact: [N, D] as given (cosine: unit rows), any float type; differences are taken of these, in float64.
        centred: [N, D] float32, moved to the common centre and scaled.
        square: [N] float64, ``|x|^2`` of the centred and scaled rows.
        scale: the power of two that brought the centred rows to order one.
    """

    exact: Tensor
    centred: Tensor
    square: Tensor
    scale: float

    def __len__(self) -> int:
        return self.exact.shape[0]


def prdc(
    real: Tensor | NDArray[np.floating], fake: Tensor | NDArray[np.floating], k: int = 5, distance: str = "euclidean"
) -> dict[str, float]:
    """Precision, recall, density and coverage.

    Args:
        real: [N, D] features of real images.
        fake: [M, D] features of generated images; on the device of ``real`` when both are tensors.
        k: which neighbour gives the radius.
        distance: "euclidean", or "cosine" (1 - cosine similarity).

    Returns:
        ``precision``: share of generated rows inside the ball of any real row. ``recall``: share of real rows inside
        the ball of any generated row. ``density``: real balls around a generated row, over k, mean (may pass 1).
        ``coverage``: share of real rows whose nearest generated row is inside their ball.

    Raises:
        ValueError: shapes that do not fit, fewer than k + 2 rows, features that are not finite, a zero row under the
            cosine distance, an unknown distance.
    """
    real_rows, fake_rows = _prepare(_features(real, "real", k), _features(fake, "fake", k), distance)
    real_radii, fake_radii = _radii(real_rows, k), _radii(fake_rows, k)
    covered = torch.zeros(len(real_rows), dtype=torch.bool, device=real_radii.device)
    recalled = torch.zeros_like(covered)
    precise = torch.zeros(len(fake_rows), dtype=torch.bool, device=real_radii.device)
    balls = 0
    error_rows, error_columns = _error(real_rows, fake_rows)[:, None], _error(fake_rows, real_rows)[None]
    for start, stop in _blocks(len(real_rows), len(fake_rows)):
        squares = _squares(real_rows, fake_rows, start, stop, 0)
        radii = real_radii[start:stop, None]
        inside = _inside(squares, radii, error_rows[start:stop], real_rows, fake_rows, start)
        covered[start:stop] = _any(inside, dim=1)
        precise |= _any(inside, dim=0)
        balls += int(inside.count_nonzero())
        inside = _inside(squares, fake_radii[None], error_columns, real_rows, fake_rows, start)
        recalled[start:stop] = _any(inside, dim=1)
    return {
        "precision": _share(precise),
        "recall": _share(recalled),
        "density": balls / (k * len(fake_rows)),
        "coverage": _share(covered),
    }


def prdc_preset(
    real: Tensor | NDArray[np.floating], fake: Tensor | NDArray[np.floating], preset: str, seed: int = 0
) -> dict[str, float]:
    """The four numbers in a published way, by name.

    Args:
        real: [N, D] features of real images.
        fake: [M, D] features of generated images.
        preset: a key of ``PRESETS``.
        seed: of the rows that presets with a subset take (dgm-eval itself does not seed here).

    Returns:
        As ``prdc``.

    Raises:
        ValueError: unknown preset, or as ``prdc``; a preset with chunks needs k + 2 rows a chunk.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    chosen = PRESETS[preset]
    first, second = torch.as_tensor(real), torch.as_tensor(fake)
    if chosen.rows is not None:
        generator = torch.Generator().manual_seed(seed)
        first, second = (_subset(rows, chosen.rows, generator) for rows in (first, second))
    pairs = list(zip(first.chunk(chosen.chunks), second.chunk(chosen.chunks), strict=True))
    scores = [prdc(real_chunk, fake_chunk, chosen.k, chosen.distance) for real_chunk, fake_chunk in pairs]
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def _subset(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` of the rows [N, D], without replacement."""
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)]


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


def _features(rows: Tensor | NDArray[np.floating], name: str, k: int) -> Tensor:
    """Checked features [N, D], any float type."""
    features = torch.as_tensor(rows).detach()
    if features.dim() != 2 or features.shape[1] == 0:
        raise ValueError(f"prdc needs {name} features [N, D]; got {tuple(features.shape)}")
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")
    if len(features) < k + 2:
        raise ValueError(f"k={k} needs at least {k + 2} {name} samples, got {len(features)}: lower k or add images")
    if not features.is_floating_point():
        features = features.to(torch.float64)
    finite = features.isfinite().all(dim=1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"{name} features are not finite at row {row} ({int((~finite).sum())} such rows)")
    return features


def _prepare(real: Tensor, fake: Tensor, distance: str) -> tuple[_Rows, _Rows]:
    """Both sets centred on the mean of the real one and scaled by one power of two."""
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real and fake features differ in width: {real.shape[1]} and {fake.shape[1]}")
    if distance == "cosine":
        # Unit rows: |x - y|^2 = 2 (1 - cos), so the order of distances, and with it every verdict, is the same.
        real, fake = _unit(real, "real"), _unit(fake, "fake")
    elif distance != "euclidean":
        raise ValueError(f"distance must be 'euclidean' or 'cosine'; got {distance!r}")
    centre = real.mean(dim=0, dtype=torch.float64)
    bounds = [bound(dim=0).to(torch.float64) - centre for rows in (real, fake) for bound in (rows.amax, rows.amin)]
    largest = float(torch.stack(bounds).abs().max())
    scale = 2.0 ** -math.frexp(largest)[1] if largest > 0 else 1.0
    return _rows(real, centre, scale), _rows(fake, centre, scale)


def _unit(features: Tensor, name: str) -> Tensor:
    """Rows [N, D] float64 of length one."""
    rows = features.to(torch.float64)
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    length = rows.norm(dim=1, keepdim=True)
    if bool((length == 0).any()):
        row = int((length[:, 0] == 0).nonzero()[0])
        raise ValueError(f"the cosine distance of a zero feature row is undefined ({name} row {row})")
    return rows / length


def _rows(features: Tensor, centre: Tensor, scale: float) -> _Rows:
    centred = torch.empty(features.shape, dtype=torch.float32, device=features.device)
    square = torch.empty(len(features), dtype=torch.float64, device=features.device)
    for start in range(0, len(features), CHUNK):
        chunk = slice(start, start + CHUNK)
        exact = (features[chunk].to(torch.float64) - centre) * scale
        square[chunk] = exact.square().sum(dim=1)
        centred[chunk] = exact
    return _Rows(features, centred, square, scale)


def _error(rows: _Rows, others: _Rows) -> Tensor:
    """Bound [N] float64 of what float32 may do to the squared distances between each row and any of the others.

    A product of D terms errs by about sqrt(D) roundings of ``|x| |y|``; the norms and the centring add a few more.
    """
    roundings = 8 + math.sqrt(rows.exact.shape[1])
    return torch.finfo(torch.float32).eps * roundings * (rows.square + others.square.max())


def _blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Runs of rows such that a block of distances to all columns stays within BLOCK_ENTRIES."""
    step = max(1, min(rows, BLOCK_ENTRIES // max(1, columns)))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _exact(rows: _Rows, others: _Rows, i: Tensor, j: Tensor) -> Tensor:
    """Squared distances [P] float64 of the pairs ``rows[i], others[j]``, from their differences."""
    step = max(1, PAIR_ENTRIES // rows.exact.shape[1])
    settled = rows.square.new_empty(len(i))
    for start in range(0, len(i), step):
        chunk = slice(start, start + step)
        difference = rows.exact[i[chunk]].to(torch.float64)
        difference -= others.exact[j[chunk]]
        settled[chunk] = difference.mul_(rows.scale).square_().sum(dim=1)
    return settled


def _squares(rows: _Rows, others: _Rows, start: int, stop: int, first: int) -> Tensor:
    """Approximate squared distances of ``rows[start:stop]`` to ``others[first:]``, float32."""
    bias = others.square[None, first:].to(torch.float32)
    product = torch.addmm(bias, rows.centred[start:stop], others.centred[first:].T, alpha=-2.0)
    return product.add_(rows.square[start:stop, None].to(torch.float32))


def _radii(rows: _Rows, k: int) -> Tensor:
    """Squared distance [N] float64 of every row to its k-th neighbour (the (k + 1)-th smallest with itself)."""
    count = len(rows)
    nearest = Nearest(count, min(k + 1 + SPARE, count), rows.square.device)
    for start, stop in _blocks(count, count):
        squares = _squares(rows, rows, start, stop, start)
        nearest.add(squares, start, start)
        if stop < count:
            nearest.add(squares[:, stop - start :], start, stop, turned=True)
    return _settle(rows, nearest.values, nearest.columns, k + 1)


def _settle(rows: _Rows, values: Tensor, columns: Tensor, rank: int) -> Tensor:
    """The ``rank``-th smallest exact squared distance [N] float64, from the sorted nearest [N, K] float32 of each."""
    table, error = values.to(torch.float64), _error(rows, rows)
    approximate = table[:, rank - 1].clone()
    # Only what rounding cannot tell from the rank-th value decides it; the rest is surely nearer or farther.
    i, j = ((table - approximate[:, None]).abs() <= 2 * error[:, None]).nonzero(as_tuple=True)
    table[i, j] = _exact(rows, rows, i, columns[i, j])
    radii = table.kthvalue(rank, dim=1).values
    if values.shape[1] < len(rows):
        # Where so many distances are equal that the kept ones may not hold the answer, the whole row is computed.
        crowded = (values[:, -1] - approximate <= 2 * error).nonzero()[:, 0]
        for row in crowded.tolist():
            every = torch.arange(len(rows), device=crowded.device)
            radii[row] = _exact(rows, rows, torch.full_like(every, row), every).kthvalue(rank).values
    return radii


def _inside(squares: Tensor, radii: Tensor, error: Tensor, rows: _Rows, others: _Rows, start: int) -> Tensor:
    """Whether each pair of a block [R, M] is strictly nearer than its radius; ``radii``, ``error`` broadcast to it."""
    inside = below(squares, (radii - error).to(torch.float32))
    # Up to the next float32, so that a distance on the upper edge is looked at again as well.
    edge = (radii + error).to(torch.float32)
    possible = below(squares, torch.nextafter(edge, torch.full_like(edge, math.inf)))
    unsure = _any(possible ^ inside, dim=1).nonzero()[:, 0]
    if len(unsure):
        i, j = true_positions(possible[unsure] ^ inside[unsure])
        i = unsure[i]
        inside[i, j] = _exact(rows, others, i + start, j) < radii.expand(squares.shape)[i, j]
    return inside


def _any(flags: Tensor, dim: int) -> Tensor:
    """``flags.any(dim)``, many times faster on the CPU."""
    return flags.view(torch.uint8).amax(dim=dim).view(torch.bool)
