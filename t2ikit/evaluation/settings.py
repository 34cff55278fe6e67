"""How a set of images is sampled: what a snapshot and the command line set, and what a fingerprint says of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from t2ikit.checkpoints import filled
from t2ikit.config.origins import Origins
from t2ikit.denoisers import Denoiser
from t2ikit.diffusion import Guidance, Process
from t2ikit.diffusion.guidance import loaded
from t2ikit.diffusion.processes import Threshold
from t2ikit.diffusion.samplers import find_solver, network_evaluations
from t2ikit.diffusion.solvers import Solver
from t2ikit.diffusion.thresholds import threshold_function
from t2ikit.evaluation.search import Search
from t2ikit.pretrained import state_sha256


@dataclass(frozen=True)
class Sampling:
    """How a set of images is sampled.

    Attributes:
        steps: sampler steps.
        method: sampler, see ``t2ikit.diffusion.sample``.
        guidance: classifier-free guidance w, (1 + w) cond - w uncond; or a Guidance.
        seed: key of the noise.
        batch_size: images sampled at once on each rank; changes them by rounding at most.
        precision: as the Trainer names it; "bf16-..." samples under bfloat16 autocast.
        size: (H, W) of x_0, one that the denoiser takes beside its ``input_size``; None takes that.
        search: samples several candidates of every image and has a verifier choose; None samples one.
        threshold: bound on the sampler's estimates of x_0, see ``t2ikit.diffusion.sample``; None takes that of the
            image space, where the process bounds them at all.

    Raises:
        ValueError: an unknown threshold, or one out of range.
    """

    steps: int = 50
    method: str | Solver = "ddim"
    guidance: float | Guidance = 2.0
    seed: int = 0
    batch_size: int = 64
    precision: str = "32-true"
    size: tuple[int, int] | None = None
    search: Search | None = None
    threshold: Threshold | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            threshold_function(self.threshold)

    @property
    def bf16(self) -> bool:
        """Whether the network runs under bfloat16 autocast."""
        return self.precision.startswith("bf16")

    def shape(self, denoiser: Denoiser) -> tuple[int, int, int]:
        """(C, H, W) of the noise of an image.

        Raises:
            ValueError: the denoiser takes no x of this size.
        """
        if self.size is None:
            return denoiser.input_shape
        shape = (denoiser.input_shape[0], *self.size)
        if shape not in denoiser.shapes:
            sizes = ", ".join(f"{height}x{width}" for _, height, width in denoiser.shapes)
            raise ValueError(f"size {self.size[0]}x{self.size[1]}: the denoiser takes {sizes} (its other_sizes)")
        return shape

    def with_weight(self, weight: float) -> Sampling:
        """The same with another guidance weight w."""
        if isinstance(self.guidance, Guidance):
            return replace(self, guidance=replace(self.guidance, weight=weight))
        return replace(self, guidance=weight)

    def filled(self, device: torch.device | str, origins: Origins | None = None) -> Sampling:
        """The same with a weaker denoiser that is there, where guidance names one by its checkpoint; on ``device``.

        ``origins``: which modules the class paths of that checkpoint may name.
        """
        if not isinstance(self.guidance, Guidance) or self.guidance.weaker is None:
            return self
        return replace(self, guidance=replace(self.guidance, weaker=filled(self.guidance.weaker, origins).to(device)))

    def conditions(self) -> dict[str, Any]:
        """The fields of a score's fingerprint: all but the batch size."""
        conditions: dict[str, Any] = {
            "seeds": str(self.seed),
            "sampler": find_solver(self.method).name,
            "steps": self.steps,
            "guidance": describe_guidance(self.guidance),
            "precision": self.precision,
        }
        if self.size is not None:
            conditions["size"] = list(self.size)
        if self.search is not None:
            conditions["search"] = self.search.conditions()
        if self.threshold is not None:
            conditions["threshold"] = self.threshold if isinstance(self.threshold, str) else list(self.threshold)
        return conditions

    def network_evaluations(self, process: Process) -> int:
        """How often a network is evaluated for one candidate of an image."""
        return network_evaluations(process, steps=self.steps, guidance=self.guidance, method=self.method)

    def images_at_once(self) -> int:
        """How many images make one batch, which is stored when it is done."""
        return self.batch_size if self.search is None else self.search.images_at_once(self.batch_size)


def describe_guidance(guidance: float | Guidance) -> float | str:
    """The weight where there is nothing else to say, else every setting; a weaker denoiser by its hash."""
    if not isinstance(guidance, Guidance):
        return float(guidance)
    if guidance == Guidance(guidance.weight):
        return float(guidance.weight)
    plain = repr(replace(guidance, weaker=None))
    weaker = loaded(guidance.weaker)
    return plain if weaker is None else f"{plain} weaker={state_sha256(weaker.state_dict())}"
