"""Aspect buckets: the bucket of a step is a pure function of (seed, step), and every record is still visited once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from t2ikit.data.buckets import BucketSchedule
from t2ikit.data.datamodule import DataModule
from t2ikit.data.gate import Gate
from t2ikit.data.loaders import EvaluationStream, PositionLoader
from t2ikit.data.streams import TrainingStream
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set

SHAPES = {"1.00": (8, 8), "0.60": (6, 10), "1.67": (10, 6)}
COUNTS = {"1.00": 37, "0.60": 17, "1.67": 25}


def states(width: int = 8) -> States:
    return States(quantise_tokens(np.ones((1, width), np.float32)))


def record(image: np.ndarray, width: int = 8) -> Record:
    return Record({"image": image, "text.t5.0": states(width).tokens}, ("a",))


def manifest(height: int, width: int, dim: int = 8) -> Manifest:
    return Manifest("pixels", (3, height, width), texts={"t5": TextSource(dim)})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, extra in (("train", 0), ("train_cm4", -3), ("val", -12)):
        for name, (height, width) in SHAPES.items():
            images = random.integers(0, 256, (COUNTS[name] + extra, 3, height, width)).astype(np.uint8)
            write_set(folder / split / name, map(record, images), manifest(height, width), {"t5": states()})
    return folder


def make_stream(root: Path, gated: bool = False, **options: int) -> TrainingStream:
    names = list(SHAPES)
    return TrainingStream(
        [RecordSet(root / "train" / name) for name in names],
        [Gate("cm4", root / "train_cm4", 0.4, 0.5)] if gated else [],
        open_set=lambda folder, bucket: RecordSet(folder / names[bucket]),
        **{"seed": 5, "global_batch": 8, **options},
    )


def test_each_epoch_has_the_whole_batches_of_every_bucket_in_another_order() -> None:
    schedule = BucketSchedule([37, 17, 25], 8, seed=5, names=["a", "b", "c"])
    assert schedule.steps == (4, 2, 3) and schedule.steps_per_epoch == 9
    epochs = [[schedule.bucket(8 * (9 * epoch + step)) for step in range(9)] for epoch in range(4)]
    assert all(Counter(epoch) == {0: 4, 1: 2, 2: 3} for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_position_in_a_bucket_counts_its_own_slots() -> None:
    schedule = BucketSchedule([37, 17, 25], 8, seed=5, names=["a", "b", "c"])
    served = [0, 0, 0]
    for slot in range(8 * 9 * 3):
        assert [schedule.served(bucket, slot) for bucket in range(3)] == served, slot
        served[schedule.bucket(slot)] += 1


def test_one_set_is_counted_as_before() -> None:
    schedule = BucketSchedule([37], 8, seed=5, names=["a"])
    assert [(schedule.bucket(slot), schedule.served(0, slot)) for slot in (0, 31, 99)] == [(0, 0), (0, 31), (0, 99)]


def test_a_bucket_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"train/0\.60 has 7 records, fewer than one batch of 8: lower data.batch_size"
    ):
        BucketSchedule([37, 7], 8, seed=0, names=["train/1.00", "train/0.60"])


def test_a_step_has_one_shape_and_an_epoch_visits_a_record_once(root: Path) -> None:
    stream = make_stream(root)
    seen: dict[tuple[int, ...], list[int]] = {}
    for batch in (stream[number] for number in range(len(stream))):
        seen.setdefault(tuple(batch.image.shape[2:]), []).extend(batch.index.tolist())
    assert {shape: len(index) for shape, index in seen.items()} == {(8, 8): 32, (6, 10): 16, (10, 6): 24}
    assert all(len(set(index)) == len(index) for index in seen.values())


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 2), (2, 1), (2, 4)])
def test_ranks_and_micro_batches_change_nothing(root: Path, world_size: int, accumulate: int) -> None:
    whole = make_stream(root, gated=True)
    ranks = [
        make_stream(root, gated=True, world_size=world_size, accumulate=accumulate, rank=rank)
        for rank in range(world_size)
    ]
    assert set(map(whole.schedule.bucket, range(0, 240, 8))) == {0, 1, 2}
    for step in range(30):  # more than three epochs
        micro_batches = [
            ranks[rank][step * accumulate + part] for part in range(accumulate) for rank in range(world_size)
        ]
        batch = whole[step]
        assert torch.equal(batch.image, torch.cat([part.image for part in micro_batches]))
        for name in ("u", "source", "index"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in micro_batches]))
    assert {0, 1} == set(torch.cat([whole[step].source for step in range(9)]).tolist())


def test_a_position_goes_on_inside_an_epoch(root: Path) -> None:
    expected = [batch.index.tolist() for batch in PositionLoader(make_stream(root))]
    first, second = PositionLoader(make_stream(root)), PositionLoader(make_stream(root))
    iterator = iter(first)
    begun = [next(iterator).index.tolist() for _ in range(4)]
    second.load_state_dict(first.state_dict())
    assert begun + [batch.index.tolist() for batch in second] == expected


@pytest.mark.parametrize("limit", [None, 20])
def test_validation_takes_every_bucket_record_by_record(root: Path, limit: int | None) -> None:
    sets = [RecordSet(root / "val" / name) for name in SHAPES]
    batches = [
        EvaluationStream(sets, 4, world_size=2, rank=rank, limit=limit)[number]
        for rank in range(2)
        for number in range(len(EvaluationStream(sets, 4, world_size=2, rank=rank, limit=limit)))
    ]
    count = limit or sum(map(len, sets))
    levels = sorted(u for batch in batches for u in batch.u.tolist())
    assert levels == pytest.approx([(index + 0.5) / count for index in range(count)])
    seen = Counter((tuple(batch.image.shape[2:]), index) for batch in batches for index in batch.index.tolist())
    assert len(seen) == count and set(seen.values()) == {1}
    if limit is None:
        assert Counter(shape for shape, _ in seen) == {(8, 8): 25, (6, 10): 5, (10, 6): 13}


def test_the_data_module_finds_the_buckets_the_square_one_first(root: Path) -> None:
    data = DataModule(str(root), batch_size=8, num_workers=0)
    data.find_data()
    data.setup("fit")
    assert data.bucket_names == ("1.00", "0.60", "1.67")
    assert data.manifest.image_shape == (3, 8, 8)
    assert {batch.image.shape[2:] for batch in data.train_dataloader()} == {(8, 8), (6, 10), (10, 6)}
    assert sum(len(batch) for batch in data.val_dataloader()) == 43


def test_a_resume_with_other_buckets_is_refused(root: Path) -> None:
    before = DataModule(str(root), batch_size=8, num_workers=0).continuation()
    now = DataModule(str(root), batch_size=8, num_workers=0, buckets=["1.00", "1.67"]).continuation()
    with pytest.raises(ValueError, match=r"the buckets were 1\.00, 0\.60, 1\.67 and are 1\.00, 1\.67 now"):
        type(before).from_state(before.to_state()).check(now)


def test_buckets_that_differ_in_more_than_their_shape_are_refused(root: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, width in (("a", 8), ("b", 16)):
            records = (record(np.zeros((3, 8, 8), np.uint8), width) for _ in range(8))
            write_set(tmp_path / split / name, records, manifest(8, 8, width), {"t5": states(width)})
    with pytest.raises(ValueError, match="buckets .*a and .*b do not fit each other: text_dim is 16 there and 8 here"):
        DataModule(str(tmp_path), batch_size=8).setup("fit")
