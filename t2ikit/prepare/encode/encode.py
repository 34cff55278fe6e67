"""Images and captions to the records of training, set by set and part by part; ``work.py`` computes them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from t2ikit.encoders.autoencoders import DEFAULT_AUTOENCODER
from t2ikit.encoders.limits import cut_texts
from t2ikit.encoders.text import DEFAULT_TEXT_ENCODER, MAX_TOKENS, TextEncoder, build_small_t5
from t2ikit.launch import first_rank
from t2ikit.prepare.captions.caption_file import CaptionSet
from t2ikit.prepare.captions.lines import CaptionLines
from t2ikit.prepare.encode.encoders import Encoders, TextOptions
from t2ikit.prepare.encode.work import Encoding
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.images import IMAGES, image_sets
from t2ikit.prepare.sets import add_part, parts_done, run_part, shard_size_of, work_folder
from t2ikit.prepare.steps import identity, known_parts, part_ranges, require_disk, sha256_of_json
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet

PIXELS = "pixels"
SMALL = "small"
TEXT_ENCODER_FOLDER = "text_encoder"
_OPTIONS = {
    "autoencoder": "--autoencoder",
    "kind": "--autoencoder",
    "image_shape": "the shape of the images (--autoencoder, or --size of prepare images)",
    "text_encoder": "--text-encoder",
    "text_dim": "--text-encoder",
    "text_dtype": "--text-dtype",
    "token_format": "--token-format",
    "token_limit": "--max-tokens",
    "captions": "--name of prepare captions",
    "setting": "--setting of prepare cutmix",
}
_METADATA_BYTES = 400
_SAMPLED = 256
_REMEMBERED_CAPTIONS = 4096
_PATIENCE = 600.0


FIRST_DEVICE = Launch(devices=1, batch_size=32)
"""The first GPU, if there is one."""


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
    text_dtype: str = "float32",
    seed: int = 0,
    launch: Launch = FIRST_DEVICE,
    shard_size: int | None = None,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Encodes every image set of a data set with its captions.

    Images that were appended are encoded with their captions and put behind the others, which stay as they are.

    The arguments are the options of ``t2ikit prepare encode``; its ``--help`` explains them.

    Returns:
        The manifests, by name of the set.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is missing or wrong, and what to change.
    """
    options = TextOptions(token_format, max_tokens, text_dtype)
    root = Path(out)
    captions = {name: _matching_captions(root, name) for name in image_sets(root)}
    stored_as = None
    if text_encoder == SMALL:
        _small_text_encoder(root, captions, text_dim, seed, overwrite)
        text_encoder, text_encoder_revision = str(root / TEXT_ENCODER_FOLDER), None
        stored_as = TEXT_ENCODER_FOLDER  # relative to the data set, which may be moved
    encoders = Encoders(
        None if autoencoder == PIXELS else autoencoder,
        autoencoder_revision,
        text_encoder,
        text_encoder_revision,
        options,
        launch.batch_size,
        stored_as,
    )
    # What is wrong with the last set, or the disk, is found before the first one takes a day.
    plans = {name: _Plan.of(root, name, lines, encoders, overwrite) for name, lines in captions.items()}
    promised = 0.0
    for plan in plans.values():
        promised += plan.require_disk(root, promised)
    manifests = {name: plan.run(encoders, launch, shard_size, overwrite) for name, plan in plans.items()}
    for name, manifest in manifests.items() if first_rank() else ():
        if manifest.max_tokens == manifest.token_limit and plans[name].done < len(plans[name].parts):
            count, first = cut_texts(encoders.texts, (text for _, texts in captions[name] for text in texts))
            if count:
                print(f"{name}: {count:,} captions are longer than {max_tokens} tokens and cut, first {first[:60]!r}")
    return manifests


def _matching_captions(root: Path, name: str) -> CaptionSet:
    captions = CaptionSet(root, name)
    manifest = Manifest.read(root / IMAGES / name)
    known = known_parts(manifest, captions.header.images)
    again = f"run t2ikit prepare captions --out {root}"
    if not known:
        raise ValueError(f"{captions.path} belongs to other images than {root / IMAGES / name}: {again} --overwrite")
    if known < len(manifest.parts):
        raise ValueError(f"{captions.path} lacks the images that were appended to {root / IMAGES / name}: {again}")
    return captions


def _small_text_encoder(root: Path, captions: dict[str, CaptionSet], dim: int, seed: int, overwrite: bool) -> None:
    """Builds ``out/text_encoder`` for the words of all captions, or checks that the existing one knows them."""
    folder = root / TEXT_ENCODER_FOLDER
    if not first_rank():
        _wait_for(folder)
        return
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


def _wait_for(folder: Path) -> None:
    """The first rank builds it."""
    until = time.monotonic() + _PATIENCE
    while not folder.is_dir():
        if time.monotonic() > until:
            raise ValueError(f"{folder} was not built by the first process: --out must be shared by all machines")
        time.sleep(0.2)


def _texts(captions: dict[str, CaptionSet]) -> Iterator[str]:
    """Every caption, without most of the repetitions."""
    recent: dict[str, None] = {}
    for _, texts in chain.from_iterable(captions.values()):
        for text in texts:
            if text not in recent:
                if len(recent) == _REMEMBERED_CAPTIONS:
                    recent.clear()
                recent[text] = None
                yield text


@dataclass(frozen=True)
class _Plan:
    """One set, and which parts of it are missing.

    Attributes:
        folder: where it goes.
        images: its images.
        lines: its captions.
        parts: indices of the records of every part.
        hashes: of the inputs of every part.
        wanted: its description.
        done: how many parts are there.
        bytes_each: what a record will take; 0 where nothing is missing.
    """

    folder: Path
    images: RecordSet
    lines: CaptionLines
    parts: Sequence[range]
    hashes: Sequence[str]
    wanted: Manifest
    done: int
    bytes_each: float

    @classmethod
    def of(cls, root: Path, name: str, captions: CaptionSet, encoders: Encoders, overwrite: bool) -> _Plan:
        images, lines, folder = RecordSet(root / IMAGES / name), CaptionLines(captions.path), root / name
        if len(lines) != len(images):
            raise ValueError(
                f"{captions.path} has captions of {len(lines)} images, not of {len(images)}: run t2ikit prepare "
                "captions --overwrite"
            )
        parts, hashes = part_ranges(images.manifest), inputs_of(images, lines)
        wanted = encoders.manifest(images.manifest, captions.header)
        done = parts_done(folder, wanted, hashes, overwrite, _OPTIONS, lambda: "the images or captions differ")
        bytes_each = 0.0
        if done < len(parts):
            sample = range(parts[done].start, min(parts[done].start + _SAMPLED, parts[done].stop))
            texts = [text for index in sample for text in lines[index][1]]
            image_bytes = int(np.prod(wanted.image_shape)) * (1 if wanted.kind == "pixels" else 2)
            bytes_each = image_bytes + encoders.bytes_of(texts) / max(len(sample), 1) + _METADATA_BYTES
        return cls(folder, images, lines, parts, hashes, wanted, done, bytes_each)

    def require_disk(self, root: Path, promised: float) -> float:
        """Bytes that are still to be written; says how many, and stops if there are fewer."""
        if self.done == len(self.parts):
            return 0.0
        left = sum(len(part) for part in self.parts[self.done :])
        begun = work_folder(self.folder, self.done)
        return require_disk(root, left, self.bytes_each, str(self.folder), begun, promised)

    def run(self, encoders: Encoders, launch: Launch, shard_size: int | None, overwrite: bool) -> Manifest:
        """Encodes what is missing."""
        if self.done == len(self.parts):
            print(f"{self.folder}: up to date")
            return Manifest.read(self.folder)
        label, size = f"encode {self.folder.name}", shard_size_of(self.bytes_each, shard_size)
        for part in range(self.done, len(self.parts)):
            digest = sha256_of_json([self.hashes[part], encoders.identity])
            work = Encoding(self.images, self.lines, self.parts[part], encoders, digest)
            results = run_part(work, self.folder, part, launch, size, label, overwrite)
            manifest = add_part(results, self.folder, part, self.wanted, self.hashes[part], encoders.empty_prompt)
            print(f"{self.folder}: {manifest.count:,} records, captions of at most {manifest.max_tokens} tokens")
        return manifest


def inputs_of(images: RecordSet, lines: CaptionLines) -> list[str]:
    """``source_sha256`` of every part of an encoded set: of the images so far, and of the captions of the part."""
    return [
        sha256_of_json([identity(images.manifest, index + 1), lines.sha256(records_of_part)])
        for index, records_of_part in enumerate(part_ranges(images.manifest))
    ]
