"""Optimisers, parameter groups and learning-rate schedules."""

from t2ikit.optim.factories import AdamW, Lamb, Muon, OptimizerFactory, hidden_groups, matrix_groups, parameter_groups
from t2ikit.optim.lamb import LAMB
from t2ikit.optim.learning_rates import Constant, EpochCosine, LearningRate, WarmupCosine, epochs_factor, lr_factor
from t2ikit.optim.muon import MuonAdam

__all__ = [
    "LAMB",
    "AdamW",
    "Constant",
    "EpochCosine",
    "Lamb",
    "LearningRate",
    "Muon",
    "MuonAdam",
    "OptimizerFactory",
    "WarmupCosine",
    "epochs_factor",
    "hidden_groups",
    "lr_factor",
    "matrix_groups",
    "parameter_groups",
]
