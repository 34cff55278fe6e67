"""Denoisers: one architecture a file, one contract (:class:`Denoiser`)."""

from t2ikit.denoisers.base import Denoiser
from t2ikit.denoisers.cad_i import CADI, cad_i_b, cad_i_l, cad_i_s
from t2ikit.denoisers.context import Context, TextContext
from t2ikit.denoisers.dit_i import DiTI
from t2ikit.denoisers.saved import SavedDenoiser
from t2ikit.denoisers.shells import Levels, Shallow
from t2ikit.denoisers.uvit import UViT

__all__ = [
    "CADI",
    "Context",
    "Denoiser",
    "DiTI",
    "Levels",
    "SavedDenoiser",
    "Shallow",
    "TextContext",
    "UViT",
    "cad_i_b",
    "cad_i_l",
    "cad_i_s",
]
