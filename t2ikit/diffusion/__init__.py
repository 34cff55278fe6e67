"""Diffusion: schedules, processes, the training objective, guidance and samplers."""

from t2ikit.diffusion.flows import RectifiedFlow
from t2ikit.diffusion.guidance import Guidance, Projection
from t2ikit.diffusion.objectives import Denoising, Objective
from t2ikit.diffusion.processes import GaussianDiffusion, Process
from t2ikit.diffusion.samplers import sample
from t2ikit.diffusion.schedules import GammaSchedule, gamma_schedule
from t2ikit.diffusion.weightings import MinSNR, NoiseError, VelocityError, Weighting

__all__ = [
    "Denoising",
    "GammaSchedule",
    "GaussianDiffusion",
    "Guidance",
    "MinSNR",
    "NoiseError",
    "Objective",
    "Process",
    "Projection",
    "RectifiedFlow",
    "VelocityError",
    "Weighting",
    "gamma_schedule",
    "sample",
]
