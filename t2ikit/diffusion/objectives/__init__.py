"""Training objectives: one a file. A step draws its random numbers with ``draw`` and computes its loss by a call."""

from t2ikit.diffusion.objectives.base import Draws, Loss, Objective
from t2ikit.diffusion.objectives.denoising import FIXED_SEED, Denoising, fixed_t_loss
from t2ikit.diffusion.terms.base import Needs

__all__ = ["FIXED_SEED", "Denoising", "Draws", "Loss", "Needs", "Objective", "fixed_t_loss"]
