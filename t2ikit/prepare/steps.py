"""What the steps of ``t2ikit prepare`` share: hashes of sets, disk space, progress bars, versions, files of lines."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from t2ikit.files import recover, write_whole
from t2ikit.records.chunks import chunk_name
from t2ikit.records.manifest import Manifest

Item = TypeVar("Item")

_PATIENCE = 600.0  # seconds that one process waits for what another makes


def identity(manifest: Manifest, parts: int | None = None) -> str:
    """SHA-256 that stands for the records of a stored set, or of its first ``parts``: of its chunks."""
    chunks = sum(part.chunks for part in manifest.parts[:parts])
    return sha256_of_json({name: manifest.chunk_sha256[name] for name in map(chunk_name, range(chunks))})


def known_parts(manifest: Manifest, other: str) -> int:
    """How many parts of a set an ``identity`` stands for; 0 if it is that of another set."""
    return next((count for count in range(len(manifest.parts), 0, -1) if identity(manifest, count) == other), 0)


def part_ranges(manifest: Manifest) -> list[range]:
    """The records of every part of a set."""
    ends = list(accumulate(part.count for part in manifest.parts))
    return [range(end - part.count, end) for part, end in zip(manifest.parts, ends, strict=True)]


def sha256_of_json(value: Any) -> str:
    """SHA-256 of a value in JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_of(content: bytes) -> int:
    """64 bits that stand for some bytes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def require_disk(
    folder: Path, count: int, bytes_each: float, label: str, begun: Path | None = None, promised: float = 0.0
) -> float:
    """Prints how much disk a set will take, and stops if there is less.

    Args:
        folder: where it goes.
        count: images.
        bytes_each: of an image.
        label: of the set, for the message.
        begun: folder of the shards that an earlier call has written.
        promised: bytes that earlier sets of this call will take.

    Returns:
        Bytes that are still to be written.

    Raises:
        ValueError: too little disk; names ``--out``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = count * bytes_each, shutil.disk_usage(folder).free
    written = 0
    if begun is not None and begun.is_dir():
        written = sum(path.stat().st_size for path in begun.glob("*.bin"))
    left = max(free - promised, 0.0)
    print(f"{label}: {count:,} images, about {_size(needed)} on disk ({_size(left)} free)", flush=True)
    if needed - written > left:
        sets = f", {_size(promised)} of it for the sets before" if promised else ""
        raise ValueError(
            f"{label} needs about {_size(needed - written)}, but {folder} has {_size(free)} free{sets}: free some "
            "space, or choose another --out"
        )
    return max(needed - written, 0.0)


def wait_for(path: Path) -> None:
    """Waits until the first process has made a file or a folder.

    Raises:
        ValueError: it was not made; names ``--out``.
    """
    until = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > until:
            raise ValueError(f"{path} was not built by the first process: --out must be shared by all machines")
        time.sleep(0.2)


def tracked(items: Iterable[Item], total: int, label: str, unit: str = "img") -> Iterator[Item]:
    """The items behind a progress bar with rate and time left."""
    yield from tqdm(items, total=total, desc=label, unit=unit, smoothing=0.05, mininterval=0.5)


def versions(*packages: str) -> dict[str, str]:
    """Versions of the kit and of ``packages``, for a manifest."""
    by_package = {}
    for package in ("t2ikit", *packages):
        try:
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package


def write_lines(path: Path, lines: Iterable[str]) -> str:
    """Writes a text file, whole or not at all; its SHA-256."""
    recover(path)
    return write_whole(path, (line.encode() + b"\n" for line in lines))


def _size(count: float) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
