"""The encoders of ``prepare encode`` at work: one call of each model a batch, everything quantised on the device.

Shapes: [B, 3, S, S] uint8 images, [B, 2, C, h, w] float16 posteriors, [T, D] states of all tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2ikit.data.layout import Record, RecordView, Tokens, quantise_states
from t2ikit.data.manifest import Manifest
from t2ikit.data.records import RecordSet
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.encoders.text import TextEncoder
from t2ikit.prepare.caption_lines import CaptionLines
from t2ikit.prepare.captions_set import CaptionHeader
from t2ikit.prepare.engine import Rejected, Work
from t2ikit.prepare.steps import sha256_of_json, versions
from t2ikit.pretrained import EncoderReference

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TextOptions:
    """How captions are encoded.

    Attributes:
        token_format: "int8" or "float16".
        max_tokens: longer captions are cut.
        dtype: "float32" or "bfloat16", of the text encoder.

    Raises:
        ValueError: another word; names the option.
    """

    token_format: str
    max_tokens: int
    dtype: str

    def __post_init__(self) -> None:
        if self.token_format not in ("int8", "float16"):
            raise ValueError(f"--token-format is int8 or float16; got {self.token_format!r}")
        if self.dtype not in _TYPES:
            raise ValueError(f"--text-dtype is float32 or bfloat16 (T5 overflows in float16); got {self.dtype!r}")


class Encoders:
    """Autoencoder and text encoder, loaded when they are first needed; without their weights when pickled.

    Args:
        autoencoder: folder or repository; None stores pixels.
        autoencoder_revision: of the repository.
        text_encoder: folder or repository.
        text_encoder_revision: of the repository.
        options: how captions are encoded.
        batch_size: images, and captions, that go through a model at once.
        stored_as: name of the text encoder in the manifest, where it is not ``text_encoder``.
    """

    def __init__(
        self,
        autoencoder: str | None,
        autoencoder_revision: str | None,
        text_encoder: str,
        text_encoder_revision: str | None,
        options: TextOptions,
        batch_size: int,
        stored_as: str | None = None,
    ) -> None:
        self.space = None
        if autoencoder is not None:
            self.space = LatentSpace(autoencoder, autoencoder_revision, batch_size=batch_size)
        self.text_encoder = text_encoder
        self.text_encoder_revision = text_encoder_revision
        self.options = options
        self.batch_size = batch_size
        self.stored_as = stored_as
        self.device = torch.device("cpu")
        self._texts: TextEncoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_texts": None, "device": torch.device("cpu")}
        if self.space is not None:
            state["space"] = LatentSpace(self.space.autoencoder, self.space.revision, batch_size=self.batch_size)
        return state

    @property
    def texts(self) -> TextEncoder:
        """The text encoder."""
        if self._texts is None:
            self._texts = TextEncoder.load(
                self.text_encoder,
                self.text_encoder_revision,
                self.device,
                _TYPES[self.options.dtype],
                self.options.max_tokens,
            )
        return self._texts

    @property
    def identity(self) -> str:
        """Hash of all that decides what the encoders give."""
        images = None if self.space is None else self.space.reference.sha256
        options = [self.options.token_format, self.options.max_tokens, self.options.dtype]
        return sha256_of_json([images, self.texts.reference.sha256, *options])

    @property
    def empty_prompt(self) -> Tokens:
        """States of the empty prompt."""
        return self._tokens([""])[0]

    def to(self, device: torch.device) -> None:
        """Moves both models; the autoencoder follows the images."""
        self.device = device
        self.texts.to(device)

    def manifest(self, images: Manifest, captions: CaptionHeader) -> Manifest:
        """Description of an encoded set.

        Args:
            images: of its image set.
            captions: header of its captions.
        """
        shape = images.image_shape
        if self.space is not None:
            side = shape[-1] // self.space.downsampling
            shape = (2, self.space.channels, side, side)
        reference = self.texts.reference
        if self.stored_as is not None:
            reference = EncoderReference(self.stored_as, None, reference.sha256)
        return Manifest(
            kind="pixels" if self.space is None else "latents",
            image_shape=shape,
            text_dim=self.texts.dim,
            token_format=self.options.token_format,
            token_limit=self.options.max_tokens,
            text_dtype=self.options.dtype,
            text_encoder=reference,
            autoencoder=None if self.space is None else self.space.reference,
            autoencoder_dtype="" if self.space is None else "float32",
            captions=captions.kind,
            captioners=_captioners(captions),
            setting=images.setting,
            source=images.source,
            versions=versions("torch", "transformers", "diffusers", "litdata"),
        )

    def bytes_of(self, texts: Sequence[str]) -> int:
        """Size of the stored states of some texts."""
        width = self.texts.dim
        per_token = 2 * width if self.options.token_format == "float16" else width + 2 * -(-width // 64)
        return per_token * sum(self.texts.lengths(texts))

    def encode(self, pixels: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, list[Tokens]]:
        """Images [B, 3, S, S] uint8 as they are stored, and the states of some texts.

        The autoencoder is at work on a GPU while the texts are cut into tokens here.
        """
        posteriors = None if self.space is None else self._posteriors(self.space, torch.from_numpy(pixels))
        tokens = self._tokens(texts)
        return (pixels if posteriors is None else posteriors.cpu().numpy()), tokens

    def _posteriors(self, space: LatentSpace, pixels: Tensor) -> Tensor:
        mean, std = space.encode(pixels.to(self.device))
        return torch.stack([mean, std], dim=1).to(torch.float16)

    def _tokens(self, texts: Sequence[str]) -> list[Tokens]:
        tokens: list[Tokens] = []
        for first in range(0, len(texts), self.batch_size):
            states = self.texts.encode(texts[first : first + self.batch_size])
            tokens += quantise_states(states, self.options.token_format)
        return tokens


class Encoding(Work):
    """The records of one part of an image set.

    A caption is encoded once a shard (class captions repeat); not once for all, since the last bits of its states
    depend on the texts beside it, and a call that goes on must end with the same bytes as one that was not stopped.
    """

    def __init__(
        self, images: RecordSet, captions: CaptionLines, part: range, encoders: Encoders, identity: str
    ) -> None:
        self.images = images
        self.captions = captions
        self.part = part
        self.encoders = encoders
        self.identity = identity
        self._known: dict[str, Tokens] = {}

    def __len__(self) -> int:
        return len(self.part)

    def load(self, index: int) -> tuple[np.ndarray, dict[str, Any], tuple[str, ...]]:
        """Pixels, metadata and captions."""
        view = self.images.view(self.part[index])
        metadata = view.details()[1]
        key, texts = self.captions[self.part[index]]
        if metadata["key"] != key:
            raise ValueError(
                f"{self.captions.path} has {key} where the images have {metadata['key']}: run t2ikit prepare captions "
                "--overwrite"
            )
        return view.image().copy(), metadata, texts

    def setup(self, device: torch.device) -> None:
        self.encoders.to(device)

    def begin_shard(self) -> None:
        self._known.clear()

    def compute(self, items: list[Any]) -> list[bytes]:
        new = [text for text in dict.fromkeys(text for *_, texts in items for text in texts) if text not in self._known]
        stored, tokens = self.encoders.encode(np.stack([pixels for pixels, *_ in items]), new)
        self._known.update(zip(new, tokens, strict=True))
        results = []
        for one, (_, metadata, texts) in zip(stored, items, strict=True):
            if not np.isfinite(one).all():
                raise ValueError(f"the posterior of {metadata['key']} does not fit float16: use another --autoencoder")
            results.append(Record(one, texts, tuple(self._known[text] for text in texts), metadata).to_bytes())
        return results

    def facts(self, results: Sequence[bytes | Rejected]) -> Mapping[str, int]:
        views = [RecordView(result) for result in results if isinstance(result, bytes)]
        return {"longest": max((view.length(c) for view in views for c in range(view.states_count)), default=0)}


def _captioners(captions: CaptionHeader) -> dict[str, dict[str, str]]:
    """What made each column of captions, as far as it is known."""
    made = {}
    for column in captions.columns:
        facts = {
            "kind": column.kind,
            "model": column.model,
            "sha256": column.captioner.sha256 if column.captioner else "",
            "revision": (column.captioner.revision or "") if column.captioner else "",
            "prompt": column.prompt,
            "cutmix_prompt": column.cutmix_prompt,
        }
        made[column.name] = {name: value for name, value in facts.items() if value}
    return made
