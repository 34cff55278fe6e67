"""Images and captions to the records of training: posteriors or pixels, quantised text states, everything in one pass.

Shapes: [B, 3, S, S] uint8 images, [2, C, h, w] float16 posteriors, [L, D] text states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from t2ikit.data.manifest import Manifest
from t2ikit.data.records import Record, RecordSet, Tokens, quantise_tokens, write_set
from t2ikit.encoders.autoencoders import DEFAULT_AUTOENCODER, LatentSpace
from t2ikit.encoders.text import DEFAULT_TEXT_ENCODER, MAX_TOKENS, TextEncoder, build_small_t5
from t2ikit.prepare.captions import CaptionSet, image_sets
from t2ikit.prepare.engine import batched, identity, require_disk, sha256_of_json, tracked, up_to_date, versions
from t2ikit.prepare.images import IMAGES
from t2ikit.pretrained import EncoderReference, sha256_of

PIXELS = "pixels"
SMALL = "small"
TEXT_ENCODER_FOLDER = "text_encoder"
_OPTIONS = "--autoencoder, --text-encoder, --token-format, images and captions"
_REMEMBERED_CAPTIONS = 4096


def prepare_encode(
    out: str | Path,
    *,
    autoencoder: str = DEFAULT_AUTOENCODER,
    autoencoder_revision: str | None = None,
    text_encoder: str = DEFAULT_TEXT_ENCODER,
    text_encoder_revision: str | None = None,
    token_format: str = "int8",
    max_tokens: int = MAX_TOKENS,
    text_dim: int = 64,
    batch_size: int = 32,
    device: str | None = None,
    text_dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Encodes every image set of a data set with its captions.

    Args:
        out: the folder of the data set.
        autoencoder: "pixels" to store the pixels, or a folder or repository of an ``AutoencoderKL``.
        autoencoder_revision: revision of the repository.
        text_encoder: "small" to build a small T5 for the words of the captions, or a folder or repository of a T5.
        text_encoder_revision: revision of the repository.
        token_format: "int8" (one scale a 64 channels) or "float16".
        max_tokens: longer captions are cut.
        text_dim: D of the small T5.
        batch_size: images, and captions, that go through a model at once.
        device: where the models run; None takes the first GPU if there is one.
        text_dtype: "float32" or "bfloat16", of the text encoder.
        seed: of the small T5.
        overwrite: replace sets that were made from other inputs.

    Returns:
        The manifests, by name of the set.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is missing or wrong, and what to change.
    """
    if token_format not in ("int8", "float16"):
        raise ValueError(f"--token-format is int8 or float16; got {token_format!r}")
    if text_dtype not in ("float32", "bfloat16"):
        raise ValueError(f"--text-dtype is float32 or bfloat16 (T5 overflows in float16); got {text_dtype!r}")
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1; got {batch_size}")
    root = Path(out)
    captions = {name: _matching_captions(root, name) for name in image_sets(root)}
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    space = None if autoencoder == PIXELS else LatentSpace(autoencoder, autoencoder_revision, batch_size=batch_size)
    if text_encoder == SMALL:
        _small_text_encoder(root, captions, text_dim, seed, overwrite)
        text_encoder, text_encoder_revision = str(root / TEXT_ENCODER_FOLDER), None
        name: str | None = TEXT_ENCODER_FOLDER
    else:
        name = None
    dtype = torch.float32 if text_dtype == "float32" else torch.bfloat16
    texts = TextEncoder.load(text_encoder, text_encoder_revision, device, dtype, max_tokens)
    reference = texts.reference
    if name is not None:  # relative to the data set, which may be moved
        reference = EncoderReference(name, None, reference.sha256)
    states = _States(texts, token_format)
    return {
        one: _encode_set(root, one, captions[one], space, states, reference, batch_size, device, overwrite)
        for one in captions
    }


def _matching_captions(root: Path, name: str) -> CaptionSet:
    captions = CaptionSet(root, name)
    if captions.header.images != identity(Manifest.read(root / IMAGES / name)):
        raise ValueError(
            f"{captions.path} belongs to other images than {root / IMAGES / name}: run t2ikit prepare captions --out "
            f"{root} --overwrite"
        )
    return captions


def _small_text_encoder(root: Path, captions: dict[str, CaptionSet], dim: int, seed: int, overwrite: bool) -> None:
    """Builds ``out/text_encoder`` for the words of all captions, or sees that the one there knows them."""
    folder = root / TEXT_ENCODER_FOLDER
    if folder.is_dir() and not overwrite:
        encoder = TextEncoder.load(str(folder))
        if encoder.dim != dim:
            raise FileExistsError(
                f"{folder} has width {encoder.dim}, not {dim}: give --text-dim {encoder.dim} or --overwrite"
            )
        for text in _texts(captions):
            unknown = encoder.unknown_words(text)
            if unknown:
                raise FileExistsError(
                    f"{folder} was built for other captions: it does not know {unknown[0]!r}. Build it again, and "
                    "encode every set anew, with --overwrite"
                )
        return
    build_small_t5(folder, _texts(captions), dim=dim, seed=seed, overwrite=overwrite)
    print(f"{folder}: a small T5 for the words of the captions (random weights)")


def _texts(captions: dict[str, CaptionSet]) -> Iterator[str]:
    """Every caption; the same one is given once in a while only."""
    recent: dict[str, None] = {}
    for _, texts in chain.from_iterable(captions.values()):
        for text in texts:
            if text not in recent:
                if len(recent) == _REMEMBERED_CAPTIONS:
                    recent.clear()
                recent[text] = None
                yield text


class _States:
    """Quantised text states; remembers the latest captions, since class captions repeat a thousand times."""

    def __init__(self, encoder: TextEncoder, token_format: str) -> None:
        self.encoder = encoder
        self.token_format = token_format
        self._known: dict[str, Tokens] = {}

    def of(self, texts: Sequence[str]) -> list[Tokens]:
        """The states of ``texts``; those that are new go through the encoder together."""
        if len(self._known) > _REMEMBERED_CAPTIONS:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for text, states in zip(new, self.encoder.encode(new), strict=True):
            self._known[text] = quantise_tokens(states, self.token_format)
        return [self._known[text] for text in texts]

    def bytes_of(self, texts: Sequence[str]) -> float:
        """Mean size of the stored states of a text."""
        width = self.encoder.dim
        per_token = 2 * width if self.token_format == "float16" else width + 2 * -(-width // 64)
        return per_token * sum(self.encoder.lengths(texts)) / max(len(texts), 1)


def _encode_set(
    root: Path,
    name: str,
    captions: CaptionSet,
    space: LatentSpace | None,
    states: _States,
    reference: EncoderReference,
    batch_size: int,
    device: str,
    overwrite: bool,
) -> Manifest:
    images = RecordSet(root / IMAGES / name)
    shape = images.manifest.image_shape
    if space is not None:
        side = shape[-1] // space.downsampling
        shape = (2, space.channels, side, side)
    wanted = Manifest(
        kind="pixels" if space is None else "latents",
        image_shape=shape,
        text_dim=states.encoder.dim,
        token_format=states.token_format,
        text_encoder=reference,
        autoencoder=None if space is None else space.reference,
        captions=captions.header.kind,
        setting=images.manifest.setting,
        source=images.manifest.source,
        source_sha256=sha256_of_json([identity(images.manifest), sha256_of(captions.path), states.encoder.max_tokens]),
        versions=versions("torch", "transformers", "diffusers", "litdata"),
    )
    folder = root / name
    if up_to_date(folder, wanted, overwrite, _OPTIONS):
        print(f"{folder}: up to date")
        return Manifest.read(folder)
    sample = [text for _, texts in islice(captions, 256) for text in texts]
    image_bytes = int(np.prod(shape)) * (1 if space is None else 2)
    per_image = len(sample) / min(256, len(images))
    require_disk(root, len(images), image_bytes + int(per_image * states.bytes_of(sample)) + 400, str(folder))
    records = _records(images, captions, space, states, batch_size, device)
    empty = states.of([""])[0]
    manifest = write_set(folder, tracked(records, len(images), f"encode {name}"), wanted, empty, overwrite=overwrite)
    print(f"{folder}: {manifest.count:,} records, captions of at most {manifest.max_tokens} tokens")
    return manifest


def _records(
    images: RecordSet,
    captions: CaptionSet,
    space: LatentSpace | None,
    states: _States,
    batch_size: int,
    device: str,
) -> Iterator[Record]:
    for rows in batched(zip(images, captions, strict=True), batch_size):
        for image, (key, _) in rows:
            if image.metadata["key"] != key:
                raise ValueError(
                    f"{captions.path} has {key} where the images have {image.metadata['key']}: run t2ikit prepare "
                    "captions --overwrite"
                )
        pixels = np.stack([image.image for image, _ in rows])
        stored = pixels if space is None else _posteriors(space, pixels, device)
        if not np.isfinite(stored).all():
            bad = next(
                image.metadata["key"]
                for (image, _), one in zip(rows, stored, strict=True)
                if not np.isfinite(one).all()
            )
            raise ValueError(f"the posterior of {bad} does not fit float16: use another --autoencoder")
        tokens = iter(states.of([text for _, (_, texts) in rows for text in texts]))
        for (image, (_, texts)), one in zip(rows, stored, strict=True):
            yield Record(one, texts, tuple(islice(tokens, len(texts))), image.metadata)


def _posteriors(space: LatentSpace, pixels: np.ndarray, device: str) -> np.ndarray:
    """[B, 3, S, S] uint8 to [B, 2, C, h, w] float16."""
    mean, std = space.encode(torch.from_numpy(pixels).to(device))
    return torch.stack([mean, std], dim=1).to(torch.float16).cpu().numpy()
