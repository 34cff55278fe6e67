"""Density and coverage of the sources of SynthReal among the real training photos, and the share of copies.

    OUT/features/KEY/00000000.npy    features of images 0 to 1,023 of a set, float32
    OUT/distribution/SOURCE-KEY.json the numbers of a source

A key stands for the images and the network, so what is there is used again, also by a call that goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from t2ikit import rng
from t2ikit.classify.pictures import Pictures, find
from t2ikit.classify.summary import Distribution
from t2ikit.files import parse_json, write_whole
from t2ikit.metrics.distribution.copies import share_of_copies
from t2ikit.metrics.distribution.precision_recall import PRESETS, prdc_preset
from t2ikit.metrics.features.features import FeatureExtractor
from t2ikit.metrics.features.stored import StoredFeatures
from t2ikit.run.synthreal import Benchmark, Source

PRESET = "synthreal"
LEAST = PRESETS[PRESET].k + 2


def distributions(
    benchmark: Benchmark, features: FeatureExtractor, device: torch.device, batch_size: int = 64
) -> dict[str, Distribution]:
    """The numbers of every source; those that are missing are computed.

    Args:
        benchmark: its sources.
        features: the network.
        device: where it runs.
        batch_size: images of one size at once.
    """
    real = benchmark.sources[0]
    network = json.dumps(features.fingerprint(), sort_keys=True)
    measured = {}
    with FileLock(_made(benchmark.out / "distribution") / ".lock"):  # a second process waits and finds what it needs
        for source in benchmark.sources[1:]:
            hashes = [benchmark.hashes[str(folder)] for folder in (real.train, source.train)]
            path = benchmark.out / "distribution" / f"{source.name}-{_key(network, *hashes)}.json"
            if not path.is_file():
                first, second = (_features(benchmark, entry, features, device, batch_size) for entry in (real, source))
                content = asdict(_measure(first, second, features, device))
                write_whole(path, json.dumps(content, indent=1) + "\n")
            measured[source.name] = Distribution(**parse_json(path.read_text(encoding="utf-8")))
    return measured


def _measure(real: Tensor, fake: Tensor, features: FeatureExtractor, device: torch.device) -> Distribution:
    """Both sets shuffled and cut to the smaller, as the paper's program does; copies are looked for in all of them."""
    count = min(len(real), len(fake))
    first, second = (
        rows[torch.from_numpy(rng.permutation(0, "synthreal distribution", 0, len(rows), stream)[:count].copy())].to(
            device
        )
        for stream, rows in enumerate((real, fake))
    )
    values = prdc_preset(first, second, PRESET)
    copies = share_of_copies(real.to(device), fake.to(device))
    sha256 = str(features.fingerprint()["features_sha256"])
    return Distribution(values["density"], values["coverage"], copies, count, features.name, sha256)


def _features(
    benchmark: Benchmark, source: Source, features: FeatureExtractor, device: torch.device, batch_size: int
) -> Tensor:
    """Features [N, D] float32 of the training images of a source."""
    pictures = find(str(source.train), benchmark.class_list, source.name)
    network = json.dumps(features.fingerprint(), sort_keys=True)
    folder = benchmark.out / "features" / _key(network, benchmark.hashes[str(source.train)])
    stored = StoredFeatures(
        folder,
        len(pictures),
        lambda rows, where: _of_chunk(pictures, rows, features, where, batch_size),
        f"features of {source.name}",
    )
    stored.fill(device)
    return torch.cat(list(stored.blocks()))


def _of_chunk(
    pictures: Pictures, indices: range, features: FeatureExtractor, device: torch.device, batch_size: int
) -> Tensor:
    rows = torch.empty(len(indices), features.dim)
    for batch in _of_one_size(pictures, indices, batch_size):
        images = torch.from_numpy(np.stack([image for _, image in batch])).to(device)
        rows[torch.tensor([index - indices.start for index, _ in batch])] = features(images).cpu()
    return rows


def _of_one_size(pictures: Pictures, indices: range, batch_size: int) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Batches of images of one size, with their indices."""
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for index in indices:
        image = pictures.read(index)
        batch = waiting.setdefault(image.shape, [])
        batch.append((index, image))
        if len(batch) == batch_size:
            yield waiting.pop(image.shape)
    yield from waiting.values()


def _key(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
