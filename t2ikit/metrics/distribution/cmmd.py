"""CMMD: a kernel distance between two sets of embeddings.

Shape legend::

    N, M  embeddings of the two sets    D  their width
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2ikit.metrics.base import Result, Rows, Samples
from t2ikit.metrics.distribution.reference import ComparedMetric

Array = Tensor | NDArray[np.floating]

SIGMA = 10.0  # bandwidth of the Gaussian kernel, Jayasumana et al. 2024
SCALE = 1000.0
BLOCK = 2048  # rows of a kernel block


def cmmd(x: Array, y: Array) -> float:
    """CLIP maximum mean discrepancy (Jayasumana et al. 2024, Equation 4), biased, with the diagonals, times 1000.

    The kernel is ``exp(-|x - y|^2 / (2 sigma^2))`` with sigma = 10, in float64. The embeddings are taken as given: the
    protocol's are those of CLIP ViT-L/14 at 336 pixels, projected and of length one.

    Args:
        x: [N, D] embeddings of the reference set.
        y: [M, D] embeddings of the generated set.

    Returns:
        1000 times the squared discrepancy; zero for equal sets.

    Raises:
        ValueError: shapes that do not fit, an empty set, or embeddings that are not finite.
    """
    first, second = (embeddings_of(rows, name).to(torch.float64) for rows, name in ((x, "x"), (y, "y")))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"the two sets differ in embedding width: {first.shape[1]} and {second.shape[1]}")
    # The distances do not change when both sets move together; near zero they round less.
    centre = first.mean(dim=0)
    first, second = first - centre, second - centre
    return SCALE * float(_mean_kernel(first, first) + _mean_kernel(second, second) - 2.0 * _mean_kernel(first, second))


def embeddings_of(rows: Array, name: str) -> Tensor:
    """Checked embeddings [N, D] on the CPU; ``name`` is the set's, for messages."""
    embeddings = torch.as_tensor(rows).detach().to("cpu")
    if embeddings.dim() != 2 or 0 in embeddings.shape:
        raise ValueError(f"{name} must be [N, D] with at least one row; got {tuple(embeddings.shape)}")
    broken = (~embeddings.isfinite().all(dim=1)).nonzero()
    if len(broken):
        raise ValueError(f"the embedding of image {int(broken[0])} of {name} is not finite")
    return embeddings


def _mean_kernel(first: Tensor, second: Tensor) -> Tensor:
    """Mean over all pairs of the Gaussian kernel."""
    squares = second.square().sum(dim=1)
    total = first.new_zeros(())
    for block in first.split(BLOCK):
        distances = torch.addmm(squares[None], block, second.T, alpha=-2.0) + block.square().sum(dim=1, keepdim=True)
        total += distances.clamp_min_(0).mul_(-0.5 / SIGMA**2).exp_().sum()
    return total / (len(first) * len(second))


class CMMD(ComparedMetric):
    """CMMD of the samples against the reference, on any embedding; the protocol's is ``CLIPFeatures()``."""

    unit = "1000 squared MMD"
    less_is_better = ("cmmd",)

    def least(self) -> tuple[int, str]:
        """One."""
        return 1, "CMMD"

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``cmmd``."""
        return Result({"cmmd": cmmd(self.reference_features(samples), torch.as_tensor(rows))})

    def fingerprint(self) -> dict[str, Any]:
        """Features and bandwidth."""
        return {**super().fingerprint(), "sigma": SIGMA}
