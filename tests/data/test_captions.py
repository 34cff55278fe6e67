"""Which of several captions a slot gets."""

from pathlib import Path

import numpy as np
import pytest

from t2ikit.data.captions import CaptionChoice, caption_kinds
from t2ikit.data.datamodule import DataModule
from t2ikit.data.gate import Gate
from t2ikit.data.streams import TrainingStream
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.view import RecordView
from t2ikit.records.writing import write_set

MANIFEST = Manifest(
    "pixels", (3, 4, 4), texts={"t5": TextSource(8, EncoderReference("t5", None, "ab"))}, captions="long+aio"
)


def write(folder: Path, captions: int = 2, count: int = 32, kinds: str = "long+aio") -> RecordSet:
    """Caption c of record i is one token of the value 1 + c + 8 i."""
    records = (
        Record(
            {
                "image": np.zeros((3, 4, 4), np.uint8),
                **{
                    f"text.t5.{c}": quantise_tokens(np.full((1, 8), 1.0 + c + 8 * i, np.float32), "float16")
                    for c in range(captions)
                },
            },
            tuple("ab"[:captions]),
        )
        for i in range(count)
    )
    manifest = Manifest(**{**vars(MANIFEST), "captions": kinds, "token_format": "float16"})
    write_set(folder, records, manifest, {"t5": States(quantise_tokens(np.ones((1, 8)), "float16"))})
    return RecordSet(folder)


def used(stream: TrainingStream, batches: int) -> tuple[np.ndarray, np.ndarray]:
    """The caption and the source of every slot."""
    found, sources = [], []
    for number in range(batches):
        batch = stream[number]
        found += ((batch.texts["t5"].tokens[:, 0].numpy() - 1) % 8).tolist()
        sources += batch.source.tolist()
    return np.array(found), np.array(sources)


def test_weights_are_the_shares() -> None:
    parts = (np.arange(10_000) + 0.5) / 10_000
    for weights, shares in [
        ([0.9, 0.1], [0.9, 0.1]),
        ([3, 1, 0], [0.75, 0.25, 0]),
        ([0, 5], [0, 1]),
        (None, [1 / 3, 1 / 3, 1 / 3]),
    ]:
        choice = CaptionChoice(weights)
        picked = [choice(float(part), len(shares)) for part in parts]
        assert np.allclose(np.bincount(picked, minlength=len(shares)) / len(parts), shares, atol=1e-4)
        assert choice(np.nextafter(1.0, 0.0), len(shares)) == np.flatnonzero(shares)[-1]
        assert choice(0.0, len(shares)) == np.flatnonzero(shares)[0]


def test_weights_by_kind_follow_the_order_of_the_set() -> None:
    assert caption_kinds(MANIFEST) == ("long", "aio")
    choice, other = (CaptionChoice({"aio": 0.1, "long": 0.9}, kinds) for kinds in (("long", "aio"), ("aio", "long")))
    assert [choice(0.5, 2), choice(0.95, 2)] == [0, 1] and [other(0.05, 2), other(0.5, 2)] == [0, 1]


def test_a_stream_reads_only_the_caption_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = write(tmp_path / "train")
    write(tmp_path / "train_cm4", kinds="aio+long")
    gates = [Gate("cm4", tmp_path / "train_cm4", 0.2, 0.5)]
    read: list[int] = []
    real = RecordView.tokens
    monkeypatch.setattr(
        RecordView, "tokens", lambda view, encoder, caption: read.append(caption) or real(view, encoder, caption)
    )
    options = {"gates": gates, "global_batch": 32, "seed": 1}
    stream = TrainingStream(records, **options, caption_weights={"long": 0.9, "aio": 0.1})
    captions, sources = used(stream, 60)
    assert read == captions.tolist() and len(read) == 60 * 32  # one caption a slot
    long = np.where(sources == 0, captions == 0, captions == 1)  # the gated set has them the other way round
    assert abs(long[sources == 0].mean() - 0.9) < 0.03 and abs(long[sources == 1].mean() - 0.9) < 0.03
    again, _ = used(TrainingStream(records, **options, caption_weights={"long": 0.9, "aio": 0.1}), 60)
    assert np.array_equal(captions, again)
    uniform, _ = used(TrainingStream(records, **options), 60)
    assert abs(uniform.mean() - 0.5) < 0.04
    epochs = captions[sources == 0].reshape(-1)  # another epoch, another caption
    assert len(set(epochs.tolist())) == 2


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    records = write(tmp_path / "two")
    one = write(tmp_path / "one", captions=1, kinds="long")
    options = {"global_batch": 32}
    for weights, message in [
        ([1.0, 1.0, 1.0], "3 weights, but a record of .*two has 2 captions"),
        ({"long": 1.0}, "names the captions long, but .*two has long, aio"),
        ({"long": 1.0, "short": 1.0}, "long, short, but .*long, aio"),
        ([-1.0, 2.0], "at least 0"),
        ([0.0, 0.0], "not all 0"),
        ([float("nan"), 1.0], "at least 0"),
    ]:
        with pytest.raises(ValueError, match=f"data.caption_weights.*{message}"):
            TrainingStream(records, **options, caption_weights=weights)
    with pytest.raises(ValueError, match="2 weights, but a record of .*one has 1 captions"):
        gates = [Gate("cm4", tmp_path / "one", 0.2, 0.5)]
        TrainingStream(records, gates, **options, caption_weights=[0.5, 0.5])
    assert TrainingStream(one, **options, caption_weights=[2.0])[0].texts["t5"].tokens.shape[0] == 32
    with pytest.raises(ValueError, match="data.caption_weights must be at least 0"):
        DataModule(str(tmp_path), caption_weights=[-1.0])
