"""Checks of a metric, on rendered scenes of shapes with GenEval's prompts and metadata."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import torch
from torch import Tensor

from t2ikit.metrics import Metric, Result, Samples
from t2ikit.metrics.base import Rows, reference_of
from t2ikit.shapes.prompts import geneval_prompts
from t2ikit.shapes.scenes import render, scenes
from t2ikit.testing.base import (
    ROUNDING,
    Check,
    NotApplicable,
    Subject,
    expect,
    expect_same,
    first_difference,
    random_state_kept,
)

SIZE = 16


def _pictures(count: int, seed: int) -> Tensor:
    """[count, 3, 16, 16] uint8: rendered scenes of one shape each."""
    views = scenes(seed, "val", 0, count, "simple")
    return torch.stack([torch.from_numpy(render(scene, SIZE)) for scene in views])


def trial_samples() -> Samples:
    """24 small scenes with the prompts of GenEval on shapes, and 30 others as reference."""
    lines = geneval_prompts("simple", 4)
    reference = reference_of(_pictures(30, 1), "trial")
    return Samples(_pictures(24, 0), [line["prompt"] for line in lines], lines, reference)


def _ready(subject: Subject[Metric]) -> tuple[Metric, Samples]:
    metric, samples = subject.fresh(), trial_samples()
    try:
        metric.check(samples)
    except ValueError as refusal:
        raise NotApplicable(f"check refuses the pictures of the trial: {refusal}") from None
    for reference in metric.sets(samples)[:-1]:
        reference.rows[metric.rows_key()] = metric.observe(reference.batch(0, len(reference)))
    return metric, samples


def _whole(metric: Metric, samples: Samples) -> Rows:
    return metric.observe(samples.batch(0, len(samples)))


def rows(subject: Subject[Metric]) -> str:
    """One row an image, which depends on no other image."""
    metric, samples = _ready(subject)
    whole = _whole(metric, samples)
    expect(
        isinstance(whole, (Tensor, list)) and len(whole) == len(samples),
        f"observe must give a tensor or a list with one row an image, {len(samples)}; it gave "
        f"{type(whole).__name__} of {len(whole)}",
    )
    expect(not isinstance(whole, Tensor) or whole.device.type == "cpu", "rows must be on the CPU: end with .cpu()")
    for start, end in ((0, 1), (1, 9), (9, len(samples))):
        chunk = metric.observe(samples.batch(start, end))
        expect(
            len(chunk) == end - start, f"observe must give {end - start} rows for as many images; it gave {len(chunk)}"
        )
        for row in range(end - start):
            difference = first_difference(chunk[row], whole[start + row], ROUNDING)
            expect(
                difference is None,
                f"a row must not depend on the other images, but that of image {start + row} does: compare images in "
                f"score, not in observe ({difference})",
            )
    return f"rows {list(whole.shape)}" if isinstance(whole, Tensor) else f"rows of {type(whole[0]).__name__}"


def result(subject: Subject[Metric]) -> str:
    """A Result of named numbers."""
    metric, samples = _ready(subject)
    actual = metric.score(samples, _whole(metric, samples))
    expect(isinstance(actual, Result), f"score must return Result(values, errors, files), not {type(actual).__name__}")
    numbers = all(isinstance(name, str) and isinstance(value, (int, float)) for name, value in actual.values.items())
    expect(bool(actual.values) and numbers, f"values must be numbers by name; they are {dict(actual.values)!r}")
    extra = set(actual.errors) - set(actual.values)
    expect(not extra, f"errors must be of scores in values; {', '.join(sorted(extra))} is none")
    expect(
        all(isinstance(content, bytes) for content in actual.files.values()),
        "files must be bytes by name: encode texts",
    )
    unknown = [name for name in metric.less_is_better if name not in actual.values]
    expect(
        not unknown,
        f"less_is_better must name scores, which are {', '.join(actual.values)}; {', '.join(unknown)} is none of them",
    )
    lost = [name for name, value in actual.values.items() if math.isinf(value)]
    expect(not lost, f"values must be finite, or NaN where they are not known; {', '.join(lost)} is infinite")
    return ", ".join(f"{name} {value:.4g}" for name, value in list(actual.values.items())[:3])


def keeps_nothing(subject: Subject[Metric]) -> None:
    """The same images have the same scores, whatever was scored before."""
    metric, samples = _ready(subject)
    before, state = copy.deepcopy((samples.images, samples.prompts, samples.metadata)), _whole(metric, samples)
    with random_state_kept("a metric"):
        first = metric.score(samples, state)
        others = Samples(_pictures(24, 5), samples.prompts, samples.metadata, samples.reference)
        metric.score(others, _whole(metric, others))
        again = metric.score(samples, _whole(metric, samples))
    sentence = "the same images must have the same scores: keep nothing between calls"
    expect_same(_plain(again), _plain(first), sentence)
    expect_same(
        (samples.images, samples.prompts, samples.metadata),
        before,
        "samples must stay as they are: change none in place",
    )


def _plain(actual: Result) -> tuple[dict[str, Any], ...]:
    return dict(actual.values), dict(actual.errors), dict(actual.files)


def fingerprint(subject: Subject[Metric]) -> str:
    """The settings as JSON, the same in every process."""
    metric = subject.fresh()
    try:
        text = json.dumps(metric.fingerprint(), sort_keys=True)
    except TypeError as error:
        raise AssertionError(
            f"fingerprint must be JSON-able: {error}; say it in numbers, texts, lists, dicts"
        ) from None
    again = json.dumps(subject.fresh().fingerprint(), sort_keys=True)
    expect(
        again == text and " at 0x" not in text,
        f"fingerprint must say the settings alone, the same in every process; it says {text}, then {again}",
    )
    return text if len(text) <= 60 else f"{text[:57]}..."


CHECKS: tuple[Check[Metric], ...] = (
    Check("rows independent", rows),
    Check("result", result),
    Check("keeps nothing", keeps_nothing),
    Check("fingerprint", fingerprint),
)
