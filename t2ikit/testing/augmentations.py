"""Checks of an augmentation that transforms batches, beside a small CAD-I that knows windows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from t2ikit.batch import Batch, Text, each_text
from t2ikit.callbacks import AugmentationCallback
from t2ikit.data.datamodule import DataModule
from t2ikit.module import TextToImage
from t2ikit.testing.base import Check, NotApplicable, Subject, expect, expect_same, random_state_kept
from t2ikit.testing.trial import TOKENS, WIDTH, trial_batch, trial_denoiser

BATCH_SIZE = 12
Transform = Callable[[Batch], Any]


class TrialModule(TextToImage):
    """Keeps the transforms that a callback registers."""

    def __init__(self) -> None:
        super().__init__(trial_denoiser())
        self.registered: list[Transform] = []

    def add_batch_transform(self, transform: Transform) -> None:
        """Notes it."""
        self.registered.append(transform)


class TrialData:
    """Keeps the streams that a callback registers; there is no prepared set."""

    batch_size = BATCH_SIZE
    bucket_count = 1
    length_bucket = 1
    folder = Path("data")

    def __init__(self) -> None:
        self.streams: list[tuple[str, str, float, float]] = []

    def add_stream(self, name: str, folder: str, quantile: float, probability: float) -> None:
        """Notes it."""
        self.streams.append((name, folder, quantile, probability))

    def record_set(self, folder: str) -> Any:
        """There is none."""
        raise FileNotFoundError(folder)


def _registered(subject: Subject[AugmentationCallback]) -> tuple[TrialModule, TrialData]:
    callback, module, data = subject.fresh(), TrialModule(), TrialData()
    try:
        callback.register(cast(DataModule, data), module)
    except FileNotFoundError:
        raise NotApplicable("it reads prepared data: `t2ikit prepare check` tries that, and a run the rest") from None
    added = bool(module.registered or data.streams)
    expect(added, "register must add a transform (module.add_batch_transform) or a stream (data.add_stream)")
    return module, data


def stream(subject: Subject[AugmentationCallback]) -> str:
    """A stored stream is behind a gate."""
    streams = _registered(subject)[1].streams
    if not streams:
        raise NotApplicable("it adds no stored stream")
    for name, _, quantile, probability in streams:
        expect(
            0.0 <= quantile <= 1.0 and 0.0 <= probability <= 1.0,
            f"quantile and probability of stream {name} must lie in [0, 1]; they are {quantile} and {probability}: "
            "take the quantile from module.process.quantile(log_snr)",
        )
    names = [name for name, *_ in streams]
    expect(len(set(names)) == len(names), f"streams must have names of their own; they are {', '.join(names)}")
    return ", ".join(f"{name} with {chance:g} beyond u = {u:.3f}" for name, _, u, chance in streams)


def _transform(subject: Subject[AugmentationCallback]) -> Callable[[Batch], tuple[Batch, ...]]:
    """All that the callback does to a batch."""
    module, _ = _registered(subject)
    if not module.registered:
        raise NotApplicable("it transforms no batch")

    def transform(batch: Batch) -> tuple[Batch, ...]:
        chunks: tuple[Batch, ...] = (batch,)
        for function in module.registered:
            results = [function(chunk) for chunk in chunks]
            tuples = [result if isinstance(result, tuple) else (result,) for result in results]
            chunks = tuple(chunk for result in tuples for chunk in result)
        for chunk in chunks:
            expect(
                isinstance(chunk, Batch), f"augment must return a Batch or a tuple of them, not {type(chunk).__name__}"
            )
        return chunks

    return transform


def _batch(slot: int = 24) -> Batch:
    """12 rows, most of them noisy, with an array of image tokens."""
    return trial_batch(rows=BATCH_SIZE, slot=slot, arrays={"features.trial": (TOKENS, WIDTH)})


def repeats(subject: Subject[AugmentationCallback]) -> None:
    """The same batch gives the same, in another instance, too."""
    transform = _transform(subject)
    first = transform(_batch())
    with random_state_kept("an augmentation"):
        again = transform(_batch())
    sentence = "the same slots must give the same batch: take random numbers from t2ikit.rng, keyed by batch.slot"
    expect_same(again, first, sentence)
    transform(_batch(slot=480))
    expect_same(transform(_batch()), first, f"{sentence}, and keep nothing from batch to batch")


def not_in_place(subject: Subject[AugmentationCallback]) -> None:
    """The batch that is given stays as it is."""
    transform, batch = _transform(subject), _batch()
    before = copy.deepcopy(batch)
    transform(batch)
    expect_same(batch, before, "a batch must not be changed in place: return dataclasses.replace(batch, ...)")


def rows_kept(subject: Subject[AugmentationCallback]) -> str:
    """Every row comes back once, with its slot, and what belongs to it; also of slots that are not consecutive."""
    transform = _transform(subject)
    _same_rows(transform, _batch().rows(np.array([0, 3, 4, 7, 10])))
    chunks = _same_rows(transform, _batch())
    return f"{len(chunks)} batches of {', '.join(str(len(chunk)) for chunk in chunks)} rows"


def _same_rows(transform: Callable[[Batch], tuple[Batch, ...]], batch: Batch) -> tuple[Batch, ...]:
    chunks = transform(batch)
    slots = np.concatenate([chunk.slots for chunk in chunks])
    order = torch.from_numpy(slots.argsort(kind="stable"))
    expect(
        np.array_equal(slots[order], batch.slots),
        f"every row must come back once, with its slot, of {batch.slots.tolist()}; the slots are {slots.tolist()}: "
        "split by batch.part(start, end) or batch.rows(index), which keep them",
    )
    for name in ("source", "index"):
        joined = torch.cat([getattr(chunk, name) for chunk in chunks])[order]
        expect_same(joined, getattr(batch, name), f"{name} must stay that of the row's slot: keep the order of rows")
    for name, array in batch.extra.items():
        for chunk in chunks:
            expect(
                name in chunk.extra and len(chunk.extra[name]) == len(chunk),
                f"arrays of the records must stay with their rows, but {name} is gone or has other rows: pass extra",
            )
        if all(chunk.extra[name].shape[1:] == array.shape[1:] for chunk in chunks):
            joined = torch.cat([chunk.extra[name] for chunk in chunks])[order]
            expect_same(joined, array, "arrays of the records must stay with their rows: split by batch.part")
    return chunks


def well_formed(subject: Subject[AugmentationCallback]) -> None:
    """What comes back is a batch that an objective takes."""
    for chunk in _transform(subject)(_batch()):
        rows, latents = len(chunk), chunk.latents
        expect(
            latents.dim() == 4 and len(latents) == rows and latents.dtype == torch.float32,
            f"latents must be [{rows}, C, H, W] float32; they are {list(latents.shape)} {latents.dtype}",
        )
        expect(bool(latents.isfinite().all()), "latents must be finite")
        inside = chunk.t.shape == (rows,) and bool(((chunk.t >= 0) & (chunk.t <= 1)).all())
        expect(inside, f"t must be [{rows}] in [0, 1]; it is {list(chunk.t.shape)}")
        text = isinstance(chunk.text, Text) and len(chunk.text) == rows and bool(chunk.text.mask.any(1).all())
        expect(text, f"text must have {rows} rows, each with at least one token")
        lengths = chunk.text_lengths
        expect(
            lengths is None or np.array_equal(lengths, each_text(chunk.text)[0].mask.sum(1, keepdim=True).numpy()),
            "text_lengths must be [B, 1] with the tokens of each text: who changes text sets them too, or None",
        )
        smaller = latents.shape[2:] != (8, 8)
        expect(
            not smaller or chunk.window is not None,
            f"latents of {list(latents.shape[2:])} are a part of the image: say which in window [B, 4], x0 y0 x1 y1",
        )
        window = chunk.window
        if window is not None:
            inside = window.shape == (rows, 4) and bool(((window >= 0) & (window <= 1)).all())
            ordered = inside and bool((window[:, :2] < window[:, 2:]).all())
            expect(ordered, "window must be [B, 4], x0 y0 x1 y1 in [0, 1] with x0 < x1 and y0 < y1")


CHECKS: tuple[Check[AugmentationCallback], ...] = (
    Check("stored stream", stream),
    Check("function of slots", repeats),
    Check("not in place", not_in_place),
    Check("rows and slots kept", rows_kept),
    Check("well formed", well_formed),
)
