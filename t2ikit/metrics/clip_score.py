"""CLIPScore: how well images fit their captions by the cosine of CLIP embeddings.

Shape legend::

    N  image and caption pairs    D  embedding width    L  tokens

CLIP's text tower reads at most 77 tokens and pools at the end token. A longer caption has to be cut so that the end
token stays; common code cuts it away, after which the largest id left is pooled (with CLIP's vocabulary the start
token, whose state knows no caption), and scores of long captions fall to about a third. ``legacy=True`` reproduces
that for comparison with numbers made so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit.metrics.base import Metric, Samples
from t2ikit.metrics.pixels import describe_pipeline, preprocess_batch
from t2ikit.pretrained import load_pretrained

CONTEXT = 77  # tokens that CLIP reads, with the start and the end
FORMS = ("torchmetrics", "hessel")
HESSEL_PREFIX = "A photo depicts "
HESSEL_WEIGHT = 2.5


def clip_score(image_embeddings: Tensor, text_embeddings: Tensor, form: str = "torchmetrics") -> float:
    """CLIPScore of paired embeddings.

    Args:
        image_embeddings: [N, D], of any length.
        text_embeddings: [N, D], of any length.
        form: "torchmetrics", ``max(100 mean(cos), 0)``, which the ImageNet papers report; "hessel" (Hessel et al.
            2021, Equation 1), ``2.5 mean(max(cos, 0))``.

    Raises:
        ValueError: shapes that differ, no pairs, an unknown form, or an embedding that is not finite or zero.
    """
    cosines = pair_cosines(image_embeddings, text_embeddings)
    if form == "torchmetrics":
        return max(100.0 * float(cosines.mean()), 0.0)
    if form == "hessel":
        return HESSEL_WEIGHT * float(cosines.clamp_min(0).mean())
    raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")


def pair_cosines(image_embeddings: Tensor, text_embeddings: Tensor) -> Tensor:
    """Cosine [N] float64 of each image with its own caption; errors as in ``clip_score``."""
    images, texts = (torch.as_tensor(rows).detach().double() for rows in (image_embeddings, text_embeddings))
    if images.dim() != 2 or images.shape != texts.shape or len(images) == 0:
        raise ValueError(f"embeddings must be two [N, D]; got {tuple(images.shape)} and {tuple(texts.shape)}")
    lengths = images.norm(dim=1) * texts.norm(dim=1)
    broken = (~(lengths.isfinite() & (lengths > 0))).nonzero()
    if len(broken):
        raise ValueError(f"the embedding of image or caption {int(broken[0])} is zero or not finite")
    return (images * texts).sum(dim=1) / lengths


def truncate(ids: Sequence[int], end: int, legacy: bool = False, context: int = CONTEXT) -> list[int]:
    """The tokens of one caption, start and end included, cut to what CLIP reads.

    Args:
        ids: token ids of the whole caption.
        end: id of the end token.
        legacy: cut without mercy, so that a long caption loses its end token.
        context: how many tokens are read.

    Returns:
        At most ``context`` ids; a cut caption has the end token last, unless ``legacy``.
    """
    if len(ids) <= context:
        return list(ids)
    return list(ids[:context]) if legacy else [*ids[: context - 1], end]


def pooled_position(ids: Tensor, end: int, legacy: bool = False) -> Tensor:
    """Where the text tower pools: the first end token of each row [B, L], or, ``legacy``, the largest id.

    Raises:
        ValueError: a row without an end token (not ``legacy``).
    """
    if legacy:
        return ids.argmax(dim=1)
    ends = ids == end
    if not bool(ends.any(dim=1).all()):
        raise ValueError("a caption has no end token: cut it with truncate()")
    return ends.to(torch.int64).argmax(dim=1)


class CLIPScore(Metric):
    """CLIPScore of the samples' images and prompts."""

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        revision: str | None = None,
        form: str = "torchmetrics",
        legacy: bool = False,
        batch_size: int = 64,
    ) -> None:
        """Names the model; weights are loaded at the first use.

        Args:
            model: a CLIP model of transformers with its tokenizer: repository or local folder.
            revision: commit, branch or tag of the repository.
            form: "torchmetrics" (0 to 100) or "hessel" (with its prefix "A photo depicts ").
            legacy: reproduce the loss of the end token in captions over 77 tokens.
            batch_size: pairs a pass.
        """
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
        self.model = model
        self.revision = revision
        self.form = form
        self.legacy = legacy
        self.batch_size = batch_size
        self.pipeline = "clip_224"
        self._loaded: tuple[nn.Module, Any, str] | None = None

    def _load(self) -> tuple[nn.Module, Any, str]:
        if self._loaded is None:
            from transformers import AutoTokenizer, CLIPModel

            network, found = load_pretrained(
                CLIPModel, self.model, self.revision, "init_args.model", ("tokenizer.json", "vocab.json", "merges.txt")
            )
            self._loaded = (network, AutoTokenizer.from_pretrained(found.folder), found.reference.sha256)
        return self._loaded

    def compute(self, samples: Samples) -> Iterator[tuple[str, float]]:
        """Yields ("clip_score", value); ValueError without prompts."""
        if not samples.prompts:
            raise ValueError("CLIPScore needs the prompts of the images")
        images = [self.embed_images(part) for part in samples.images.split(self.batch_size)]
        texts = [
            self.embed_texts(samples.prompts[start : start + self.batch_size], samples.images.device)
            for start in range(0, len(samples), self.batch_size)
        ]
        yield "clip_score", clip_score(torch.cat(images), torch.cat(texts), self.form)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Projected embeddings [B, D] float32 of images [B, 3, H, W] uint8."""
        network: Any = self._load()[0].to(images.device)
        pixels = preprocess_batch(self.pipeline, images)
        pooled = network.vision_model(pixel_values=pixels).pooler_output
        return network.visual_projection(pooled)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Projected embeddings [B, D] float32 of captions."""
        loaded, tokenizer, _ = self._load()
        network: Any = loaded.to(device)
        prefix = HESSEL_PREFIX if self.form == "hessel" else ""
        end = tokenizer.eos_token_id
        context = min(CONTEXT, network.config.text_config.max_position_embeddings)
        rows = [truncate(tokenizer(prefix + text)["input_ids"], end, self.legacy, context) for text in texts]
        length = max(len(row) for row in rows)
        # Padding goes after the end token, and attention is causal: no mask is needed and any id will do but the end.
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
        states = network.text_model(input_ids=ids).last_hidden_state
        place = pooled_position(ids, end, self.legacy)
        return network.text_projection(states[torch.arange(len(rows), device=device), place])

    def fingerprint(self) -> dict[str, Any]:
        """Model, hash of its weights, pixel pipeline, form and the legacy switch."""
        described = {"features": f"clip:{self.model}", "features_sha256": self._load()[2], "form": self.form}
        return {**described, "legacy": self.legacy, **describe_pipeline(self.pipeline)}
