"""Data that a resumed run may go on with."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from t2ikit.data.resume import GatedState, StreamState, check_continues, check_streams_continue
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, Part

BEFORE = Manifest(
    "latents",
    (2, 4, 32, 32),
    text_dim=8,
    text_encoder=EncoderReference("t5", "main", "a" * 64),
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


def test_the_same_records_go_on_whatever_the_set_says_of_itself() -> None:
    moved = replace(
        BEFORE, source="elsewhere", versions={"t2ikit": "9"}, chunk_sha256={**BEFORE.chunk_sha256, "index.json": "x"}
    )
    check_continues(BEFORE, moved, "same")
    check_continues(BEFORE, Manifest.from_json(BEFORE.to_json()), "same")


@pytest.mark.parametrize("allowed", ["extended", "any"])
def test_appended_records_go_on_where_they_may(allowed: Any) -> None:
    check_continues(BEFORE, replace(BEFORE, **GROWN), allowed)
    with pytest.raises(ValueError, match=r"grown .* from 10 to 14 records.*--model\.resume_data extended"):
        check_continues(BEFORE, replace(BEFORE, **GROWN), "same")


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
def test_other_records_are_refused_unless_any_may_go_on(changes: dict[str, Any], named: str) -> None:
    now = replace(BEFORE, **changes)
    for allowed in ("same", "extended"):
        with pytest.raises(ValueError, match=f"other records.*{named}.*--model.resume_data any"):
            check_continues(BEFORE, now, allowed)  # type: ignore[arg-type]
    check_continues(BEFORE, now, "any")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text_encoder": EncoderReference("t5", "main", "c" * 64)}, "text_encoder"),
        ({"autoencoder": EncoderReference("vae", "main", "c" * 64)}, "autoencoder"),
        ({"image_shape": (2, 4, 64, 64)}, "image_shape"),
        ({"text_dim": 16}, "text_dim"),
        ({"token_format": "float16"}, "token_format"),
        ({"normalisation": "scalar"}, "normalisation"),
    ],
)
def test_another_format_or_encoder_is_never_gone_on_with(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"{named} .*--data\.root"):
        check_continues(BEFORE, replace(BEFORE, **changes), "any")


STREAM = StreamState(16, 3, 20, {"long": 0.9, "aio": 0.1}, (GatedState("cm4", 0.4, 0.5, BEFORE.to_json()),))
TWO = (*STREAM.gated, GatedState("crop", 0.6, 0.1, BEFORE.to_json()))


def with_gated(**changes: Any) -> StreamState:
    return replace(STREAM, gated=(replace(STREAM.gated[0], **changes),))


def test_a_stream_goes_on_as_the_checkpoint_remembers_it() -> None:
    state = STREAM.to_state()
    assert json.loads(json.dumps(state)) == state  # plain types: a checkpoint is read without pickled classes
    assert StreamState.from_state(state) == STREAM
    check_streams_continue(STREAM, StreamState.from_state(state), "same")
    check_streams_continue(STREAM, with_gated(quantile=0.4 + 1e-12), "same")  # another machine's rounding


@pytest.mark.parametrize(
    ("now", "named"),
    [
        (replace(STREAM, batch_size=32), r"data\.batch_size was 16 .* is 32"),
        (replace(STREAM, seed=4), r"data\.seed was 3 .* is 4"),
        (replace(STREAM, shuffle_window=1), r"data\.shuffle_window was 20"),
        (replace(STREAM, caption_weights=None), r"data\.caption_weights was .*long.* is None"),
        (replace(STREAM, gated=()), "streams cm4, now there are none"),
        (replace(STREAM, gated=TWO), "streams cm4, now there are cm4, crop"),
        (with_gated(name="cm9"), "streams cm4, now there are cm9"),
        (with_gated(quantile=0.5), r"stream cm4 had the quantile 0\.4 .* has 0\.5"),
        (with_gated(probability=0.25), r"stream cm4 had the probability 0\.5 .* has 0\.25"),
        (
            with_gated(manifest=replace(BEFORE, chunk_sha256={"chunk-0-0.bin": "9", "index.json": "i"}).to_json()),
            r"data of stream cm4 holds other records .*chunk_sha256 of chunk-0-0\.bin",
        ),
    ],
)
def test_another_stream_is_refused_unless_any_may_go_on(now: StreamState, named: str) -> None:
    for allowed in ("same", "extended"):
        with pytest.raises(ValueError, match=f"{named}.*--model.resume_data any"):
            check_streams_continue(STREAM, now, allowed)  # type: ignore[arg-type]
    check_streams_continue(STREAM, now, "any")


def test_the_set_of_a_gated_stream_may_grow_where_the_data_may() -> None:
    grown = with_gated(manifest=replace(BEFORE, **GROWN).to_json())
    check_streams_continue(STREAM, grown, "extended")
    with pytest.raises(ValueError, match=r"stream cm4 has grown .*--model\.resume_data extended"):
        check_streams_continue(STREAM, grown, "same")
