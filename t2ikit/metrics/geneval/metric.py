"""GenEval: its verdicts summed up by the official rule, and the metric that a snapshot computes.

Source: Ghosh et al., "GenEval: an object-focused framework for evaluating text-to-image alignment", 2023. The rules of
a verdict are in ``rules.py``, the official files in ``files.py``, a comparison of two runs in ``comparison.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from types import FunctionType
from typing import Any

import numpy as np
from torch import Tensor

from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.geneval.files import metadata_key, picture_names, results_text
from t2ikit.metrics.geneval.rules import Detections, Rules, check_metadata, keep, verdict
from t2ikit.metrics.statistics import finite


class Scores(dict[str, float]):
    """What `summarize` returns: shares in [0, 1] under "overall", each task's name, "images" and "prompts".

    "images" is the share of correct images, "prompts" the share of prompts with a correct image, "num_images" and
    "num_prompts" how many there were. "<name>_se" is the standard error of a task or of "overall", NaN where a task has
    a single prompt.
    """

    @property
    def overall(self) -> float:
        """The unweighted mean of the tasks' accuracies."""
        return self["overall"]

    @property
    def tasks(self) -> dict[str, float]:
        """Accuracy by task, in the order in which the tasks appeared."""
        return {name[:-3]: self[name[:-3]] for name in self if name.endswith("_se") and name != "overall_se"}


def summarize(rows: Iterable[Mapping[str, Any]]) -> Scores:
    """Scores of a run by the official rule, with standard errors.

    The overall score is the unweighted mean over tasks of the share of correct images. Images of one prompt depend on
    each other, so errors are clustered: SE of a task = sd(prompt means) / sqrt(prompts),
    SE overall = sqrt(sum SE^2) / tasks.

    Args:
        rows: one an image, with "tag", "correct" and "metadata" (the JSON text that tells prompts apart; a mapping is
            written as JSON), as in the official results.jsonl; other keys are ignored.

    Raises:
        ValueError: there is no row, or one lacks a key.
    """
    prompts: dict[str, dict[str, list[float]]] = {}
    for row_number, row in enumerate(rows, start=1):
        missing = {"tag", "correct", "metadata"} - set(row)
        if missing:
            raise ValueError(f"GenEval results: row {row_number} lacks {sorted(missing)}")
        key = row["metadata"] if isinstance(row["metadata"], str) else metadata_key(row["metadata"])
        prompts.setdefault(row["tag"], {}).setdefault(key, []).append(float(bool(row["correct"])))
    if not prompts:
        raise ValueError("GenEval results: there is no row to summarise")
    scores, errors = Scores(), []
    for tag, task in prompts.items():
        images = [value for answers in task.values() for value in answers]
        means = [float(np.mean(answers)) for answers in task.values()]
        errors.append(float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else math.nan)
        scores[tag] = float(np.mean(images))
    overall = float(np.mean([scores[tag] for tag in prompts]))
    for tag, error in zip(prompts, errors, strict=True):
        scores[f"{tag}_se"] = error
    answers_of_prompts = [answers for task in prompts.values() for answers in task.values()]
    all_answers = [value for answers in answers_of_prompts for value in answers]
    scores["overall"] = overall
    scores["overall_se"] = math.sqrt(sum(error**2 for error in errors)) / len(errors)
    scores["images"] = float(np.mean(all_answers))
    scores["prompts"] = float(np.mean([max(answers) for answers in answers_of_prompts]))
    scores["num_images"], scores["num_prompts"] = float(len(all_answers)), float(len(answers_of_prompts))
    return scores


@dataclass(eq=False)
class GenEval(Metric):
    """GenEval's tasks on the images of a snapshot whose prompts carry the benchmark's metadata.

    Attributes:
        detector: image uint8 [3, H, W] -> detections as `keep` takes them, with a "color" each.
        rules: the numbers of the protocol; None takes the official ones.
        name: put before the scores' names, where a snapshot has two of these.
    """

    detector: Callable[[Tensor], Detections]
    rules: Rules | None = None
    name: str | None = None
    unit = "share"
    batch_size = 1  # the detector takes them one by one

    def check(self, samples: Samples) -> None:
        """Refuses samples whose metadata do not belong to GenEval."""
        if len(samples) == 0 or not samples.metadata:
            raise ValueError("GenEval needs images with its metadata: take the prompts from GenEvalPrompts")
        for index, metadata in enumerate(samples.metadata):
            check_metadata(metadata, f"GenEval, image {index}")

    def observe(self, batch: SampleBatch) -> Rows:
        """Rows of the official results.jsonl, without "filename"."""
        rows, rules = [], self.rules or Rules()
        for image, metadata in zip(batch.images, batch.metadata, strict=True):
            kept = keep(self.detector(image), metadata["tag"], rules)
            correct, reason = verdict(metadata, kept, rules)
            details = {name: [detection.box.tolist() for detection in detections] for name, detections in kept.items()}
            row = {"tag": metadata["tag"], "prompt": metadata["prompt"], "correct": correct, "reason": reason}
            rows.append({**row, "metadata": json.dumps(metadata), "details": json.dumps(details)})
        return rows

    def score(self, samples: Samples, rows: Rows) -> Result:
        """Each task's share of correct images, then "overall", "correct_images" and "correct_prompts".

        Tasks and "overall" have an error, clustered by prompt, unless a task has a single prompt; the file
        ``geneval_results.jsonl`` holds the verdicts as the official ``results.jsonl``.
        """
        names = picture_names(samples.metadata)  # the place of an image in the official layout
        verdicts = [{"filename": name, **row} for name, row in zip(names, rows, strict=True)]
        scores = summarize(verdicts)
        judged = (*scores.tasks, "overall")
        values = {name: scores[name] for name in judged}
        values |= {"correct_images": scores["images"], "correct_prompts": scores["prompts"]}
        errors = finite({name: scores[f"{name}_se"] for name in judged})
        return Result(values, errors, {"geneval_results.jsonl": results_text(verdicts).encode()})

    def fingerprint(self) -> dict[str, Any]:
        """Detector and rules: what two scores must share to be compared."""
        described = getattr(self.detector, "fingerprint", None)
        if callable(described):
            detector = described()
        else:
            kind = self.detector if isinstance(self.detector, FunctionType) else type(self.detector)
            detector = {"features": f"{kind.__module__}.{kind.__qualname__}"}
        return {**detector, "metric": "geneval", "rules": asdict(self.rules or Rules())}
