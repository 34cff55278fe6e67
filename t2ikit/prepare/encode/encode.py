"""Images and captions to the records of training, set by set and part by part; ``work.py`` computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from t2ikit.encoders.autoencoders import DEFAULT_AUTOENCODER, LatentSpace
from t2ikit.encoders.small_t5 import build_small_t5
from t2ikit.encoders.text import DEFAULT_TEXT_ENCODER, MAX_TOKENS, TextEncoder
from t2ikit.launch import first_rank
from t2ikit.prepare.captions.caption_file import CaptionSet
from t2ikit.prepare.captions.lines import CaptionLines
from t2ikit.prepare.encode.caption_encoder import CaptionEncoder, TextOptions
from t2ikit.prepare.encode.encoders import Encoders
from t2ikit.prepare.encode.work import EarlierPass, Encoding
from t2ikit.prepare.engine.engine import run_work
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.shards import Results
from t2ikit.prepare.images import IMAGES, image_sets
from t2ikit.prepare.sets import add_part, parts_done, shard_size_of, work_folder
from t2ikit.prepare.steps import identity, known_parts, part_ranges, require_disk, sha256_of_json, wait_for
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet

PIXELS = "pixels"
SMALL = "small"
TEXT_ENCODER_FOLDER = "text_encoder"
_OPTIONS = {
    "autoencoder": "--autoencoder",
    "kind": "--autoencoder",
    "image_shape": "the shape of the images (--autoencoder, or --size of prepare images)",
    "image_codec": "--picture-format of prepare images",
    "further": "--keep-picture, --picture-format",
    "text_encoders": "--text-encoder",
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


FIRST_DEVICE = Launch(devices=1, batch_size=32)
"""The first GPU, if there is one."""


def prepare_encode(
    out: str | Path,
    *,
    autoencoder: str = DEFAULT_AUTOENCODER,
    autoencoder_revision: str | None = None,
    text_encoder: str | Sequence[str] = (DEFAULT_TEXT_ENCODER,),
    text_encoder_revision: str | Sequence[str] = (),
    token_format: str = "int8",
    max_tokens: int = MAX_TOKENS,
    text_dim: int = 64,
    text_dtype: str = "float32",
    seed: int = 0,
    keep_picture: bool = False,
    picture_format: str = "png",
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
    if keep_picture and autoencoder == PIXELS:
        raise ValueError("--keep-picture keeps the picture beside latents; --autoencoder pixels stores it already")
    root = Path(out)
    names = [text_encoder] if isinstance(text_encoder, str) else list(text_encoder)
    revisions = _revisions(text_encoder_revision, names)
    captions = {name: _matching_captions(root, name) for name in image_sets(root)}
    texts = []
    for name, revision in zip(names, revisions, strict=True):
        if name == SMALL:
            _small_text_encoder(root, captions, text_dim, seed, overwrite)
            # Its name is relative to the data set, which may be moved.
            texts.append(CaptionEncoder(str(root / TEXT_ENCODER_FOLDER), None, options, TEXT_ENCODER_FOLDER))
        else:
            texts.append(CaptionEncoder(name, revision, options))
    space = None
    if autoencoder != PIXELS:
        space = LatentSpace(autoencoder, autoencoder_revision, channels=0, batch_size=launch.batch_size)
    encoders = Encoders(space, texts, options, launch.batch_size, picture_format if keep_picture else "")
    # What is wrong with the last set, or the disk, is found before the first one takes a day.
    plans = {name: _Plan.of(root, name, lines, encoders, overwrite) for name, lines in captions.items()}
    promised = 0.0
    for plan in plans.values():
        promised += plan.require_disk(root, encoders, promised)
    manifests = {name: plan.run(encoders, launch, shard_size, overwrite) for name, plan in plans.items()}
    for name, plan in plans.items() if first_rank() else ():
        if plan.done < len(plan.parts):
            for encoder in texts:
                count, first = encoder.cut((text for _, row in captions[name] for text in row), manifests[name])
                if count:
                    print(
                        f"{name}: {count:,} captions are longer than the {encoder.limit} tokens that {encoder.name} "
                        f"takes and are cut, first {first[:60]!r}"
                    )
    return manifests


def _revisions(given: str | Sequence[str], names: Sequence[str]) -> Sequence[str | None]:
    """The revision of every text encoder; refuses names that come twice, and another number of revisions."""
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--text-encoder needs names, each once; got {' '.join(names) or 'none'}")
    revisions = [given] if isinstance(given, str) else list(given)
    if revisions and len(revisions) != len(names):
        raise ValueError(
            f"--text-encoder-revision is given {len(revisions)} times and --text-encoder {len(names)} times: give a "
            "revision, such as main, for every text encoder, in their order"
        )
    return revisions or [None] * len(names)


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
        wait_for(folder)
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
    """

    folder: Path
    images: RecordSet
    lines: CaptionLines
    parts: Sequence[range]
    hashes: Sequence[str]
    wanted: Manifest
    done: int

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
        return cls(folder, images, lines, parts, hashes, wanted, done)

    def bytes_each(self, part: int, encoders: Encoders) -> float:
        """What a record of a part will take, by the captions of its first images.

        Of this part alone, whichever call asks: the size of its shards follows from it, and a later call continues
        them.
        """
        sample = self.parts[part][:_SAMPLED]
        texts = [text for index in sample for text in self.lines[index][1]]
        image_bytes = int(np.prod(self.wanted.image_shape)) * (1 if self.wanted.kind == "pixels" else 2)
        if encoders.picture:  # no more than this
            image_bytes += int(np.prod(self.images.manifest.image_shape))
        return image_bytes + encoders.bytes_of(texts) / max(len(sample), 1) + _METADATA_BYTES

    def require_disk(self, root: Path, encoders: Encoders, promised: float) -> float:
        """Bytes that are still to be written; says how many, and stops if there are fewer."""
        if self.done == len(self.parts):
            return 0.0
        left = sum(len(part) for part in self.parts[self.done :])
        bytes_each, begun = self.bytes_each(self.done, encoders), work_folder(self.folder, self.done)
        return require_disk(root, left, bytes_each, str(self.folder), begun, promised)

    def run(self, encoders: Encoders, launch: Launch, shard_size: int | None, overwrite: bool) -> Manifest:
        """Encodes what is missing."""
        if self.done == len(self.parts):
            print(f"{self.folder}: up to date")
            return Manifest.read(self.folder)
        for part in range(self.done, len(self.parts)):
            manifest = self._encode(part, encoders, launch, shard_size, overwrite)
            print(f"{self.folder}: {manifest.count:,} records, captions of at most {manifest.max_tokens} tokens")
        return manifest

    def _encode(
        self, part: int, encoders: Encoders, launch: Launch, shard_size: int | None, overwrite: bool
    ) -> Manifest:
        """Encodes a part: one pass after the other, so that a single text encoder is in memory."""
        size = shard_size_of(self.bytes_each(part, encoders), shard_size)

        def run_pass(encoder: str, earlier: list[EarlierPass] | None) -> Results:
            digest = sha256_of_json([self.hashes[part], encoders.identity, encoder, earlier is None])
            work = Encoding(self.images, self.lines, self.parts[part], encoders, encoder, digest, earlier)
            only = encoder if earlier is None else ""
            folder, label = work_folder(self.folder, part, only), f"encode {self.folder.name} {only}".strip()
            results = run_work(work, folder, launch, label, shard_size=size, overwrite=overwrite)
            encoders.finish(encoder)
            return results

        first, *others = encoders.names
        earlier = [run_pass(encoder, None) for encoder in others]
        results = run_pass(first, [EarlierPass(states.ledger) for states in earlier])
        longest = max(done.largest("longest") for done in (results, *earlier)) if results.chief else 0
        wanted = replace(self.wanted, max_tokens=longest)
        manifest = add_part(results, self.folder, part, wanted, self.hashes[part], encoders.empty_prompt)
        for states in earlier:
            states.discard()
        return manifest


def inputs_of(images: RecordSet, lines: CaptionLines) -> list[str]:
    """``source_sha256`` of every part of an encoded set: of the images so far, and of the captions of the part."""
    return [
        sha256_of_json([identity(images.manifest, index + 1), lines.sha256(records_of_part)])
        for index, records_of_part in enumerate(part_ranges(images.manifest))
    ]
