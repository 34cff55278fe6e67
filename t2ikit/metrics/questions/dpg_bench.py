"""DPG-Bench on the images of a snapshot, judged by a question-answering model."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from t2ikit.metrics.base import Result, Rows, Samples
from t2ikit.metrics.questions.dpg import MODES, group, read_questions, score
from t2ikit.metrics.questions.metric import Question, QuestionMetric, slug


@dataclass(eq=False)
class DPGBench(QuestionMetric):
    """DPG-Bench (Hu et al. 2024): 1,065 dense prompts, officially four images each, in the order of the grid.

    The images' metadata carry ``item_id``. The official score asks mPLUG-large (``MPLUGAnswerer``); with any other
    model the number is another one, and its fingerprint says so.

    Attributes:
        questions: local file ``dpg_bench.csv`` of the benchmark.
        mode: "official" (the scorer's numbers with its quirks, the one to report) or "fixed" (what the protocol says);
            see ``t2ikit.metrics.questions.dpg``.

    Example:
        >>> metric = DPGBench("dpg_bench.csv", BlipAnswerer())  # doctest: +SKIP
        >>> metric.compute(read_grids("grids")).values["dpg_bench"]  # doctest: +SKIP
        71.3
    """

    mode: str = "official"
    score_name = "dpg_bench"
    unit = "percent"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {self.mode!r}")
        self.rows = read_questions(self.path)
        self.items = group(self.rows, self.mode)

    def questions_of(self, item: str) -> list[Question]:
        """The questions of the item. An item that the table lacks has none in mode "official", whose scorer leaves it
        out, and raises ValueError in mode "fixed".
        """
        if item not in self.items and self.mode == "fixed":
            raise ValueError(f"DPG-Bench: item {item!r} of the images has no questions in {self.path}")
        return [Question(text) for text in self.items[item].questions.values()] if item in self.items else []

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``dpg_bench`` in percent, then ``dpg_bench/<category>``, the broad categories first; warns of items
        without a score."""
        answers = {
            item: [dict(zip(self.items[item].questions, given, strict=True)) if given else {} for given in images]
            for item, images in self.read_answers(samples, rows).items()
        }
        scores = score(self.rows, answers, self.mode)
        if scores["failed"]:
            listed = ", ".join(scores["failed"][:5])
            warnings.warn(f"DPG-Bench drops {len(scores['failed'])} items without a score: {listed}", stacklevel=2)
        named = {self.score_name: scores["overall"]}
        errors = {self.score_name: scores["standard_error"]}
        for values, deviations in ((scores["L1"], scores["L1_errors"]), (scores["L2"], scores["L2_errors"])):
            named.update({f"{self.score_name}/{slug(category)}": value for category, value in values.items()})
            errors.update({f"{self.score_name}/{slug(category)}": error for category, error in deviations.items()})
        return self.result(rows, named, errors, {"items": scores["items"], "failed": scores["failed"]})

    def fingerprint(self) -> dict[str, Any]:
        """Mode, questions, answering model."""
        return {**super().fingerprint(), "mode": self.mode}
