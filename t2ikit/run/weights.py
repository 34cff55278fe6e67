"""The pretrained weights that an experiment will load: which they are, whether they are here, and whether they work."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from t2ikit.classify.depth import DepthMaps
from t2ikit.config.errors import ConfigError
from t2ikit.data.datamodule import DataModule
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.encoders.text import TextEncoder, split_layer
from t2ikit.files import parse_json, write_whole
from t2ikit.metrics.base import Metric, Samples
from t2ikit.metrics.features.features import FeatureExtractor
from t2ikit.metrics.features.inception import WEIGHTS_URL
from t2ikit.metrics.features.networks import InceptionFeatures
from t2ikit.metrics.geneval.detector import Mask2FormerDetector
from t2ikit.metrics.questions.answers import QuestionAnswerer
from t2ikit.pretrained import EMBEDDED, cache_folder, find_cached, find_pretrained, sha256_of
from t2ikit.records.manifest import MANIFEST_NAME, Manifest
from t2ikit.run.experiment import USER_ERRORS, Plan

PROMPT = "a photo of a red circle above a blue square"
QUESTION = "Is there a red circle?"
AGREES = 1e-3
"""Largest difference between two outputs of one network, against the standard deviation of the numbers recorded."""

_NUMBERS = 16
"""Numbers of an output that are recorded, evenly spread over it."""

_NOT_SEARCHED = (nn.Parameter, Tensor, str, bytes, int, float, bool, Path, type, type(os), type(None))


@dataclass(frozen=True)
class Weights:
    """One thing that an experiment loads.

    Attributes:
        where: the part of the experiment that loads it.
        owner: the object that does; a name stands for a text encoder.
        name: repository of the Hub, local folder or local file; of a file that torch's hub keeps, its address.
        revision: of a repository.
        is_file: whether it is a file that the user brings.
    """

    where: str
    owner: Any
    name: str
    revision: str | None = None
    is_file: bool = False

    def here(self) -> Path | None:
        """Where it is on this machine; None where it must be brought first. Asks no network."""
        if self.name.startswith("https://"):
            path = Path(torch.hub.get_dir()) / "checkpoints" / self.name.rpartition("/")[2]
            return path if path.is_file() else None
        path = Path(self.name).expanduser()
        if self.is_file:
            return path if path.exists() else None
        return find_cached(split_layer(self.name)[0], self.revision)

    def sha256(self) -> str:
        """Of what is here, as a manifest or a fingerprint says it."""
        path = self.here()
        if path is not None and path.is_file():
            return sha256_of(path)
        return find_pretrained(split_layer(self.name)[0], self.revision, self.where).reference.sha256


def weights_of(plan: Plan, refused: list[str]) -> list[Weights]:
    """Whatever an experiment loads, each once; what does not depend on the data first.

    Args:
        plan: the experiment.
        refused: gets the message of every callback that cannot be built, such as one that lacks a file.

    Raises:
        ConfigError: the constructor of the model or of the data refuses its arguments.
    """
    with torch.device("meta"):
        model: LightningModule = plan.model.build(USER_ERRORS)
    data: LightningDataModule = plan.data.build(USER_ERRORS)
    entries = list(_text_encoders(data))
    roots: dict[str, Any] = {"model": model, "data": data}
    for name, component in plan.callbacks.items():
        try:
            roots[f"callbacks.{name}"] = component.build(USER_ERRORS)
        except ConfigError as error:
            refused.append(" ".join(str(error).split()))
    for where, root in roots.items():
        entries += _below(root, where, set())
    unique = {(entry.name, entry.revision): entry for entry in reversed(entries)}
    return [entry for entry in entries if unique[entry.name, entry.revision] is entry]


def _text_encoders(data: Any) -> Iterator[Weights]:
    """Those that made the prepared data; where it is not here, the one that the experiment names."""
    if not isinstance(data, DataModule):
        return
    folder = data.folder
    if isinstance(folder, Path):
        for path in (folder / "train", *(folder / "train" / name for name in data.bucket_names[:1])):
            if (path / MANIFEST_NAME).is_file():
                for reference in Manifest.read(path).text_encoders:
                    beside = folder / reference.name
                    name = str(beside) if beside.is_dir() else reference.name
                    yield Weights("data: text encoder", name, name, reference.revision)
                return
    if data.text_encoder is not None:
        yield Weights("data: text encoder", data.text_encoder, data.text_encoder)


def _below(owner: Any, where: str, seen: set[int]) -> Iterator[Weights]:
    """What an object and those that it holds load, found by their attributes: ``model`` beside ``revision``, ..."""
    if isinstance(owner, _NOT_SEARCHED) or id(owner) in seen or len(seen) > 20_000:
        return
    seen.add(id(owner))
    if isinstance(owner, dict | list | tuple | set | frozenset):
        for value in owner.values() if isinstance(owner, dict) else owner:
            yield from _below(value, where, seen)
        return
    attributes = getattr(owner, "__dict__", None)
    if attributes is None or type(owner).__module__.partition(".")[0] in ("torch", "lightning", "numpy"):
        below = attributes.get("_modules", {}) if isinstance(owner, nn.Module) and attributes else {}
        yield from _below(below, where, seen)
        return
    kind = f"{where}: {type(owner).__name__}"
    for attribute in ("model", "autoencoder"):
        if isinstance(attributes.get(attribute), str) and (attribute == "autoencoder" or "revision" in attributes):
            yield Weights(kind, owner, attributes[attribute], attributes.get("revision"))
    if isinstance(owner, InceptionFeatures) and owner.weights is None:
        yield Weights(kind, owner, WEIGHTS_URL)
    for attribute in ("weights", "med_config"):
        if isinstance(attributes.get(attribute), str):
            yield Weights(kind, owner, attributes[attribute], is_file=True)
    yield from _below(attributes, where, seen)


# ------------------------------------------------------------------ trying them


@dataclass(frozen=True)
class Trial:
    """What came of loading one network and computing a small output.

    Attributes:
        weights: which.
        state: "as recorded", "recorded now", "differs", "fails" or "not tried".
        said: numbers, an error message, or why it was not tried.
        sha256: of the weights; empty where they are not here.
    """

    weights: Weights
    state: str
    said: str
    sha256: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing is to be looked at."""
        return self.state not in ("differs", "fails")


def try_weights(weights: Weights, device: torch.device) -> Trial:
    """Loads a network and compares a small output of it with the one of its first trial, kept in the cache folder."""
    try:
        values = _output(weights, device)
        digest = weights.sha256()
    except Exception as error:  # every library raises its own
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Trial(weights, "fails", f"{type(error).__name__}: {line}")
    if values is None:
        return Trial(weights, "not tried", f"no trial is known for {type(weights.owner).__name__}", digest)
    record = {"sha256": digest, "output": values}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{type(weights.owner).__name__}-{weights.name}-{weights.revision or ''}")
    path = cache_folder() / "doctor" / f"{name.strip('-')[-150:]}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(record, indent=2) + "\n")
        return Trial(weights, "recorded now", _shown(values), digest)
    before: Mapping[str, Any] = parse_json(path.read_text())
    if before["sha256"] != digest:
        return Trial(weights, "differs", f"SHA-256 was {before['sha256'][:12]} at the first trial ({path})", digest)
    if not _alike(before["output"], values):
        said = f"{_shown(values)}; {_shown(before['output'])} at the first trial ({path})"
        return Trial(weights, "differs", said, digest)
    return Trial(weights, "as recorded", _shown(values), digest)


@torch.no_grad()
def _output(weights: Weights, device: torch.device) -> list[Any] | None:
    """Some numbers or words that a network gives for a fixed input; None where no trial is known for its class."""
    owner = weights.owner
    if isinstance(owner, str):
        encoder = TextEncoder.load(owner, weights.revision, device)
        return _numbers(encoder.encode_rows([PROMPT])[0].embeddings)
    if isinstance(owner, LatentSpace):
        owner.load()
        grid = torch.linspace(-1.0, 1.0, owner.channels * 64).view(1, owner.channels, 8, 8)
        return _numbers(owner.images(grid))
    images = _images(device)
    if isinstance(owner, FeatureExtractor):
        return _numbers(owner(images))
    if isinstance(owner, Mask2FormerDetector):
        return _numbers(owner.instances(images[0]).scores)
    if isinstance(owner, QuestionAnswerer):
        return list(owner.free_answers(images, [QUESTION] * len(images)))
    if isinstance(owner, DepthMaps):
        network, process = owner._load(device)
        return _numbers(network(**process(images[0].cpu().numpy())).predicted_depth)
    if isinstance(owner, Metric):
        samples = Samples(images.cpu(), [PROMPT] * len(images), [{}] * len(images), device=device)
        rows = owner.observe(samples.batch(0, len(images)))
        return _numbers(rows) if isinstance(rows, Tensor) else None
    if hasattr(owner, "images") and hasattr(owner, "texts"):
        return _numbers(torch.cat([owner.images(images), owner.texts([PROMPT], device)]))
    return None


def _images(device: torch.device) -> Tensor:
    """[2, 3, 256, 256] uint8: a red circle above a blue square on grey, and the same upside down."""
    axis = torch.arange(256)
    image = torch.full((3, 256, 256), 128, dtype=torch.uint8)
    circle = (axis[:, None] - 72).square() + (axis - 128).square() < 48**2
    square = ((axis[:, None] - 184).abs() < 40) & ((axis - 128).abs() < 40)
    for shape, color in ((circle, (220, 30, 30)), (square, (30, 30, 220))):
        image[:, shape] = torch.tensor(color, dtype=torch.uint8)[:, None]
    return torch.stack([image, image.flip(1)]).to(device)


def _numbers(tensor: Tensor) -> list[float]:
    flat = tensor.detach().flatten().double().cpu()
    index = torch.linspace(0, len(flat) - 1, min(_NUMBERS, len(flat))).long()
    values = [*flat[index].tolist(), float(flat.mean()), float(flat.std(correction=0))]
    if not all(map(math.isfinite, values)):
        raise ValueError("its output is not finite")
    return values


def _alike(before: list[Any], now: list[Any]) -> bool:
    if len(before) != len(now) or any(isinstance(value, str) for value in (*before, *now)):
        return before == now
    scale = max(before[-1], 1e-12)  # the standard deviation
    return max(abs(old - new) for old, new in zip(before, now, strict=True)) <= AGREES * scale


def _shown(values: list[Any]) -> str:
    if any(isinstance(value, str) for value in values):
        return ", ".join(map(str, values))
    return f"mean {values[-2]:.6g}, standard deviation {values[-1]:.6g}"


def is_embedded(weights: Weights) -> bool:
    """Whether it comes with the kit."""
    return weights.name.startswith(EMBEDDED)
