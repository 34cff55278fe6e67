"""Precision, recall, density, coverage: the definition in exact arithmetic, the prdc package, sample vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from t2ikit.metrics.distribution import nearest, precision_recall
from t2ikit.metrics.distribution.precision_recall import BLOCK_ENTRIES, PRESETS, prdc, prdc_preset

NAMES = ("precision", "recall", "density", "coverage")


def by_definition(real: NDArray[np.floating], fake: NDArray[np.floating], k: int) -> list[float]:
    """The four definitions written out, with differences in float64 and nothing clever."""
    real, fake = real.astype(np.float64), fake.astype(np.float64)

    def squares(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.stack([np.square(row - other).sum(axis=1) for row in one])

    real_radii, fake_radii = (np.sort(squares(rows, rows), axis=1)[:, k] for rows in (real, fake))
    cross = squares(real, fake)
    inside = cross < real_radii[:, None]
    recalled = (cross < fake_radii[None]).any(axis=1)
    return [inside.any(axis=0).mean(), recalled.mean(), inside.sum() / (k * len(fake)), inside.any(axis=1).mean()]


def clouds(count: int, other: int, width: int, seed: int = 0) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)), random.normal(size=(other, width)) * 0.9 + 0.2


@pytest.mark.parametrize(("count", "other", "width"), [(7, 9, 1), (200, 150, 3), (300, 310, 40)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_the_definition(count: int, other: int, width: int, k: int) -> None:
    real, fake = clouds(count, other, width)
    scores = prdc(real, fake, k)
    assert tuple(scores) == NAMES
    assert list(scores.values()) == pytest.approx(by_definition(real, fake, k), abs=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    real, fake = clouds(130, 170, 8)
    whole = prdc(real, fake, k)
    monkeypatch.setattr(precision_recall, "BLOCK_ENTRIES", 170 * 3)
    assert prdc(real, fake, k) == whole
    assert BLOCK_ENTRIES > 170 * 170


@pytest.mark.parametrize("order", ["far first", "near first", "clusters"])
@pytest.mark.parametrize("few", [1, 64, 10**9])
def test_the_order_of_the_rows_changes_nothing(monkeypatch: pytest.MonkeyPatch, order: str, few: int) -> None:
    # Blocks select as a whole or take in single distances; rows that come nearer and nearer ask for the most of both.
    real, fake = clouds(230, 180, 3)
    distances = np.linalg.norm(real, axis=1)
    if order == "clusters":
        real = np.concatenate([real + 100 * shift for shift in range(3)])[::-1]
        real = np.vstack([real, real[:40]])  # and rows that are there twice
    else:
        real = real[np.argsort(distances if order == "near first" else -distances)]
    monkeypatch.setattr(precision_recall, "BLOCK_ENTRIES", len(real) * 7)
    monkeypatch.setattr(nearest, "FEW", few)
    assert list(prdc(real, fake, 5).values()) == pytest.approx(by_definition(real, fake, 5), abs=1e-12)


def test_a_distance_within_a_set_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count, width, blocks = 600, 16, 20
    monkeypatch.setattr(precision_recall, "BLOCK_ENTRIES", count * count // blocks)
    real, fake = (torch.from_numpy(rows) for rows in clouds(count, count, width))
    with FlopCounterMode(display=False) as counter:
        prdc(real, fake)
    # A half of each set's distances to itself and the blocks on their diagonals, then all from one set to the other.
    assert counter.get_total_flops() == pytest.approx(2 * count**2 * width * (0.5 + 0.5 + 1 + 1 / blocks), rel=1e-9)


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gives."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, Tensor):
                self.bytes = max(self.bytes, one.untyped_storage().nbytes())
        return result


def test_memory_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = (torch.from_numpy(rows) for rows in clouds(2000, 2000, 8))
    monkeypatch.setattr(precision_recall, "BLOCK_ENTRIES", 2**16)
    monkeypatch.setattr(precision_recall, "PAIR_ENTRIES", 2**14)
    with LargestTensor() as largest:
        prdc(real, fake)
    # A block of float32, and what grows with N alone: features, and the nearest of each row with their places.
    assert largest.bytes <= max(4 * 2**16, 2000 * 8 * 8, 2000 * 2 * (5 + 1 + precision_recall.SPARE) * 8)


def test_equals_the_prdc_package(capsys: pytest.CaptureFixture[str]) -> None:
    package = pytest.importorskip("prdc")
    real, fake = clouds(600, 500, 32)
    expected = package.compute_prdc(real, fake, nearest_k=5)
    capsys.readouterr()
    for name, value in prdc(torch.from_numpy(real), torch.from_numpy(fake)).items():
        assert value == pytest.approx(expected[name], abs=1e-12)


def test_ties_are_settled_exactly() -> None:
    random = np.random.default_rng(1)
    real, fake = (random.integers(0, 6, size=(400, 2)).astype(np.float32) for _ in range(2))
    for offset in (0.0, 1000.0):  # far from zero, float32 norms alone could not tell neighbours apart
        for k in (3, 11):
            moved = prdc(real + np.float32(offset), fake + np.float32(offset), k)
            assert list(moved.values()) == pytest.approx(by_definition(real, fake, k), abs=1e-12)


def test_constant_sets_score_zero() -> None:
    constant = np.full((40, 3), 0.1)
    assert set(prdc(constant, constant).values()) == {0.0}
    # One distinct row more than k + 1 copies can hide.
    assert prdc(np.vstack([constant, np.ones((1, 3))]), constant)["recall"] == 0.0


def test_equal_sets_of_distinct_rows() -> None:
    real, _ = clouds(100, 10, 4)
    scores = prdc(real, real, 5)
    # Each row is inside its own ball and in those of its neighbours: k + 1 points nearer than the radius, less itself.
    assert scores == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_unit_of_the_features_does_not_matter(scale: float) -> None:
    real, fake = clouds(90, 80, 6)
    assert list(prdc(real * scale, fake * scale).values()) == pytest.approx(list(prdc(real, fake).values()))


def test_cosine_looks_at_directions_only() -> None:
    real, fake = clouds(150, 140, 5)
    lengths = np.random.default_rng(2).uniform(0.1, 10, size=(150, 1))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (real, fake)]
    expected = by_definition(*unit, k=5)
    assert list(prdc(real * lengths, fake, distance="cosine").values()) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="real row 3"):
        real[3] = 0
        prdc(real, fake, distance="cosine")


def test_presets() -> None:
    real, fake = (torch.from_numpy(rows) for rows in clouds(53, 51, 4))
    scores = [prdc(one, two, k=3) for one, two in zip(real.chunk(5), fake.chunk(5), strict=True)]
    chunked = prdc_preset(real, fake, "imagenet_t2i")
    assert chunked["density"] == pytest.approx(sum(score["density"] for score in scores) / 5)
    assert prdc_preset(real, fake, "synthreal") == prdc(real, fake, 5, "cosine")
    assert prdc_preset(real, fake, "dgm_eval") == prdc(real, fake, 5)
    assert PRESETS["dgm_eval"].rows == 10_000
    with pytest.raises(ValueError, match="synthreal"):
        prdc_preset(real, fake, "paper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 5, "rows": 6}, "at least 7 fake samples, got 6"),
        ({"k": 0}, "k must be at least 1"),
        ({"distance": "manhattan"}, "distance must be"),
        ({"nan": 4}, "fake features are not finite at row 4"),
        ({"width": 3}, "differ in width"),
    ],
)
def test_errors_name_what_to_change(change: dict[str, int | str], message: str) -> None:
    real, fake = clouds(20, 20, 4)
    fake = fake[: int(change.get("rows", 20)), : int(change.get("width", 4))]
    if "nan" in change:
        fake[int(change["nan"]), 1] = np.nan
    with pytest.raises(ValueError, match=message):
        prdc(real, fake, k=int(change.get("k", 5)), distance=str(change.get("distance", "euclidean")))


def test_sample_vectors(sample_data: Path) -> None:
    with np.load(sample_data / "vectors" / "prdc_sample.npz") as vectors:
        assert tuple(vectors["columns"]) == NAMES
        cases = [name.removesuffix("/real") for name in vectors.files if name.endswith("/real")]
        assert cases
        for case in cases:
            for k in (3, 5):
                scores = prdc(vectors[f"{case}/real"], vectors[f"{case}/fake"], k)
                assert list(scores.values()) == pytest.approx(list(vectors[f"{case}/k{k}"]), abs=1e-9)
