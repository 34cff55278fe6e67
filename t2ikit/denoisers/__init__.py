"""Denoisers: one architecture a file, one contract (:class:`Denoiser`)."""

from t2ikit.denoisers.base import Denoiser, TextContext
from t2ikit.denoisers.cad_i import CADI, cad_i_b, cad_i_l, cad_i_s
from t2ikit.denoisers.dit_i import DiTI

__all__ = ["CADI", "Denoiser", "DiTI", "TextContext", "cad_i_b", "cad_i_l", "cad_i_s"]
