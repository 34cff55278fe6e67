"""The benchmark of streaming measures what it says: the same records, the same bytes, whole tars."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.base import Settings
from t2ikit.records.view import HEADER, RecordView


def test_bytes_of_a_sample_and_of_the_set() -> None:
    """The floors of the format: posterior, values and scales; what comes on top is header, caption and metadata."""
    record = data.synthetic_record(0).to_bytes()
    arrays = 2 * 2 * 4 * 32 * 32 + 180 * (2048 + 2 * 32)
    assert arrays == 396_544 and arrays < len(record) < arrays + 1_000
    assert len(record) <= 0.40e6 and 2 * data.IMAGES * len(record) <= 1.03e12
    view = RecordView(record)
    table = HEADER.size + len(view.layout.block) + view.layout.numbers.size
    assert table <= 48 + 56  # 48: header and table of records of one image and one caption, before arrays had names
    assert view.shape("image") == (2, 4, 32, 32) and view.shape("text.t5.0") == (180, 2048)


def test_calls_of_a_sample(tmp_path: Path) -> None:
    """Counted, not timed: what a sample of 180 tokens costs in calls of functions and of C."""
    data.write_root(tmp_path, 64)
    stream = data.make_stream(tmp_path)
    stream[0]
    calls: Counter[str] = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        stream[1]
    finally:
        sys.setprofile(None)
    assert calls["call"] / data.BATCH <= 22 and calls["c_call"] / data.BATCH <= 25  # 22 and 25 before arrays had names


def test_plain_reads_are_the_same_bytes(tmp_path: Path) -> None:
    data.write_root(tmp_path, 64)
    stream = data.make_stream(tmp_path)
    plain = data.PlainReads(stream)
    batch = stream[0]
    assert set(batch.source.tolist()) == {0, 1} and len(batch) == 64
    sizes = [
        len(stream.sources[0][source].records.raw(index)) + 4  # LitData's size before an item
        for source, index in zip(batch.source.tolist(), batch.index.tolist(), strict=True)
    ]
    assert plain.batch(0) == sum(sizes)


def test_tars_are_read_whole(tmp_path: Path) -> None:
    for seed, name in enumerate(("raw.tar", "mixed.tar")):
        data.write_tar(tmp_path / name, 3, seed)
    samples = list(data.read_tar(tmp_path / "raw.tar", pictures=True))
    assert [sample["name"] for sample in samples] == ["000000", "000001", "000002"]
    assert samples[2]["states.npy"].shape == (180, 2048) and samples[0]["jpg"].shape == (256, 256, 3)
    assert data.train_from_tars(tmp_path / "raw.tar", tmp_path / "mixed.tar") == 3


def test_error_of_real_states(sample_data: Path) -> None:
    median, largest = data._measure_quantisation(Settings())
    assert median.reached and largest.reached and 0.5 < median.value <= 0.7 and 1 < largest.value <= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("T2IKIT_TEST_DATA")
        assert data._measure_quantisation(Settings()) == [] == data._measure_images(Settings())
