"""KID: the kernel inception distance between two sets of features.

Shape legend::

    N, M  features of the two sets    D  their width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from t2ikit.metrics.base import MORE_IMAGES, Result, Rows, Samples
from t2ikit.metrics.distribution.cmmd import Array, embeddings_of
from t2ikit.metrics.distribution.reference import ComparedMetric


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
    first, second = embeddings_of(real, "real"), embeddings_of(fake, "fake")
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
    real, fake = real.to(torch.float64), fake.to(torch.float64)

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.T / width + 1.0) ** degree

    own_kernels = (kernel(real, real), kernel(fake, fake))
    within = sum((values.sum() - values.trace()) / (count * (count - 1)) for values in own_kernels)
    return within - 2.0 * kernel(real, fake).mean()


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
        real, fake = self.reference_features(samples), torch.as_tensor(rows)
        result = kid(real, fake, self.subsets, self.subset_size, seed=self.seed)
        return Result({"kid": result.mean, "kid_std": result.std})

    def fingerprint(self) -> dict[str, Any]:
        """Features and subsets."""
        chosen = {"subsets": self.subsets, "subset_size": self.subset_size, "subset_seed": self.seed}
        return {**super().fingerprint(), **chosen}
