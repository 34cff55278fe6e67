"""The embedded data set as latents: its rendered sets beside what an autoencoder makes of their images.

    ROOT/images/val, train, train_<setting>, text_encoder    as rendered: pixels, captions and their states
    ROOT/val, train, train_<setting>, text_encoder           the same records, with the posterior in place of the pixels

The text encoder is the same one, unless ROOT has been given its own, whose states the records then hold.
So the layout is that of ``t2ikit prepare``, whose ``images/`` hold the pictures that generated ones are compared with.
Every set appears whole or not at all, and one that fits is kept.

Shapes: B images of a batch, [B, 3, S, S] uint8, to [B, 2, C, h, w] float16 posterior mean and standard deviation.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import torch
from tqdm import tqdm

from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.encoders.text import TextEncoder
from t2ikit.files import partial_of, publish, recover
from t2ikit.launch import cores
from t2ikit.prepare.steps import sha256_of_json, versions
from t2ikit.pretrained import EncoderReference, find_pretrained
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record, Stored, text_arrays
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set
from t2ikit.shapes.dataset import ENCODER_FOLDER

IMAGES = "images"
_BATCH = 64
_OPTION = "data.autoencoder"


def encode_shapes(root: Path, sets: Sequence[str], autoencoder: str, own_encoder: bool = False) -> None:
    """Encodes what is missing of the sets of ``root/images``.

    Args:
        root: folder of the encoded sets.
        sets: their names.
        autoencoder: a folder in the format of diffusers, a repository, or the name of an embedded one.
        own_encoder: ``root`` has a text encoder of its own, which encodes the captions anew; otherwise it gets that of
            the images, and the records keep their states.

    Raises:
        FileNotFoundError: there is no such autoencoder.
        ValueError: sides of the images that it cannot halve often enough.
    """
    _missing(root, sets, autoencoder, own_encoder).encode(Event())
    if not own_encoder:
        copy_text_encoder(root / IMAGES, root)


@contextmanager
def encoding_beside(root: Path, sets: Sequence[str], autoencoder: str, own_encoder: bool = False) -> Iterator[None]:
    """Encodes what is missing of the sets, without their text encoder, in threads beside the body of the block.

    Returns when both are done. A body that fails, or that Ctrl-C ends, ends the encoding after its batch.

    Raises:
        FileNotFoundError, ValueError: as `encode_shapes`.
    """
    work, stop = _missing(root, sets, autoencoder, own_encoder), Event()
    with ThreadPoolExecutor(1) as pool:
        encoded = pool.submit(work.encode, stop)
        try:
            yield
            encoded.result()
        except BaseException:
            stop.set()
            raise


@dataclass(frozen=True)
class _Missing:
    """Sets that are to be encoded: name, images, and the start of the manifest; ``space`` is loaded if there are any.

    ``encoder`` encodes their captions anew; None keeps the states of the images' records.
    """

    root: Path
    sets: Sequence[tuple[str, RecordSet, Manifest]]
    space: LatentSpace
    encoder: TextEncoder | None

    def encode(self, stop: Event) -> None:
        for name, images, wanted in self.sets:
            _encode(self.root / name, images, self.space, self.encoder, wanted, stop)


def _missing(root: Path, sets: Sequence[str], autoencoder: str, own_encoder: bool) -> _Missing:
    weights = find_pretrained(autoencoder, None, _OPTION).reference.sha256
    own = str((root / ENCODER_FOLDER).resolve())
    reference = find_pretrained(own, None, _OPTION, _TOKENIZER).reference if own_encoder else None
    missing = []
    for name in sets:
        images = RecordSet(root / IMAGES / name)
        digest = sha256_of_json([images.manifest.chunk_sha256, weights])
        wanted = replace(images.manifest, texts=_texts_of(images.manifest, reference), source_sha256=digest)
        if not _fits(root / name, wanted):
            missing.append((name, images, wanted))
    space = LatentSpace(autoencoder, channels=0, batch_size=_BATCH)
    encoder = None
    if missing:  # here, not in a thread: while one loads, no other thread may make a network
        space.load()
        encoder = TextEncoder.load(own) if own_encoder else None
    return _Missing(root, missing, space, encoder)


def _texts_of(images: Manifest, own: EncoderReference | None) -> dict[str, TextSource]:
    """The text encoder of the images' records, or that of the latents, of the same width."""
    if own is None:
        return images.texts
    reference = replace(own, name=ENCODER_FOLDER)
    return {name: replace(source, encoder=reference) for name, source in images.texts.items()}


def _fits(folder: Path, wanted: Manifest) -> bool:
    recover(folder)
    try:
        manifest = Manifest.read(folder)
    except (FileNotFoundError, ValueError):
        return False
    return manifest.source_sha256 == wanted.source_sha256 and manifest.text_encoders == wanted.text_encoders


def _encode(
    folder: Path, images: RecordSet, space: LatentSpace, encoder: TextEncoder | None, wanted: Manifest, stop: Event
) -> None:
    size = images.manifest.image_shape[-1]
    if size % space.downsampling:
        raise ValueError(
            f"data.size must be a multiple of {space.downsampling}, which is the factor of {space.autoencoder}; "
            f"got {size}"
        )
    side = size // space.downsampling
    manifest = replace(
        wanted,
        kind="latents",
        image_shape=(2, space.model.config.latent_channels, side, side),
        autoencoder=space.reference,
        autoencoder_dtype="float32",
        versions={**wanted.versions, **versions("diffusers")},
    )
    empty_prompt = images.empty_prompt
    if encoder is not None:
        empty = States(quantise_tokens(encoder.encode([""])[0]))
        empty_prompt = dict.fromkeys(empty_prompt, empty)
    with tqdm(total=len(images), desc=f"shapes: latents of {folder.name}", unit="image", mininterval=0.5) as bar:
        write_set(folder, _records(images, space, encoder, bar, stop), manifest, empty_prompt, overwrite=True)


def _records(
    images: RecordSet, space: LatentSpace, encoder: TextEncoder | None, bar: tqdm, stop: Event
) -> Iterator[Record]:
    (name,) = images.manifest.texts
    # One rank prepares while the others wait: their cores are free for it.
    workers = max(1, cores() // torch.get_num_threads())
    firsts = range(0, len(images), _BATCH)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(firsts), workers):
            if stop.is_set():
                raise CancelledError("the images that are drawn beside it failed")
            blocks = [
                [images[index] for index in range(first, min(first + _BATCH, len(images)))]
                for first in firsts[start : start + workers]
            ]
            for block, posteriors in zip(blocks, pool.map(partial(_posteriors, space), blocks), strict=True):
                texts = _texts(name, encoder, block)
                for record, posterior, states in zip(block, posteriors, texts, strict=True):
                    arrays = {**record.arrays, "image": posterior, **states}
                    yield Record(arrays, record.captions, record.metadata)
                bar.update(len(block))


def _texts(name: str, encoder: TextEncoder | None, block: Sequence[Record]) -> list[dict[str, Stored]]:
    """The states of the captions of each record, as arrays by name, where they are to be others; else nothing."""
    if encoder is None:
        return [{}] * len(block)
    captions = list(dict.fromkeys(caption for record in block for caption in record.captions))
    states = {text: States(quantise_tokens(row)) for text, row in zip(captions, encoder.encode(captions), strict=True)}
    return [text_arrays(name, [states[text] for text in record.captions]) for record in block]


def _posteriors(space: LatentSpace, block: Sequence[Record]) -> np.ndarray:
    """[B, 2, C, h, w] of the images of B records."""
    pixels = torch.from_numpy(np.stack([record.image for record in block]))
    return torch.stack(space.encode(pixels), dim=1).to(torch.float16).numpy()


def copy_text_encoder(rendered: Path, root: Path) -> None:
    """Copies the text encoder of ``rendered``, which the records of ``root`` name by its folder beside them."""
    source, target = rendered / ENCODER_FOLDER, root / ENCODER_FOLDER
    recover(target)
    if target.is_dir():
        wanted, present = (find_pretrained(str(path.resolve()), None, _OPTION, _TOKENIZER) for path in (source, target))
        if wanted.reference.sha256 == present.reference.sha256:
            return
    partial = partial_of(target)
    shutil.copytree(source, partial)
    publish(partial, target)


_TOKENIZER = ("tokenizer.json", "spiece.model")
