"""Copies of training images in closed form, in blocks as in one piece; the metric and its files; stored features."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2ikit.metrics.base import CPU, Samples, reference_of
from t2ikit.metrics.distribution.copies import copy_threshold, find_copies, share_of_copies, unit_rows
from t2ikit.metrics.distribution.training_copies import TrainingCopies
from t2ikit.metrics.features import stored
from t2ikit.metrics.features.features import RandomConvFeatures
from t2ikit.metrics.features.stored import StoredFeatures


def on_circle(*degrees: float) -> torch.Tensor:
    """Rows of length one at these angles: the cosine distance of two is 1 - cos of the angle between them."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def distance(degrees: float) -> float:
    return 1.0 - math.cos(math.radians(degrees))


def test_the_threshold_is_the_quantile_of_the_distances_to_the_nearest_other_image() -> None:
    train = on_circle(0, 10, 30, 60, 100)  # nearest others: 10, 10, 20, 30, 40 degrees away
    for quantile, degrees in ((0.01, 10), (0.4, 10), (0.6, 20), (0.8, 30), (1.0, 40)):
        assert copy_threshold(train, [train], quantile) == pytest.approx(distance(degrees), abs=1e-6)
        assert copy_threshold(train, train.split(2), quantile) == copy_threshold(train, [train], quantile)
    assert copy_threshold(train[2:4], [train], 1.0) == pytest.approx(distance(30), abs=1e-6)  # of two rows alone


def test_a_copy_is_nearer_than_held_out_images_and_than_the_threshold() -> None:
    train, held_out = on_circle(0, 40, 80), on_circle(10, 200)
    fake = on_circle(1, 6, 41, 60, 199)  # a copy; nearer to held-out; a copy; too far away; a copy of nothing
    found = find_copies(fake, [train], held_out, distance(15))
    assert found.flags.tolist() == [True, False, True, False, False] and found.share == 0.4
    assert found.train_index.tolist()[:3] == [0, 0, 1] and found.held_out_index.tolist() == [0, 0, 0, 0, 1]
    assert found.train.tolist() == pytest.approx([distance(d) for d in (1, 6, 1, 20, 119)], abs=1e-6)
    assert found.held_out.tolist() == pytest.approx([distance(d) for d in (9, 4, 31, 50, 1)], abs=1e-6)
    blockwise = find_copies(fake, train.split(1), held_out, distance(15))
    assert torch.equal(blockwise.train, found.train) and torch.equal(blockwise.train_index, found.train_index)


def test_images_of_one_law_are_hardly_copies_and_memorised_ones_all_are() -> None:
    """However many training images there are; the definition of SynthReal agrees where nothing is held out."""
    generator = torch.Generator().manual_seed(0)
    held_out, fake, noise = unit_rows(torch.randn(900, 16, generator=generator)).split(300)
    for count in (64, 4000):
        train = unit_rows(torch.randn(count, 16, generator=generator))
        threshold = copy_threshold(train, [train], 0.01)
        assert find_copies(fake, [train], held_out, threshold).share <= 0.03
        learned = unit_rows(train[:64].repeat(5, 1)[:300] + 1e-3 * noise)
        assert find_copies(learned, [train], held_out, threshold).share == 1.0
        far = -train[:1]  # nearer to no learned image than the image that it learned
        assert find_copies(learned, [train], far, threshold).share == share_of_copies(train, learned)


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def metric_of(folder: Path, train: torch.Tensor, pairs: int = 16) -> TrainingCopies:
    features = RandomConvFeatures(dim=16)
    kept = StoredFeatures(folder, len(train), lambda rows, device: features(train[rows.start : rows.stop]), "training")
    return TrainingCopies(
        features, name="overfitting", training=kept, images=train, identity={"training": "train"}, pairs=pairs
    )


def test_the_metric_and_its_files(tmp_path: Path) -> None:
    train, held_out = images(40, 0), images(30, 1)
    fake = torch.cat([images(9, 2), train[7:10]])
    samples = Samples(fake, reference=reference_of(held_out, "val"))
    metric = metric_of(tmp_path, train, pairs=10)
    metric.look_at_training(CPU)
    result = metric.compute(samples)
    assert result.values["copies"] == 3 / 12 and result.errors["copies"] == pytest.approx((0.25 * 0.75 / 12) ** 0.5)
    table = list(csv.DictReader(io.StringIO(result.files["nearest.csv"].decode())))
    assert [row["copy"] for row in table] == ["0"] * 9 + ["1"] * 3
    assert [row["train_index"] for row in table[9:]] == ["7", "8", "9"]
    picture = np.array(Image.open(io.BytesIO(result.files["nearest_pairs.png"])))
    side, gap = 96, 2  # images of 16 pixels are enlarged; rows of 8 images: generated, training, held-out, twice
    assert picture.shape == (6 * (side + gap) - gap, 8 * (side + gap) - gap, 3)
    for column in range(3):  # copies come first: the row below each is the very image
        x = slice(column * (side + gap), column * (side + gap) + side)
        assert np.array_equal(picture[:side, x], picture[side + gap : 2 * side + gap, x])
        assert not np.array_equal(picture[:side, x], picture[2 * (side + gap) : 3 * side + 2 * gap, x])
    described = metric.fingerprint_of(samples)
    assert described["num_reference"] == 30 and described["quantile"] == 0.01 and described["training"] == "train"
    with pytest.raises(ValueError, match="needs reference images"):
        metric.check(Samples(fake))


@pytest.mark.parametrize("damage", ["cut", "empty", "short", "text"])
def test_damaged_features_are_computed_again(tmp_path: Path, damage: str) -> None:
    wanted = torch.arange(22.0).reshape(11, 2)
    features = StoredFeatures(tmp_path, 11, lambda rows, device: wanted[rows.start : rows.stop], "training")
    features.fill(CPU)
    path = tmp_path / "00000000.npy"
    whole = path.read_bytes()
    if damage == "short":
        np.save(path, wanted[:3].numpy())
    else:
        path.write_bytes({"cut": whole[:-9], "empty": b"", "text": b"hello"}[damage])
    features.fill(CPU)
    assert torch.equal(torch.cat(list(features.blocks())), wanted) and path.read_bytes() == whole


def test_a_damaged_threshold_and_features_of_another_network(tmp_path: Path) -> None:
    samples = Samples(images(9, 2), reference=reference_of(images(30, 1), "val"))
    metric = metric_of(tmp_path, images(40, 0))
    metric.look_at_training(CPU)
    wanted = metric.compute(samples).files
    for content in ("", "{", "[1]", '{"threshold": "x"}'):
        (tmp_path / "threshold-0.01.json").write_text(content)
        assert metric.compute(samples).files == wanted
    np.save(tmp_path / "00000000.npy", np.zeros((40, 3), np.float32))
    with pytest.raises(ValueError, match="holds features of another network: remove this folder"):
        metric.compute(samples)


def test_training_features_are_computed_once_and_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_ranks: Callable[[Callable[[], Any]], list[Any]]
) -> None:
    monkeypatch.setattr(stored, "CHUNK", 4)
    wanted = torch.arange(22.0).reshape(11, 2)
    calls: list[range] = []

    def compute(rows: range, device: torch.device) -> torch.Tensor:
        calls.append(rows)
        return wanted[rows.start : rows.stop]

    features = StoredFeatures(tmp_path / "one", 11, compute, "training")
    assert not features.complete()
    features.fill(CPU)
    assert features.complete() and calls == [range(4), range(4, 8), range(8, 11)]
    features.fill(CPU)
    (tmp_path / "one" / "00000004.npy").unlink()
    features.fill(CPU)
    assert calls[3:] == [range(4, 8)]
    assert [len(block) for block in features.blocks()] == [4, 4, 3]
    assert torch.equal(torch.cat(list(features.blocks())), wanted)
    assert torch.equal(features.rows([0, 5, 6, 10]), wanted[[0, 5, 6, 10]])

    def of_a_rank() -> list[range]:
        calls.clear()
        StoredFeatures(tmp_path / "two", 11, compute, "training").fill(CPU)
        return calls

    assert two_ranks(of_a_rank) == [[range(4), range(8, 11)], [range(4, 8)]]
    assert torch.equal(torch.cat(list(StoredFeatures(tmp_path / "two", 11, compute, "").blocks())), wanted)
