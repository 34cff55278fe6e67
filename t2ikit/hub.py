"""Weights from and for the outside: the released layouts."""

from t2ikit.checkpoints import from_upstream

__all__ = ["from_upstream"]
