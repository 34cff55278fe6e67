"""Metrics: pure functions on features and answers, and the classes that a snapshot computes. No Lightning here."""

from t2ikit.metrics.base import Metric, Samples
from t2ikit.metrics.cmmd import cmmd
from t2ikit.metrics.distribution import DistributionMetrics
from t2ikit.metrics.dpg_bench import DPGBench
from t2ikit.metrics.dsg import DSG
from t2ikit.metrics.features import FeatureExtractor, RandomConvFeatures
from t2ikit.metrics.fingerprint import Fingerprint
from t2ikit.metrics.frechet import Moments, frechet_distance
from t2ikit.metrics.geneval import GenEval
from t2ikit.metrics.prdc import prdc, prdc_preset
from t2ikit.metrics.reference import write_reference
from t2ikit.metrics.tifa import TIFA

__all__ = [
    "DSG",
    "TIFA",
    "DPGBench",
    "DistributionMetrics",
    "FeatureExtractor",
    "Fingerprint",
    "GenEval",
    "Metric",
    "Moments",
    "RandomConvFeatures",
    "Samples",
    "cmmd",
    "frechet_distance",
    "prdc",
    "prdc_preset",
    "write_reference",
]
