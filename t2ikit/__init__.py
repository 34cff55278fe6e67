"""t2ikit: small text-to-image diffusion models on ImageNet, from a photo on disk to a score beside the paper's.

Importing the package loads nothing heavy; each room is imported where it is used (``t2ikit.denoisers``, ...).
"""

__version__ = "0.1.0"
