"""Data that a resumed run may go on with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from t2ikit.data.gate import Gate
from t2ikit.data.resume import ALLOWED, Continuation, check_allowed, training_manifest
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, Part, TextSource

BEFORE = Manifest(
    "latents",
    (2, 4, 32, 32),
    texts={"t5": TextSource(8, EncoderReference("t5", "main", "a" * 64))},
    autoencoder=EncoderReference("vae", "main", "b" * 64),
    captions="long",
    source="photos",
    source_sha256="s",
    count=10,
    chunk_sha256={"chunk-0-0.bin": "1", "index.json": "i"},
    parts=(Part(10, 1, "s"),),
)
GROWN: dict[str, Any] = {
    "count": 14,
    "source_sha256": "s t",
    "chunk_sha256": {"chunk-0-0.bin": "1", "chunk-0-1.bin": "2", "index.json": "j"},
    "parts": (Part(10, 1, "s"), Part(4, 1, "t")),
}


GATE = Gate("cm4", "train_cm4", 0.4, 0.5)
RUN = Continuation(640, 16, 3, 20, {"long": 0.9, "aio": 0.1}, (GATE,), {"train": BEFORE, "cm4": BEFORE})


def with_set(name: str, **changes: Any) -> Continuation:
    return replace(RUN, manifests={**RUN.manifests, name: replace(BEFORE, **changes)})


def test_it_is_kept_as_plain_types() -> None:
    state = RUN.to_state()
    assert json.loads(json.dumps(state)) == state  # a checkpoint is read without pickled classes
    assert Continuation.from_state(state) == RUN
    with pytest.raises(ValueError, match="another version of t2ikit"):
        Continuation.from_state({"slot": 0})


def test_the_same_records_go_on_whatever_the_set_says_of_itself() -> None:
    chunks = {**BEFORE.chunk_sha256, "index.json": "x"}
    for name in ("train", "cm4"):
        RUN.check(with_set(name, source="elsewhere", versions={"t2ikit": "9"}, chunk_sha256=chunks))
    RUN.check(replace(RUN, slot=0))  # the position is not compared
    RUN.check(replace(RUN, gates=(replace(GATE, folder="elsewhere/train_cm4"),)))
    RUN.check(replace(RUN, gates=(replace(GATE, quantile=0.4 + 1e-12),)))  # another machine's rounding


@pytest.mark.parametrize(("name", "said"), [("train", "the training set"), ("cm4", "the set of stream cm4")])
def test_appended_records_go_on_where_they_may(name: str, said: str) -> None:
    for allowed in (["data.appended"], ["data.records"]):
        RUN.check(with_set(name, **GROWN), allowed)
    with pytest.raises(ValueError, match=rf"{said} has grown from 10 to 14 records.*with --allow data\.appended$"):
        RUN.check(with_set(name, **GROWN), ["gates"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"chunk_sha256": {"chunk-0-0.bin": "9", "index.json": "i"}}, r"chunk_sha256 of chunk-0-0\.bin"),
        ({"captions": "aio", "chunk_sha256": {"chunk-0-0.bin": "9"}}, "captions was long, now aio"),
        # More records, but not the old ones and some behind them.
        ({**GROWN, "chunk_sha256": {"chunk-0-0.bin": "9", "chunk-0-1.bin": "2"}}, "count was 10, now 14"),
        ({**GROWN, "parts": (Part(14, 2, "s"),)}, "count was 10, now 14"),
        ({"count": 6, "parts": (Part(6, 1, "s"),)}, "count was 10, now 6"),
    ],
)
def test_other_records_are_refused_unless_they_may_go_on(changes: dict[str, Any], named: str) -> None:
    for name, said in (("train", "the training set"), ("cm4", "the set of stream cm4")):
        now = with_set(name, **changes)
        for allowed in ((), ("data.appended",)):
            with pytest.raises(ValueError, match=rf"{said} holds other records \({named}.*--allow data\.records$"):
                RUN.check(now, allowed)
        RUN.check(now, ["data.records"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"texts": {"t5": TextSource(8, EncoderReference("t5", "main", "c" * 64))}}, "text_encoders"),
        ({"autoencoder": EncoderReference("vae", "main", "c" * 64)}, "autoencoder"),
        ({"image_shape": (2, 4, 64, 64)}, "image_shape"),
        ({"texts": {"t5": TextSource(16, EncoderReference("t5", "main", "a" * 64))}}, "text_dim"),
        ({"token_format": "float16"}, "token_format"),
        ({"normalisation": "scalar"}, "normalisation"),
    ],
)
def test_another_format_or_encoder_is_never_gone_on_with(changes: dict[str, Any], named: str) -> None:
    for name in ("train", "cm4"):
        with pytest.raises(ValueError, match=rf"{named} .*--data\.root"):
            RUN.check(with_set(name, **changes), ALLOWED)
        with pytest.raises(ValueError, match=rf"{named} .*: set --data\.word_order as it was"):
            RUN.check(with_set(name, **changes), (), (), ["data.root", "data.word_order"])


@pytest.mark.parametrize(
    ("now", "named", "key"),
    [
        (replace(RUN, batch_size=32), r"data\.batch_size was 16 .* is 32", "data.batch_size"),
        (replace(RUN, seed=4), r"data\.seed was 3 .* is 4", "data.seed"),
        (replace(RUN, shuffle_window=1), r"data\.shuffle_window was 20", "data.shuffle_window"),
        (replace(RUN, caption_weights=None), r"data\.caption_weights was .*long.* is None", "data.caption_weights"),
        (replace(RUN, gates=(), manifests={"train": BEFORE}), "streams were cm4 and are none now", "gates"),
        (replace(RUN, gates=(GATE, replace(GATE, name="crop"))), "streams were cm4 and are cm4, crop now", "gates"),
        (replace(RUN, gates=(replace(GATE, name="cm9"),)), "streams were cm4 and are cm9 now", "gates"),
        (replace(RUN, gates=(replace(GATE, quantile=0.5),)), r"stream cm4 had the quantile 0\.4 and has 0\.5", "gates"),
        (replace(RUN, gates=(replace(GATE, probability=0.25),)), r"the probability 0\.5 and has 0\.25", "gates"),
    ],
)
def test_another_stream_is_refused_unless_it_may_go_on(now: Continuation, named: str, key: str) -> None:
    for allowed in ((), [other for other in ALLOWED if other != key]):
        with pytest.raises(ValueError, match=f"{named}.*--allow {key}$"):
            RUN.check(now, allowed)
    RUN.check(now, [key])


def test_everything_that_differs_is_listed_at_once() -> None:
    now = replace(with_set("cm4", **GROWN), seed=4, gates=(replace(GATE, quantile=0.5, probability=0.25),))
    with pytest.raises(ValueError) as caught:
        RUN.check(now)
    message = str(caught.value)
    for part in ("data.seed was 3", "quantile 0.4", "probability 0.5", "stream cm4 has grown"):
        assert part in message
    assert message.endswith("--allow data.seed --allow gates --allow data.appended")
    RUN.check(now, ["data.seed", "gates", "data.appended"])


def test_keys_that_nothing_is_called_are_refused() -> None:
    check_allowed(ALLOWED)
    with pytest.raises(ValueError, match=r"--allow data\.sead: .* one of data\.batch_size, data\.seed"):
        check_allowed(["data.sead"])


def test_a_checkpoint_keeps_the_training_manifest_once() -> None:
    text = BEFORE.to_json()
    assert training_manifest({"state_dict": {}, "ShapesData": RUN.to_state()}) == text
    assert training_manifest({"epoch": 1, "data_manifest": text}) == text  # of another data module, or an older one
    assert training_manifest({"epoch": 1, "other": {"manifests": None}}) is None
