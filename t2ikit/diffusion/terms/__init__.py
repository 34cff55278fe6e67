"""Terms that :class:`t2ikit.diffusion.Denoising` adds to its loss: one a file."""

from t2ikit.diffusion.terms.base import MainPass, Needs, Term

__all__ = ["MainPass", "Needs", "Term"]
