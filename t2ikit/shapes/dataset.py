"""Builds the embedded data set on the disk: images, captions, a small T5 and its states, CutMix images.

What is there already and fits the request is kept, so a second call costs a few reads, and a call that was killed goes
on where it stood: every set, and the text encoder, appears whole or not at all.

Shapes: S the side of an image; L tokens, D width of the text states.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from t2ikit.augment import cutmix
from t2ikit.encoders.small_t5 import build_small_t5
from t2ikit.encoders.text import TextEncoder
from t2ikit.pretrained import EncoderReference, find_pretrained
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, Tokens, quantise_tokens
from t2ikit.records.writing import write_set
from t2ikit.shapes.captions import CAPTIONS, aio_caption, cutmix_caption, long_caption, vocabulary
from t2ikit.shapes.prompts import source_name
from t2ikit.shapes.scenes import DIFFICULTIES, SMALLEST_SIZE, Scene, render, scenes

ENCODER_FOLDER = "text_encoder"
_ENCODER = "t5"  # its name in the records
_TEXT_DIM = 64
_BLOCK = 256  # samples that are drawn, then encoded
_PASS = 64  # captions encoded in one pass of the text encoder
_REMEMBERED = 8192  # captions whose states are kept, for captions that come again
_MODULES = ("scenes", "captions", "geometry", "palette", "dataset")


@dataclass(frozen=True)
class Part:
    """One stored set: its folder's name, the split its scenes come from, how many, and the CutMix setting if any."""

    name: str
    split: str
    count: int
    setting: str | None


@dataclass(frozen=True)
class Request:
    """One data set, as it was asked for; see `build_shapes`."""

    size: int
    difficulty: str
    count: int
    val_count: int
    captions: str
    settings: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        checks = (
            ("size", self.size >= SMALLEST_SIZE, f"at least {SMALLEST_SIZE}"),
            ("difficulty", self.difficulty in DIFFICULTIES, " or ".join(DIFFICULTIES)),
            ("count", self.count >= 2, "at least 2"),
            ("val_count", self.val_count >= 1, "at least 1"),
            ("captions", self.captions in CAPTIONS, " or ".join(CAPTIONS)),
            ("settings", set(self.settings) <= set(cutmix.SETTINGS), f"some of {', '.join(cutmix.SETTINGS)}"),
        )
        for option, holds, wanted in checks:
            if not holds:
                raise ValueError(f"data.{option} must be {wanted}; got {getattr(self, option)!r}")

    def sets(self) -> list[Part]:
        """Every set, in the order in which they are built."""
        plain = [Part("val", "val", self.val_count, None), Part("train", "train", self.count, None)]
        settings = dict.fromkeys(self.settings)
        return plain + [Part(f"train_{setting}", "train", self.count, setting) for setting in settings]

    def digest(self, part: Part) -> str:
        """SHA-256 of all that decides the records of one set: what was asked for, and the code that draws it."""
        wanted = asdict(self) | asdict(part)
        del wanted["val_count"], wanted["settings"]
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode())
        for source in (*(Path(__file__).with_name(f"{module}.py") for module in _MODULES), Path(cutmix.__file__)):
            digest.update(source.read_bytes())
        return digest.hexdigest()


def build_shapes(
    root: str | os.PathLike[str],
    size: int = 16,
    difficulty: str = "simple",
    count: int = 20_000,
    val_count: int = 1_000,
    captions: str = "long",
    settings: Sequence[str] = ("cmall",),
    seed: int = 0,
) -> Path:
    """Builds what is missing of a data set.

    Args:
        root: folder that will hold val/, train/, train_<setting>/ and text_encoder/.
        size: S, at least 16 pixels.
        difficulty: "simple" or "full".
        count: training images, and images of every CutMix set.
        val_count: validation images.
        captions: "long" or "aio".
        settings: CutMix sets to build beside the images.
        seed: of the scenes.

    Returns:
        ``root``.

    Raises:
        ValueError: an option out of range, or a folder below ``root`` that holds another data set.
    """
    root = Path(root)
    request = Request(size, difficulty, count, val_count, captions, tuple(settings), seed)
    found = [(part, _present(root / part.name)) for part in request.sets()]
    reference = _present_encoder(root / ENCODER_FOLDER)
    if all(_fits(manifest, request.digest(part), reference) for part, manifest in found):
        return root
    folder = build_small_t5(root / ENCODER_FOLDER, vocabulary(difficulty), dim=_TEXT_DIM, overwrite=True)
    encoder = TextEncoder.load(str(folder))
    writer = _Writer(root, request, encoder, EncoderReference(ENCODER_FOLDER, None, encoder.reference.sha256))
    for part, manifest in found:
        if not _fits(manifest, request.digest(part), writer.reference):
            writer.write(part)
    return root


def _present(folder: Path) -> Manifest | None:
    """The manifest of a set that is there already; None if there is none, or one that cannot be read."""
    try:
        manifest = Manifest.read(folder)
    except FileNotFoundError:
        return None
    except ValueError:
        if "t2ikit shapes" not in (folder / "manifest.json").read_text(encoding="utf-8", errors="replace"):
            raise
        return None
    if manifest.source not in [source_name(difficulty) for difficulty in DIFFICULTIES]:
        raise ValueError(
            f"{folder} holds another data set (from {manifest.source}): "
            "give the shapes a folder of their own (data.root)"
        )
    return manifest


def _present_encoder(folder: Path) -> EncoderReference | None:
    try:
        return find_pretrained(str(folder.resolve()), None, "data.root", ("tokenizer.json", "spiece.model")).reference
    except (FileNotFoundError, ValueError):
        return None


def _fits(manifest: Manifest | None, digest: str, reference: EncoderReference | None) -> bool:
    if manifest is None or reference is None:
        return False
    encoders = [encoder.sha256 for encoder in manifest.text_encoders]
    return manifest.source_sha256 == digest and encoders == [reference.sha256]


class _Writer:
    """Writes the sets of one request."""

    def __init__(self, root: Path, request: Request, encoder: TextEncoder, reference: EncoderReference) -> None:
        self.root = root
        self.request = request
        self.encoder = encoder
        self.reference = reference
        self._states: dict[str, Tokens] = {}

    def write(self, part: Part) -> None:
        side = self.request.size
        manifest = Manifest(
            kind="pixels",
            image_shape=(3, side, side),
            texts={_ENCODER: TextSource(self.encoder.dim, self.reference)},
            captions=self.request.captions,
            setting=part.setting,
            source=source_name(self.request.difficulty),
            source_sha256=self.request.digest(part),
            versions={package: importlib.metadata.version(package) for package in ("numpy", "torch", "transformers")},
        )
        samples = self._images(part) if part.setting is None else self._mixes(part.setting)
        bar = tqdm(samples, total=part.count, desc=f"shapes: {part.name}", unit="image", mininterval=0.5)
        empty_prompt = {_ENCODER: States(quantise_tokens(self.encoder.encode([""])[0]))}
        write_set(self.root / part.name, self._records(bar), manifest, empty_prompt, overwrite=True)

    def _records(self, samples: Iterable[Record]) -> Iterator[Record]:
        """The samples with the states of their captions, encoded block by block."""
        block: list[Record] = []
        for sample in samples:
            block.append(sample)
            if len(block) == _BLOCK:
                yield from self._encoded(block)
                block = []
        yield from self._encoded(block)

    def _encoded(self, block: list[Record]) -> Iterator[Record]:
        new = [text for text in dict.fromkeys(sample.captions[0] for sample in block) if text not in self._states]
        if len(self._states) + len(new) > _REMEMBERED:
            self._states.clear()
            new = list(dict.fromkeys(sample.captions[0] for sample in block))
        new.sort(key=len)  # texts of one pass are padded to the longest
        for first in range(0, len(new), _PASS):
            part = new[first : first + _PASS]
            self._states.update(zip(part, map(quantise_tokens, self.encoder.encode(part)), strict=True))
        for sample in block:
            states = self._states[sample.captions[0]]
            yield Record({**sample.arrays, f"text.{_ENCODER}.0": states}, sample.captions, sample.metadata)

    def _images(self, part: Part) -> Iterator[Record]:
        for first in range(0, part.count, _BLOCK):
            count = min(_BLOCK, part.count - first)
            block = scenes(self.request.seed, part.split, first, count, self.request.difficulty)
            for index, scene in enumerate(block, start=first):
                text = long_caption(scene) if self.request.captions == "long" else aio_caption([scene.main.class_name])
                image = render(scene, self.request.size)
                yield Record({"image": image}, (text,), _facts(scene, part.split, index))

    def _mixes(self, setting: str) -> Iterator[Record]:
        """CutMix images of the training set, which has been written by now: its images are read, not drawn again."""
        size, seed = self.request.size, self.request.seed
        images = RecordSet(self.root / "train")
        every = scenes(seed, "train", 0, self.request.count, self.request.difficulty)
        for mix in cutmix.MixPlan([scene.class_id for scene in every], setting, size, seed):
            base, other = (
                torch.from_numpy(images.view(index).array("image").copy()) for index in (mix.base, mix.other)
            )
            scene, inserted = every[mix.base], every[mix.other]
            if self.request.captions == "long":
                text = cutmix_caption(scene, inserted, mix.rectangle, size, mix.setting)
            else:
                text = aio_caption([scene.main.class_name, inserted.main.class_name])
            facts = _facts(inserted, "train", mix.other)
            metadata = _facts(scene, "train", mix.base) | {
                "other_key": facts["key"],
                "other_class_id": facts["class_id"],
                "other_class_name": facts["class_name"],
                "other_color": facts["color"],
                "rectangle": list(mix.rectangle),
                "setting": mix.setting,
            }
            mixed = cutmix.compose(base, other, mix.rectangle, mix.setting)
            yield Record({"image": mixed.numpy()}, (text,), metadata)


def _facts(scene: Scene, split: str, index: int) -> dict[str, Any]:
    """Metadata of an image: its key, its class, and what the class name does not tell."""
    return {
        "key": f"{split}/{index:07d}",
        "class_id": scene.class_id,
        "class_name": scene.main.class_name,
        "color": scene.main.color,
        "count": scene.count,
        "others": [{"class": one.class_name, "color": one.color} for one in scene.secondary],
        "background": scene.background.color,
    }
