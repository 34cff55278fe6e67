"""Classifiers: how much do the pictures of a generator teach one? (SynthReal)"""

from t2ikit.classify.class_folders import ClassFolders
from t2ikit.classify.classifier import ImageClassifier
from t2ikit.classify.metric import SynthReal

__all__ = ["ClassFolders", "ImageClassifier", "SynthReal"]
