"""Weights on disk: released layouts, what they do not say, and strict loading into a denoiser."""

from t2ikit.checkpoints.denoiser import filled, load_denoiser
from t2ikit.checkpoints.files import load_weights, read_weights
from t2ikit.checkpoints.probes import NoiseError, noise_error
from t2ikit.checkpoints.released import UpstreamWeights, coherence_is_trained, from_upstream, read_upstream

__all__ = [
    "NoiseError",
    "UpstreamWeights",
    "coherence_is_trained",
    "filled",
    "from_upstream",
    "load_denoiser",
    "load_weights",
    "noise_error",
    "read_upstream",
    "read_weights",
]
