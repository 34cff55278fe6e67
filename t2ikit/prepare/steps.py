"""How a step of ``t2ikit prepare`` runs: once, in order, in constant memory, and whole or not at all.

A step describes what it would write by a manifest. If the folder holds just that, there is nothing to do; if it holds
something else, the step stops unless it may overwrite it. Interrupted steps leave nothing behind (``write_set`` writes
beside and renames).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from t2ikit.data.manifest import MANIFEST_NAME, Manifest
from t2ikit.files import write_whole

Item = TypeVar("Item")

_COMPARED = (
    "kind",
    "image_shape",
    "text_dim",
    "token_format",
    "text_encoder",
    "autoencoder",
    "captions",
    "setting",
    "source_sha256",
)


def up_to_date(folder: Path, wanted: Manifest, overwrite: bool, options: str) -> bool:
    """Whether ``folder`` already holds the set that a step would write.

    Args:
        folder: where the set goes.
        wanted: what would be written.
        overwrite: allows another set to be replaced.
        options: the options that decide the content, for the error message.

    Raises:
        FileExistsError: the folder holds another set (or none, but other files), and it may not be replaced.
    """
    remove_leftovers(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not (folder / MANIFEST_NAME).is_file():
        raise FileExistsError(f"{folder} holds files that are no prepared set: choose another --out")
    existing = Manifest.read(folder)
    unlike = [name for name in _COMPARED if _comparable(existing, name) != _comparable(wanted, name)]
    if unlike and not overwrite:
        raise FileExistsError(
            f"{folder} was made from other inputs ({', '.join(unlike)} differ): give the same {options} as then, "
            "choose another --out, or replace it with --overwrite"
        )
    return not unlike


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed call left beside ``folder``: partial sets whose process is gone."""
    for partial in folder.parent.glob(f".{folder.name}.*.partial"):
        process = partial.name.removeprefix(f".{folder.name}.").split("-")[0]
        if process.isdigit() and not _runs(int(process)):
            shutil.rmtree(partial, ignore_errors=True)


def identity(manifest: Manifest) -> str:
    """SHA-256 that stands for the records of a stored set: of its chunks, since LitData's index holds the time."""
    return sha256_of_json({name: digest for name, digest in manifest.chunk_sha256.items() if name.endswith(".bin")})


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value in JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def require_disk(folder: Path, count: int, bytes_each: int, label: str) -> None:
    """Says how much disk a set will take, and stops if there is less.

    Raises:
        ValueError: too little disk; names ``--out``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = count * bytes_each, shutil.disk_usage(folder).free
    print(f"{label}: {count:,} images, about {_size(needed)} on disk ({_size(free)} free)", flush=True)
    if needed > free:
        raise ValueError(
            f"{label} needs about {_size(needed)}, but {folder} has {_size(free)} free: choose another --out"
        )


def in_order(dataset: Dataset[Item], workers: int, batch: int = 16) -> Iterator[Item]:
    """The items of a map-style data set in order, made by ``workers`` processes (0 = this one), a few ahead."""
    loader: Iterable[list[Item]] = DataLoader(
        dataset,
        batch_size=batch,
        shuffle=False,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )
    for items in loader:
        yield from items


def tracked(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """The items behind a progress bar with rate and time left."""
    yield from tqdm(items, total=total, desc=label, unit="img", smoothing=0.05, mininterval=0.5)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items; the last one may be shorter."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def versions(*packages: str) -> dict[str, str]:
    """Versions of the kit and of ``packages``, for a manifest."""
    found = {}
    for package in ("t2ikit", *packages):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_lines(path: Path, lines: Iterable[str]) -> str:
    """Writes a text file, whole or not at all; its SHA-256."""
    return write_whole(path, (line.encode() + b"\n" for line in lines))


def _comparable(manifest: Manifest, name: str) -> Any:
    """Encoders are compared by their weights."""
    value = getattr(manifest, name)
    return value.sha256 if hasattr(value, "sha256") else value


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _size(count: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
