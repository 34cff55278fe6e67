"""CLIP as a pair of encoders: images and captions to embeddings of one space, with the end token kept.

Shape legend::

    B  images or captions    L  tokens    D  embedding width

CLIP's text tower reads at most 77 tokens and pools at the end token. A longer caption has to be cut so that the end
token stays; common code cuts it away, after which the largest id left is pooled (with CLIP's vocabulary the start
token, whose state knows no caption), and scores of long captions fall to about a third. ``legacy=True`` reproduces
that for comparison with numbers made so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from t2ikit.metrics.features.features import NetworkHolder
from t2ikit.metrics.features.pixels import describe_pipeline, preprocess
from t2ikit.pretrained import load_pretrained

CONTEXT = 77  # tokens that CLIP reads, with the start and the end
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt")


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


@dataclass(eq=False)
class CLIPEncoder(NetworkHolder):
    """Projected embeddings of images and captions, float32, not normalised; weights are loaded at the first use.

    Attributes:
        model: a CLIP model of transformers with its tokenizer: repository or local folder.
        revision: commit, branch or tag of the repository.
        pipeline: pixel pipeline of the images.
        legacy: reproduce the loss of the end token in captions over 77 tokens.
        option: what an error message names.
        tokenizer: repository or local folder of the tokenizer; None takes the model's own.
    """

    model: str
    revision: str | None = None
    pipeline: str = "clip_224"
    legacy: bool = False
    option: str = "init_args.model"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        self._settings = describe_pipeline(self.pipeline)
        self._loaded: tuple[Any, Any, str] | None = None

    def _load(self) -> tuple[Any, Any, str]:
        if self._loaded is None:
            from transformers import AutoTokenizer, CLIPModel

            network, folder = load_pretrained(CLIPModel, self.model, self.revision, self.option, TOKENIZER_FILES)
            source = self.tokenizer or folder.folder
            try:
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise FileNotFoundError(f"no tokenizer at {source} ({error}): correct {self.option}") from error
            self._loaded = (network.float(), tokenizer, folder.reference.sha256)  # files may hold half precision
        return self._loaded

    @property
    def network(self) -> nn.Module:
        """The ``CLIPModel``."""
        return self._load()[0]

    @torch.no_grad()
    def images(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Embeddings [B, D] of images, each [3, H, W] uint8 (sizes may differ), on the device of the first."""
        device = images[0].device
        network = self._load()[0].to(device)
        pixels = torch.stack([preprocess(self.pipeline, image) for image in images]).to(device)
        with torch.autocast(device.type, enabled=False):
            return network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def texts(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Embeddings [B, D] of captions."""
        network, tokenizer, _ = self._load()
        network, device = network.to(device), torch.device(device)
        end = tokenizer.eos_token_id
        context = min(CONTEXT, network.config.text_config.max_position_embeddings)
        rows = [truncate(tokenizer(text)["input_ids"], end, self.legacy, context) for text in texts]
        length = max(len(row) for row in rows)
        # Padding goes after the end token, and attention is causal: no mask is needed and any id will do but the end.
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
        with torch.autocast(device.type, enabled=False):
            states = network.text_model(input_ids=ids).last_hidden_state
            position = pooled_position(ids, end, self.legacy)
            return network.text_projection(states[torch.arange(len(rows), device=device), position])

    def fingerprint(self) -> dict[str, Any]:
        """Model, hash of its weights and tokenizer, pixel pipeline, and the legacy switch."""
        described = {"features": f"clip:{self.model}", "features_sha256": self._load()[2], "legacy": self.legacy}
        return {**described, **self._settings}
