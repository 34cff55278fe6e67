"""Kernel distances between embedding sets: CMMD and KID.

Shape legend::

    N, M  embeddings of the two sets    D  their width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t2ikit.metrics.base import MORE_IMAGES, Result, Rows, Samples
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
    first, second = _embeddings(x, "x"), _embeddings(y, "y")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"the two sets differ in embedding width: {first.shape[1]} and {second.shape[1]}")
    # The distances do not change when both sets move together; near zero they round less.
    centre = first.mean(dim=0)
    first, second = first - centre, second - centre
    return SCALE * float(_mean_kernel(first, first) + _mean_kernel(second, second) - 2.0 * _mean_kernel(first, second))


def _embeddings(rows: Array, name: str) -> Tensor:
    embeddings = torch.as_tensor(rows).detach().to("cpu", torch.float64)
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


@dataclass(frozen=True)
class KernelInceptionDistance:
    """Mean and standard deviation over the subsets."""

    mean: float
    std: float


def kid(
    real: Array, fake: Array, subsets: int = 100, subset_size: int = 1000, degree: int = 3, seed: int = 0
) -> KernelInceptionDistance:
    """Kernel inception distance (Binkowski et al. 2018): unbiased, kernel ``(x . y / D + 1)^degree``, over subsets.

    Args:
        real: [N, D] features of real images.
        fake: [M, D] features of generated images.
        subsets: number of random subsets.
        subset_size: rows of each, taken without replacement from either set.
        degree: of the polynomial.
        seed: of the subsets.

    Returns:
        Mean and standard deviation (population) over the subsets; not scaled.

    Raises:
        ValueError: fewer rows than ``subset_size``, which must be at least 2, or shapes that do not fit.
    """
    first, second = _embeddings(real, "real"), _embeddings(fake, "fake")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"the two sets differ in feature width: {first.shape[1]} and {second.shape[1]}")
    if subset_size < 2 or min(len(first), len(second)) < subset_size:
        raise ValueError(
            f"subset_size={subset_size} needs 2 rows or more and at most those of the smaller set "
            f"({min(len(first), len(second))}): change subset_size, or take more images ({MORE_IMAGES})"
        )
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        real_rows = first[torch.randperm(len(first), generator=generator)[:subset_size]]
        fake_rows = second[torch.randperm(len(second), generator=generator)[:subset_size]]
        values.append(_unbiased_polynomial(real_rows, fake_rows, degree))
    stacked = torch.stack(values)
    return KernelInceptionDistance(float(stacked.mean()), float(stacked.std(correction=0)))


def _unbiased_polynomial(real: Tensor, fake: Tensor, degree: int) -> Tensor:
    """Unbiased squared discrepancy of two sets of equal size under the polynomial kernel."""
    count, width = real.shape

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.T / width + 1.0) ** degree

    own_kernels = (kernel(real, real), kernel(fake, fake))
    within = sum((values.sum() - values.trace()) / (count * (count - 1)) for values in own_kernels)
    return within - 2.0 * kernel(real, fake).mean()


class CMMD(ComparedMetric):
    """CMMD of the samples against the reference, on any embedding; the protocol's is ``CLIPFeatures()``."""

    unit = "1000 squared MMD"
    less_is_better = ("cmmd",)

    def least(self) -> tuple[int, str]:
        """One."""
        return 1, "CMMD"

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``cmmd``."""
        return Result({"cmmd": cmmd(self.need_features(samples), torch.as_tensor(rows))})

    def fingerprint(self) -> dict[str, Any]:
        """Features and bandwidth."""
        return {**super().fingerprint(), "sigma": SIGMA}


@dataclass(eq=False)
class KID(ComparedMetric):
    """Kernel inception distance of the samples against the reference; the protocol's network is ``InceptionFeatures``.

    Attributes:
        subsets: number of random subsets.
        subset_size: images of each; at most the number of images and of reference images.
        seed: of the subsets.
    """

    subsets: int = 100
    subset_size: int = 1000
    seed: int = 0
    unit = "squared MMD"
    less_is_better = ("kid",)

    def least(self) -> tuple[int, str]:
        """Those of a subset."""
        return self.subset_size, f"subset_size={self.subset_size}"

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``kid``, the mean, and ``kid_std``, the deviation over subsets."""
        real, fake = self.need_features(samples), torch.as_tensor(rows)
        result = kid(real, fake, self.subsets, self.subset_size, seed=self.seed)
        return Result({"kid": result.mean, "kid_std": result.std})

    def fingerprint(self) -> dict[str, Any]:
        """Features and subsets."""
        chosen = {"subsets": self.subsets, "subset_size": self.subset_size, "subset_seed": self.seed}
        return {**super().fingerprint(), **chosen}
