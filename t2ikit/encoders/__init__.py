"""Pretrained encoders behind two narrow seams: text to states, images to x_0 and back."""

from t2ikit.encoders.autoencoders import ImageSpace, LatentSpace, PixelSpace
from t2ikit.encoders.small_t5 import build_small_t5
from t2ikit.encoders.text import TextEncoder

__all__ = ["ImageSpace", "LatentSpace", "PixelSpace", "TextEncoder", "build_small_t5"]
