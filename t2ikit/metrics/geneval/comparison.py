"""Two GenEval runs side by side: differences with their confidence, paired by prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from t2ikit.files import parse_json
from t2ikit.metrics.geneval.files import metadata_key, read_results
from t2ikit.metrics.statistics import Paired, PairedDifference, paired_bootstrap


def compare_results(
    first: str | Path, second: str | Path, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> dict[str, PairedDifference]:
    """The second run against the first, for each task and overall.

    Args:
        first, second: two ``results.jsonl`` of the same prompts, of this kit or of the official program.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the bootstrap.

    Returns:
        task -> difference, in the order of the first run, then "overall".

    Raises:
        FileNotFoundError, ValueError: a file that cannot be read, or runs on unlike prompts; names a prompt.

    Example:
        ``for name, found in compare_results("a/results.jsonl", "b/results.jsonl").items(): print(name, found)``
    """
    runs = [_by_prompt(read_results(path)) for path in (first, second)]
    for run, counterpart, path in ((runs[0], runs[1], second), (runs[1], runs[0], first)):
        lacking = [key for key in run if key not in counterpart]
        if lacking:
            raise ValueError(
                f"{first} and {second} are of unlike prompts and cannot be paired: {len(lacking)} prompts have no "
                f"result in {path}, such as {lacking[0][1]}"
            )
    tasks = list(dict.fromkeys(task for task, _ in runs[0]))
    strata = {}
    for task in tasks:
        keys = [key for key in runs[0] if key[0] == task]
        strata[task] = Paired.of([runs[0][key] for key in keys], [runs[1][key] for key in keys])
    return paired_bootstrap(strata, resamples, confidence, seed)


def _by_prompt(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """(task, prompt) -> its verdicts; the metadata tell prompts apart."""
    verdicts: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        metadata = row["metadata"]
        if isinstance(metadata, str):
            with suppress(json.JSONDecodeError):  # any text tells prompts apart
                metadata = parse_json(metadata)
        key = metadata if isinstance(metadata, str) else metadata_key(metadata)
        verdicts.setdefault((row["tag"], key), []).append(float(row["correct"]))
    return verdicts
