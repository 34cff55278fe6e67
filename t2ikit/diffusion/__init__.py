"""Diffusion: schedules, processes, the training objective, guidance and samplers."""

from t2ikit.diffusion.flows import RectifiedFlow
from t2ikit.diffusion.guidance import Guidance, Projection
from t2ikit.diffusion.objectives import Objective
from t2ikit.diffusion.processes import GaussianDiffusion, Process
from t2ikit.diffusion.samplers import sample
from t2ikit.diffusion.schedules import GammaSchedule, gamma_schedule

__all__ = [
    "GammaSchedule",
    "GaussianDiffusion",
    "Guidance",
    "Objective",
    "Process",
    "Projection",
    "RectifiedFlow",
    "gamma_schedule",
    "sample",
]
