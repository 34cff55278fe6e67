"""GenEval: prompts, detector, rules and metric of Ghosh et al. 2023, and their comparison between two models."""

from t2ikit.metrics.geneval.metric import GenEval, summarize
from t2ikit.metrics.geneval.prompts import GenEvalPrompts
from t2ikit.metrics.geneval.rules import judge

__all__ = ["GenEval", "GenEvalPrompts", "judge", "summarize"]
