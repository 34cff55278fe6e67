"""Every metric of a snapshot on the same images: scores with their fingerprints, and what each metric cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from t2ikit.cost import Cost, measured
from t2ikit.metrics.base import Metric, Samples
from t2ikit.metrics.fingerprint import Fingerprint, Score


def score_samples(
    samples: Samples,
    metrics: Sequence[Metric],
    conditions: Mapping[str, Any],
    step: int | None,
    label: str,
    costs: list[Cost],
) -> list[Score]:
    """Computes every metric.

    Args:
        samples: the images and what they were made from.
        metrics: one with a ``name`` (an attribute) has its scores called ``<name>/<score>``, so that two of a kind can
            read the same images.
        conditions: of the images, for the fingerprints: prompts, seeds, sampler, ...
        step: optimizer steps of the weights, or None.
        label: of the progress bar and in messages, the option of the experiment.
        costs: gets a cost for each metric.

    Raises:
        ValueError: two metrics give one score, or a score is not finite.
    """
    scores: dict[str, Score] = {}
    bar = tqdm(metrics, desc=f"{label}: metrics", leave=False, unit="metric")
    for metric in bar:
        title = title_of(metric)
        bar.set_postfix_str(title)
        with measured(title, costs):
            values = [(name, float(value)) for name, value in metric.compute(samples)]
        fingerprint = Fingerprint.from_dict(
            {"metric": type(metric).__name__, **metric.fingerprint_of(samples), **conditions}
        )
        errors = metric.standard_errors()
        for plain, value in values:
            name = plain if prefix_of(metric) is None else f"{prefix_of(metric)}/{plain}"
            if name in scores:
                raise ValueError(
                    f"{label}: two metrics give {name}; set `name` of one of them (as in DistributionMetrics), or "
                    "use two snapshots"
                )
            if not math.isfinite(value):
                raise ValueError(f"{label}: {name} of {title} is {value}: look at the images and at its settings")
            scores[name] = Score(name, value, fingerprint, step, errors.get(plain))
    return list(scores.values())


def prefix_of(metric: Metric) -> str | None:
    """What tells two metrics of one kind apart."""
    name: str | None = getattr(metric, "name", None)
    return name


def title_of(metric: Metric) -> str:
    """What a metric is called in the log."""
    prefix = prefix_of(metric)
    return type(metric).__name__ if prefix is None else f"{prefix}/{type(metric).__name__}"
