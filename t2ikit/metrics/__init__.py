"""Metrics: pure functions on features and answers, and the classes that a snapshot computes,
each beside the prompts that it judges. No Lightning here."""

from t2ikit.metrics.alignment.parti import PartiPrompts
from t2ikit.metrics.base import Metric, Result, SampleBatch, Samples
from t2ikit.metrics.distribution.cmmd import cmmd
from t2ikit.metrics.distribution.coco import CocoCaptions
from t2ikit.metrics.distribution.distribution import DistributionMetrics
from t2ikit.metrics.distribution.frechet import Moments, frechet_distance
from t2ikit.metrics.distribution.precision_recall import prdc, prdc_preset
from t2ikit.metrics.features.features import FeatureExtractor, RandomConvFeatures
from t2ikit.metrics.fingerprint import Fingerprint
from t2ikit.metrics.geneval import GenEval, GenEvalPrompts
from t2ikit.metrics.questions.dpg_bench import DPGBench
from t2ikit.metrics.questions.dpg_prompts import DPGPrompts
from t2ikit.metrics.questions.dsg import DSG
from t2ikit.metrics.questions.prompts import DSGPrompts, TIFAPrompts
from t2ikit.metrics.questions.tifa import TIFA

__all__ = [
    "DSG",
    "TIFA",
    "CocoCaptions",
    "DPGBench",
    "DPGPrompts",
    "DSGPrompts",
    "DistributionMetrics",
    "FeatureExtractor",
    "Fingerprint",
    "GenEval",
    "GenEvalPrompts",
    "Metric",
    "Moments",
    "PartiPrompts",
    "RandomConvFeatures",
    "Result",
    "SampleBatch",
    "Samples",
    "TIFAPrompts",
    "cmmd",
    "frechet_distance",
    "prdc",
    "prdc_preset",
]
