"""The streams: pure functions of the slot, whatever the ranks, workers and micro-batches."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from t2ikit.data.gate import Gate
from t2ikit.data.loaders import EvaluationLoader, EvaluationStream, PositionLoader
from t2ikit.data.order import RecordOrder
from t2ikit.data.streams import TrainingStream
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, Tokens, quantise_tokens
from t2ikit.records.writing import write_set

ENCODER = EncoderReference("tiny-t5", None, "ab" * 32)
PIXELS = Manifest("pixels", (3, 8, 8), texts={"t5": TextSource(24, ENCODER)})
COUNTS = {"train": 103, "train_cm4": 90, "train_crop": 37, "val": 21}


def make_record(split: str, index: int, captions: int = 1, form: str = "int8", latents: bool = False) -> Record:
    random = np.random.default_rng([len(split), index])
    image = (
        random.random((2, 4, 2, 2)).astype(np.float16)
        if latents
        else random.integers(0, 256, (3, 8, 8)).astype(np.uint8)
    )
    texts = tuple(f"{split} {index} {caption}" for caption in range(captions))
    tokens = {
        f"text.t5.{caption}": quantise_tokens(random.standard_normal((1 + (7 * index + caption) % 19, 24)), form)
        for caption in range(captions)
    }
    return Record({"image": image, **tokens}, texts, {"key": f"{split}/{index}"})


def empty(form: str = "int8") -> dict[str, States]:
    return {"t5": make_record("empty", 0, form=form).texts["t5"][0]}


def tokens_of(record: Record, caption: int = 0) -> Tokens:
    return record.texts["t5"][caption].tokens


def write_root(root: Path, manifest: Manifest = PIXELS, **options: Any) -> Path:
    for split, count in COUNTS.items():
        records = (make_record(split, index, **options) for index in range(count))
        write_set(root / split, records, manifest, empty(manifest.token_format), 6000)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("data"))


def make_stream(root: Path, **options: Any) -> TrainingStream:
    gates = [
        Gate("cm4", root / "train_cm4", 0.4, 0.5),
        Gate("crop", root / "train_crop", 0.6, 0.25),
    ]
    defaults = {"gates": gates, "seed": 5, "global_batch": 16, "length_bucket": 8}
    return TrainingStream(RecordSet(root / "train"), **{**defaults, **options})


# Order


@pytest.mark.parametrize("window", [1, 20, 1000])
def test_an_epoch_visits_every_record_once(window: int) -> None:
    order = RecordOrder([10, 7, 10, 10, 3], seed=0, name="raw", window=window)
    epochs = [order.index(epoch, np.arange(40)) for epoch in range(3)]
    for index in epochs:
        assert index.dtype == np.int64 and sorted(index.tolist()) == list(range(40))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    other = RecordOrder([10, 7, 10, 10, 3], seed=0, name="cm4", window=window)
    assert not np.array_equal(epochs[0], other.index(0, np.arange(40)))


def test_the_order_does_not_depend_on_what_was_asked_before() -> None:
    order = RecordOrder([8, 8, 8], seed=1, name="raw")
    slots, epochs = np.array([3, 20, 0, 23, 5]), np.array([4, 0, 1, 4, 0])
    mixed = order.index(epochs, slots)
    for place, (epoch, slot) in enumerate(zip(epochs, slots, strict=True)):
        fresh = RecordOrder([8, 8, 8], seed=1, name="raw")
        assert fresh.index(int(epoch), np.array([slot]))[0] == mixed[place]


def test_a_narrow_window_stays_within_a_chunk_and_a_wide_one_mixes_all() -> None:
    sizes = [50] * 10
    narrow = RecordOrder(sizes, 0, "raw", window=1).index(0, np.arange(500)) // 50
    assert (np.diff(narrow) != 0).sum() == 9
    pairs = RecordOrder(sizes, 0, "raw", window=100).index(0, np.arange(500)) // 50
    assert all(len(set(pairs[start : start + 100])) == 2 for start in range(0, 500, 100))
    wide = RecordOrder(sizes, 0, "raw").index(0, np.arange(500)) // 50
    assert len(set(wide[:50])) == 10
    with pytest.raises(ValueError, match="data.shuffle_window"):
        RecordOrder(sizes, 0, "raw", window=0)


# Training stream


def test_a_batch_holds_the_records_it_names(root: Path) -> None:
    stream = make_stream(root)
    splits = ["train", "train_cm4", "train_crop"]
    seen = set()
    for number in range(2 * len(stream)):
        batch = stream[number]
        text = batch.text()
        assert batch.slot == 16 * number and batch.texts["t5"].max_length % 8 == 0
        assert batch.texts["t5"].tokens.shape[0] == int(text.mask.sum())
        longest = batch.texts["t5"].max_length
        assert longest - int(text.mask.sum(1).max()) < 8
        for row, (source, index) in enumerate(zip(batch.source.tolist(), batch.index.tolist(), strict=True)):
            record = make_record(splits[source], index)
            seen.add(source)
            assert np.array_equal(batch.image[row].numpy(), record.image)
            length = len(tokens_of(record))
            assert text.mask[row].tolist() == [True] * length + [False] * (longest - length)
            assert np.allclose(text.embeddings[row, :length].numpy(), tokens_of(record).dequantise())
            assert batch.u[row] >= [0.0, 0.4, 0.6][source]
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_and_micro_batches_share_the_same_slots(root: Path, world_size: int, accumulate: int) -> None:
    whole = make_stream(root)
    options = {"accumulate": accumulate, "world_size": world_size}
    ranks = [make_stream(root, **options, rank=rank) for rank in range(world_size)]
    assert len(ranks[0]) == len(whole) * accumulate
    for number in (0, 5, 7):  # an epoch has 6 batches
        batch = whole[number]
        parts = [ranks[rank][number * accumulate + part] for part in range(accumulate) for rank in range(world_size)]
        for name in ("image", "u", "source", "index"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts])), name
        for name in ("tokens", "scales"):
            own = torch.cat([getattr(part.texts["t5"], name) for part in parts])
            assert torch.equal(getattr(batch.texts["t5"], name), own), name
        assert [part.slot for part in parts] == list(range(batch.slot, batch.slot + 16, 16 // world_size // accumulate))


def test_epochs_and_gated_epochs_repeat_no_record(root: Path) -> None:
    stream = make_stream(root)
    assert stream.slots_per_epoch == 96
    for epoch in range(3):
        plans = [stream.plan(number) for number in range(6 * epoch, 6 * epoch + 6)]
        source, index = (np.concatenate([plan[column] for plan in plans]) for column in (1, 3))
        raw = index[source == 0]
        assert len(set(raw.tolist())) == len(raw)
    plans = [stream.plan(number) for number in range(200)]
    source, index = (np.concatenate([plan[column] for plan in plans]) for column in (1, 3))
    slots = np.arange(len(source))
    for number, size in ((1, 90), (2, 37)):
        for epoch in range(10):
            visited = index[(source == number) & (slots // size == epoch)]
            assert len(set(visited.tolist())) == len(visited)
    share = np.bincount(source, minlength=3) / len(source)
    assert np.allclose(share, [0.6, 0.3, 0.1], atol=0.03)


def test_the_seed_changes_everything_and_a_gated_stream_leaves_the_raw_order(root: Path) -> None:
    stream, other, plain = make_stream(root), make_stream(root, seed=6), make_stream(root, gates=[])
    _, source, u, index, _ = stream.plan(3)
    assert not np.array_equal(u, other.plan(3)[2]) and not np.array_equal(index, other.plan(3)[3])
    assert np.array_equal(index[source == 0], plain.plan(3)[3][source == 0])


def test_several_captions_are_all_used(tmp_path: Path) -> None:
    write_set(tmp_path, [make_record("train", index, 3) for index in range(16)], PIXELS, empty())
    stream = TrainingStream(RecordSet(tmp_path), global_batch=16)
    used = np.zeros(3, int)
    for number in range(40):
        batch = stream[number]
        text = batch.text()
        for row, index in enumerate(batch.index.tolist()):
            states = text.embeddings[row][text.mask[row]].numpy()
            captions = [states.tokens.dequantise() for states in make_record("train", index, 3).texts["t5"]]
            [match] = [i for i, c in enumerate(captions) if c.shape == states.shape and np.allclose(c, states)]
            used[match] += 1
    assert used.min() > 150 and used.sum() == 640


def test_latents_and_float16_tokens(tmp_path: Path) -> None:
    manifest = replace(PIXELS, kind="latents", image_shape=(2, 4, 2, 2), token_format="float16")
    write_root(tmp_path, manifest, form="float16", latents=True)
    batch = make_stream(tmp_path)[0]
    assert batch.image.dtype == torch.half and batch.image.shape == (16, 2, 4, 2, 2)
    assert batch.texts["t5"].tokens.dtype == torch.half and batch.texts["t5"].scales is None
    row = int((batch.source == 0).nonzero()[0])
    record = make_record("train", int(batch.index[row]), form="float16", latents=True)
    assert np.array_equal(batch.image[row].numpy(), record.image)
    assert np.array_equal(batch.text().embeddings[row, : len(tokens_of(record))], tokens_of(record).dequantise())


def test_a_batch_owns_its_memory(root: Path) -> None:
    """Writing into a mapped file would end the process."""
    batch = make_stream(root)[0]
    for tensor in (
        batch.image,
        batch.u,
        *(getattr(batch.texts["t5"], name) for name in ("tokens", "scales", "positions")),
    ):
        assert tensor is not None
        tensor.zero_()


def test_a_batch_in_page_locked_memory_is_copied_without_waiting(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, waits = make_stream(root)[0], []
    monkeypatch.setattr(Tensor, "to", lambda tensor, *_, non_blocking: waits.append(not non_blocking) or tensor)
    for pinned in (True, False):
        monkeypatch.setattr(Tensor, "is_pinned", lambda _, pinned=pinned: pinned)
        waits.clear()
        batch.to(torch.device("cpu"))
        assert waits == [not pinned] * 7


def test_unfit_options_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data.batch_size 16 is not divisible by 10 = 2 devices .* x 5 "):
        make_stream(root, world_size=2, accumulate=5)
    with pytest.raises(ValueError, match="lower data.batch_size"):
        make_stream(root, global_batch=128)
    with pytest.raises(ValueError, match="cm4: the probability p"):
        make_stream(root, gates=[Gate("cm4", root / "train_cm4", 0.4, 1.5)])
    with pytest.raises(FileNotFoundError, match="--data.root"):
        make_stream(root, gates=[Gate("cm9", root / "train_cm9", 0.4, 0.5)])
    for change, field in [
        ({"texts": {"t5": TextSource(12, ENCODER)}}, "text_dim"),
        ({"texts": {"t5": TextSource(24, EncoderReference("other", None, "ef" * 32))}}, "text_encoder"),
        ({"kind": "latents", "image_shape": (2, 4, 2, 2)}, "kind"),
        ({"image_shape": (3, 4, 4)}, "image_shape"),
    ]:
        manifest = replace(PIXELS, **change)
        shape, width = manifest.image_shape, manifest.text_dim
        image = np.zeros(shape, np.uint8 if manifest.kind == "pixels" else np.float16)
        record = Record({"image": image, "text.t5.0": quantise_tokens(np.ones((1, width)))}, ("a",))
        write_set(tmp_path / field, [record], manifest)
        with pytest.raises(ValueError, match=f"cm4.*{field}"):
            make_stream(root, gates=[Gate("cm4", tmp_path / field, 0.4, 0.5)])
    write_set(tmp_path / "images", [Record({"image": np.zeros((3, 8, 8), np.uint8)})], Manifest("pixels", (3, 8, 8)))
    with pytest.raises(ValueError, match="t2ikit prepare encode"):
        TrainingStream(RecordSet(tmp_path / "images"), global_batch=1)


# Evaluation stream


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 8), (1, 100), (2, 8), (3, 4), (4, 21)])
def test_evaluation_sees_every_record_once(root: Path, world_size: int, batch_size: int) -> None:
    records = RecordSet(root / "val")
    ranks = [EvaluationStream(records, batch_size, world_size, rank) for rank in range(world_size)]
    assert len({len(stream) for stream in ranks}) == 1
    batches = [batch for stream in ranks for batch in EvaluationLoader(stream)]
    assert max(len(batch) for batch in batches) <= batch_size
    index = torch.cat([batch.index for batch in batches])
    assert sorted(index.tolist()) == list(range(21))
    u = torch.cat([batch.u for batch in batches])
    assert torch.allclose(u, (index + 0.5) / 21)
    assert all(batch.slot == int(batch.index[0]) and not batch.source.any() for batch in batches)


def test_more_ranks_than_records_repeat_some(root: Path) -> None:
    streams = [EvaluationStream(RecordSet(root / "val"), 4, 30, rank) for rank in range(30)]
    assert {len(stream) for stream in streams} == {1}
    assert {int(stream[0].index[0]) for stream in streams} == set(range(21))


# Loader


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_any_number_of_workers_serves_the_same(root: Path, workers: int) -> None:
    stream = make_stream(root)
    loader = PositionLoader(stream, num_workers=workers)
    assert len(loader) == 6
    served = [batch for _ in range(2) for batch in loader]
    assert len(served) == 12 and loader.slot == 192
    for number, batch in enumerate(served):
        tiny.assert_same(batch, stream[number])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 5, 6, 8])
def test_a_resumed_loader_goes_on_where_it_was_cut(root: Path, workers: int, cut: int) -> None:
    stream = make_stream(root)
    loader = PositionLoader(stream, num_workers=workers)
    served = 0
    while served < cut:
        for _ in loader:
            served += 1
            if served == cut:
                break  # as a killed run, with batches read ahead
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    assert state == {"slot": 16 * cut}
    resumed = PositionLoader(make_stream(root), num_workers=workers)
    resumed.load_state_dict(state)
    rest = [batch.slot // 16 for _ in range(2) for batch in resumed]
    assert rest == list(range(cut, (cut // 6 + 2) * 6))


def test_an_abandoned_pass_goes_on_with_what_comes_next(root: Path) -> None:
    """Lightning leaves a sized loader after its last batch without exhausting it."""
    loader = PositionLoader(make_stream(root), num_workers=1, batches_per_pass=4)
    served = []
    for _ in range(4):
        iterator = iter(loader)
        iter(loader)  # never advanced: must not cost a batch
        served.extend(next(iterator).slot // 16 for _ in range(4))
    assert served == list(range(16))
    assert [batch.slot // 16 for batch in loader] == [16, 17, 18, 19]


def test_a_position_is_valid_for_other_ranks(root: Path) -> None:
    ranks = [PositionLoader(make_stream(root, world_size=2, rank=rank)) for rank in range(2)]
    for loader in ranks:
        iterator = iter(loader)
        for _ in range(2):
            next(iterator)
    assert ranks[0].state_dict() == ranks[1].state_dict() == {"slot": 32}
    alone = PositionLoader(make_stream(root))
    alone.load_state_dict(ranks[0].state_dict())
    assert next(iter(alone)).slot == 32
    with pytest.raises(ValueError, match="data.batch_size, trainer.devices"):
        alone.load_state_dict({"slot": 40})
