"""Photos through an autoencoder and back, file by file: what of the gap of generated images is the autoencoder's.

    OUT/train/n01443537/n01443537_10026.png    one for each picture of the source, in the same folders
    OUT/reencode.json                          how they were made
    OUT/reencode_pictures.json                 their names, written before them: no other file is ever removed

A picture that is there is not made again, so a killed call goes on. Source: "When Pretty Isn't Useful", arXiv
2602.19946 (poster); its program writes JPEG of quality 75, so that its gap holds that of the compression as well: PNG
is the default here, and JPEG without an autoencoder is the control.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from t2ikit import rng
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.files import below, parse_json, recover, write_whole
from t2ikit.photos import SUFFIXES, BadImage, compress, decode
from t2ikit.prepare.reencode_options import NO_AUTOENCODER, Reencoding
from t2ikit.prepare.sources.files import LocalFiles
from t2ikit.prepare.sources.folder import files_below
from t2ikit.prepare.sources.left_out import LeftOut
from t2ikit.prepare.sources.paths import split_of_folder
from t2ikit.prepare.steps import versions

DESCRIPTION = "reencode.json"
PICTURES = "reencode_pictures.json"


def prepare_reencode(
    source: Path,
    out: Path,
    options: Reencoding,
    *,
    folders: Collection[str] | None = None,
    per_class: int | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 16,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Makes every picture below ``source`` again, where ``out`` does not have it.

    Args:
        source: a folder of pictures, class folders, or train and val of these.
        out: gets the same folders.
        options: how.
        folders: names of the class folders that are taken; None takes every picture.
        per_class: the first so many pictures of a folder, by name; None takes all.
        device: where the autoencoder runs.
        batch_size: pictures at once.
        overwrite: remove all pictures that earlier calls made in another way.

    Returns:
        What ``reencode.json`` holds.

    Raises:
        FileNotFoundError: no picture.
        ValueError: one that cannot be read, two of one name, or pictures in ``out`` that were made in another way, or
            not by this command.
    """
    pictures = _pictures(source, folders, per_class)
    none = options.autoencoder == NO_AUTOENCODER
    space = None if none else LatentSpace(options.autoencoder, options.revision, channels=0, batch_size=batch_size)
    if space is not None and options.size % space.downsampling:
        raise ValueError(
            f"--size {options.size} is no multiple of {space.downsampling}, as {options.autoencoder} needs"
        )
    targets = [out / name.with_suffix(options.suffix) for name in pictures]
    _refuse_doubles(pictures, targets)
    facts = {**asdict(options), "autoencoder_sha256": None if space is None else space.reference.sha256}
    made = _made_alike(out, facts, targets, overwrite)
    missing = [(name, target) for name, target in zip(pictures, targets, strict=True) if not target.exists()]
    made.update(str(target.relative_to(out)) for _, target in missing)
    write_whole(out / PICTURES, json.dumps(sorted(made)))
    write_whole(
        out / DESCRIPTION, json.dumps({**facts, "versions": versions("torch", "diffusers", "pillow")}, indent=2)
    )
    done = len(pictures) - len(missing)
    with tqdm(total=len(pictures), initial=done, desc="reencode", unit="img", mininterval=0.5) as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            images = torch.from_numpy(np.stack([_read(source / name, options.size) for name, _ in batch]))
            if space is not None:
                images = _through(space, images.to(device), [str(name) for name, _ in batch], options.sample)
            for image, (_, target) in zip(images.numpy(), batch, strict=True):
                recover(target)
                write_whole(target, _content(image, options))
            bar.update(len(batch))
    print(f"{out}: {len(pictures):,} pictures, {len(missing):,} of them new")
    return facts


def _pictures(source: Path, folders: Collection[str] | None, per_class: int | None) -> list[Path]:
    """Names of the pictures below ``source``, folder by folder."""
    if not source.is_dir():
        raise FileNotFoundError(f"no folder {source}: set --source")
    by_folder: dict[Path, list[Path]] = {}
    # As in `prepare images`, a class folder may be a link, right here or in the folder of a split.
    links = 2 if any(split_of_folder(path.name) for path in source.iterdir()) else 1
    for name in sorted(Path(path) for path, _ in files_below(LocalFiles(), str(source), "", LeftOut(), links)):
        if name.suffix.lower() in SUFFIXES and (folders is None or name.parent.name in folders):
            by_folder.setdefault(name.parent, []).append(name)
    pictures = [name for names in by_folder.values() for name in names[:per_class]]
    if not pictures:
        of_classes = "" if folders is None else " in folders of these classes"
        raise FileNotFoundError(f"no picture below {source}{of_classes}: set --source")
    return pictures


def _made_alike(out: Path, facts: dict[str, Any], targets: Sequence[Path], overwrite: bool) -> set[str]:
    """Names of the pictures that earlier calls made in the same way; removes others, or refuses them."""
    described, listed = out / DESCRIPTION, out / PICTURES
    made: set[str] = set(parse_json(listed.read_text(encoding="utf-8"))) if listed.is_file() else set()
    stored = parse_json(described.read_text(encoding="utf-8")) if described.is_file() else facts
    unlike = [key for key in facts if key not in ("autoencoder", "revision") and stored.get(key) != facts[key]]
    if not unlike:  # one autoencoder may have several names, but one hash
        return made
    if not overwrite:
        key = unlike[0]
        raise ValueError(
            f"{out} holds pictures of another {key} ({stored.get(key)}, now {facts[key]}): choose another --out, or "
            "give --overwrite"
        )
    for name in made:
        below(out, name).unlink(missing_ok=True)
    foreign = [target for target in targets if target.exists()]
    if foreign or not listed.is_file():
        shown = f", such as {foreign[0]}" if foreign else ""
        raise ValueError(
            f"{out} holds pictures{shown}, of which {listed} does not say that this command made them: move them "
            "away, or choose another --out"
        )
    return set()


def _refuse_doubles(names: Sequence[Path], targets: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for name, target in zip(names, targets, strict=True):
        if target in seen:
            raise ValueError(f"{seen[target]} and {name} would both become {target.name}: rename one of them")
        seen[target] = name


def _read(path: Path, size: int) -> np.ndarray:
    try:
        return decode(path.read_bytes(), size)
    except (BadImage, OSError) as error:
        raise ValueError(f"{path} is no whole picture ({error}): replace or remove it; what is done is kept") from error


def _through(space: LatentSpace, images: torch.Tensor, names: Sequence[str], sample: bool) -> torch.Tensor:
    """Images [B, 3, H, W] uint8 by the autoencoder and back, on the CPU."""
    mean, std = space.encode(images)
    if sample:
        keys = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") for name in names]
        noise = torch.cat([rng.normal(0, "reencode", key, 1, mean.shape[1:]) for key in keys])
        mean = mean + std * noise.to(mean.device)
    pixels = space.images(space.normalise(mean))
    return (pixels * 255).round().to(torch.uint8).cpu()


def _content(image: np.ndarray, options: Reencoding) -> bytes:
    if options.format == "png":
        return compress(image, "png")
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(stream, "JPEG", quality=options.quality)
    return stream.getvalue()
