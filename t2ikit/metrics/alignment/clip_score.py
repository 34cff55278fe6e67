"""CLIPScore: how well images fit their captions by the cosine of CLIP embeddings.

Shape legend::

    N  image and caption pairs    D  embedding width

Long captions keep their end token; the ``legacy`` switch drops it as common code does
(see ``t2ikit.metrics.features.clip``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.features.clip import CLIPEncoder
from t2ikit.metrics.statistics import clustered_error, finite

FORMS = ("torchmetrics", "hessel")
HESSEL_PREFIX = "A photo depicts "
HESSEL_WEIGHT = 2.5


def clip_score(cosines: Tensor, form: str = "torchmetrics") -> float:
    """CLIPScore of the cosines [N] of images with their captions.

    Args:
        cosines: as `pair_cosines` gives them.
        form: "torchmetrics", ``max(100 mean(cos), 0)``, which the ImageNet papers report; "hessel" (Hessel et al.
            2021, Equation 1), ``2.5 mean(max(cos, 0))``.
    """
    if form == "torchmetrics":
        return max(100.0 * float(cosines.mean()), 0.0)
    return HESSEL_WEIGHT * float(cosines.clamp_min(0).mean())


def pair_cosines(image_embeddings: Tensor, text_embeddings: Tensor, first: int = 0) -> Tensor:
    """Cosine [N] float64 of each image with its own caption.

    Args:
        image_embeddings: [N, D], of any length.
        text_embeddings: [N, D], of any length.
        first: index of the first image, for messages.

    Raises:
        ValueError: shapes that differ, no pairs, or an embedding that is not finite or zero.
    """
    images, texts = (torch.as_tensor(rows).detach().double() for rows in (image_embeddings, text_embeddings))
    if images.dim() != 2 or images.shape != texts.shape or len(images) == 0:
        raise ValueError(f"embeddings must be two [N, D]; got {tuple(images.shape)} and {tuple(texts.shape)}")
    lengths = images.norm(dim=1) * texts.norm(dim=1)
    broken = (~(lengths.isfinite() & (lengths > 0))).nonzero()
    if len(broken):
        raise ValueError(f"the embedding of image or caption {first + int(broken[0])} is zero or not finite")
    return (images * texts).sum(dim=1) / lengths


class PairEncoder(Protocol):
    """Embeds images and captions in one space."""

    def images(self, images: Tensor) -> Tensor:
        """[B, D] of images [B, 3, H, W] uint8, on their device."""

    def texts(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """[B, D] of B captions."""


def observe_cosines(encoder: PairEncoder, batch: SampleBatch, prefix: str = "") -> Tensor:
    """Cosine [B] float64 on the CPU of each image with its prompt; ``prefix`` is put before every prompt."""
    texts = encoder.texts([prefix + prompt for prompt in batch.prompts], batch.images.device)
    return pair_cosines(encoder.images(batch.images), texts, batch.first).cpu()


def mean_error(name: str, values: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Standard error of the mean of ``values`` [N] under ``name``, prompts as clusters; empty for a single prompt."""
    return finite({name: clustered_error(values.tolist(), prompts)})


@dataclass(eq=False)
class CLIPScore(Metric):
    """CLIPScore of the samples' images and prompts; weights are loaded at the first use.

    Attributes:
        model: a CLIP model of transformers with its tokenizer: repository or local folder.
        revision: commit, branch or tag of the repository.
        form: "torchmetrics" (0 to 100) or "hessel" (with its prefix "A photo depicts ").
        legacy: reproduce the loss of the end token in captions over 77 tokens.
        batch_size: pairs a pass.
        name: put before the score's name, where a snapshot has two of these.
    """

    model: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    form: str = "torchmetrics"
    legacy: bool = False
    batch_size: int = 64
    name: str | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}; got {self.form!r}")
        self.unit = "100 cos" if self.form == "torchmetrics" else f"{HESSEL_WEIGHT} cos"
        self.encoder = CLIPEncoder(self.model, self.revision, "clip_224", self.legacy)

    def check(self, samples: Samples) -> None:
        """Refuses samples without prompts."""
        if not samples.prompts:
            raise ValueError("CLIPScore needs the prompts of the images")

    def observe(self, batch: SampleBatch) -> Rows:
        """Cosines [B] float64."""
        return observe_cosines(self.encoder, batch, HESSEL_PREFIX if self.form == "hessel" else "")

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``clip_score``; its error has prompts as clusters and is missing for a single prompt."""
        cosines = torch.as_tensor(rows)
        values = 100.0 * cosines if self.form == "torchmetrics" else HESSEL_WEIGHT * cosines.clamp_min(0)
        errors = mean_error("clip_score", values, samples.prompts)
        return Result({"clip_score": clip_score(cosines, self.form)}, errors)

    def fingerprint(self) -> dict[str, Any]:
        """Model, hash of its weights, pixel pipeline, form and the legacy switch."""
        return {**self.encoder.fingerprint(), "form": self.form}
