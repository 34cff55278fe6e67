"""Weights on disk: released layouts, and strict loading into a denoiser."""

from t2ikit.checkpoints.files import load_weights, read_weights
from t2ikit.checkpoints.released import UpstreamWeights, coherence_is_trained, from_upstream, read_upstream

__all__ = [
    "UpstreamWeights",
    "coherence_is_trained",
    "from_upstream",
    "load_weights",
    "read_upstream",
    "read_weights",
]
