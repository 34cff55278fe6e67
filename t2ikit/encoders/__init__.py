"""Pretrained encoders behind two narrow seams: text to states, images to x_0 and back."""

from t2ikit.encoders.autoencoders import ImageSpace, LatentSpace, PixelSpace
from t2ikit.encoders.text import TextEncoder, build_small_t5

__all__ = ["ImageSpace", "LatentSpace", "PixelSpace", "TextEncoder", "build_small_t5"]
