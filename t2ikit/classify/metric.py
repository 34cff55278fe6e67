"""SynthReal as a metric of a snapshot: two small classifiers, one trained on generated images and one on real ones.

Source: "When Pretty Isn't Useful", arXiv 2602.19946; the recipe here is a small one, whose scores are comparable with
each other only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from t2ikit import ranks, rng
from t2ikit.classify.networks import build_network
from t2ikit.classify.protocol import crop_logits, training_losses
from t2ikit.classify.views import View
from t2ikit.files import write_whole
from t2ikit.metrics.base import Metric, Result, Rows, Samples
from t2ikit.optim import AdamW, EpochCosine
from t2ikit.pretrained import cache_folder

_LABEL = "class_id"


@dataclass
class _Labelled:
    """Images as the networks take them: [N, 3, S, S] float32 before any crop, labels [N]."""

    images: Tensor
    labels: Tensor


@dataclass(eq=False)
class SynthReal(Metric):
    """How much the generated images teach a classifier, and how much one of real images finds in them.

    ``synth_real`` is the accuracy on real images of a network that saw generated ones alone, ``real_synth`` the
    reverse, ``real_real`` that of the second network on other real images, and ``ratio`` is synth_real / real_real.
    Prompts and reference records must hold ``class_id``. Everything is trained on the first rank; the training of the
    run is not touched, and the network of the real images is kept by what it depends on.

    Attributes:
        per_class: images of every class that a network is trained on.
        test_per_class: images of every class that it is tested on.
        classes: only the first so many classes of the prompts, by their number; None takes all.
        size: pixels a side of what a network sees.
        network: its name, one of ``t2ikit.classify.networks.NETWORKS``.
        epochs: of a training.
        batch: images of a step.
        lr: learning rate of Adam.
        cutmix: on every batch.
        seed: of weights, order and augmentation.

    Raises:
        ValueError: a value out of range.
    """

    per_class: int = 50
    test_per_class: int = 50
    classes: int | None = 20
    size: int = 64
    network: str = "resnet18"
    epochs: int = 20
    batch: int = 64
    lr: float = 1e-3
    cutmix: bool = False
    seed: int = 0
    name: str | None = None
    _real: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        least = {"per_class": 2, "test_per_class": 1, "classes": 2, "epochs": 1, "batch": 2}
        for option, smallest in least.items():
            value = getattr(self, option)
            if value is not None and value < smallest:
                raise ValueError(f"SynthReal: {option} must be at least {smallest}, got {value}")
        with torch.device("meta"):
            build_network(self.network, 2, self.size)

    @cached_property
    def view(self) -> View:
        """How an image is shown."""
        return View("rgb", self.size, augmentation="light")

    def check(self, samples: Samples) -> None:
        """Refuses prompts and records without classes, or too few images of one.

        Raises:
            ValueError: names the class and the options.
        """
        if samples.reference is None:
            raise ValueError("SynthReal needs real images: set `reference` of the snapshot to a split of the data")
        self._rows(samples)

    def score(self, samples: Samples, rows: Rows) -> Result:
        """Trains and tests both networks."""
        assert samples.reference is not None
        synth_rows, real_rows = self._rows(samples)
        with _isolated(samples.device):
            synth, synth_test = self._labelled(samples, synth_rows)
            real, real_test = self._labelled(samples.reference, real_rows)
            of_synth = self._trained(synth, len(synth_rows), samples.device, "generated")
            of_real = self._real_network(real, len(real_rows), samples.device)
            values = {
                "synth_real": self._accuracy(of_synth, real_test, samples.device),
                "real_synth": self._accuracy(of_real, synth_test, samples.device),
                "real_real": self._accuracy(of_real, real_test, samples.device),
            }
        errors = {name: math.sqrt(p * (1 - p) / (len(real_rows) * self.test_per_class)) for name, p in values.items()}
        if values["real_real"] == 0:
            raise ValueError("SynthReal: the network of the real images finds none of them: raise per_class or epochs")
        return Result({**values, "ratio": values["synth_real"] / values["real_real"]}, errors)

    def fingerprint(self) -> dict[str, Any]:
        """The settings of the trainings."""
        return dict(self._settings())

    # ------------------------------------------------------------------ images

    def _rows(self, samples: Samples) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For every class, the indices of its generated and of its real images; as many as are used.

        Raises:
            ValueError: see :meth:`check`.
        """
        assert samples.reference is not None
        needed = self.per_class + self.test_per_class
        of_sets = []
        for seen, what in ((samples, "the prompts"), (samples.reference, "the records of the reference")):
            numbers = [entry.get(_LABEL) for entry in seen.metadata]
            if not numbers or None in numbers:
                raise ValueError(
                    f"SynthReal: {what} have no {_LABEL}: take prompts of classes (ClassPrompts, or CaptionPrompts of "
                    "a set that was prepared from class folders) and such a set as reference"
                )
            of_sets.append(np.array(numbers))
        classes = np.unique(of_sets[0])[: self.classes]
        if len(classes) < 2:
            raise ValueError("SynthReal: the prompts are of one class: at least two are needed")
        chosen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        remedies = ("more prompts of each class", "a larger reference_limit or split")
        for labels, rows, what, remedy in zip(of_sets, chosen, ("generated", "real"), remedies, strict=True):
            for number in classes:
                of_class = np.flatnonzero(labels == number)
                if len(of_class) < needed:
                    raise ValueError(
                        f"SynthReal: class {number} has {len(of_class)} {what} images, and per_class + test_per_class "
                        f"are {needed}: give {remedy}, or lower them"
                    )
                rows.append(of_class[:needed])
        return chosen

    def _labelled(self, samples: Samples, rows: Sequence[np.ndarray]) -> tuple[_Labelled, _Labelled]:
        """The images to train on, and those to test on."""
        parts = []
        for taken in (slice(0, self.per_class), slice(self.per_class, None)):
            index = np.concatenate([of_class[taken] for of_class in rows])
            labels = np.repeat(np.arange(len(rows)), [len(of_class[taken]) for of_class in rows])
            images = torch.stack([self._brought(samples.images[int(row)].numpy()) for row in index])
            parts.append(_Labelled(images, torch.from_numpy(labels)))
        return parts[0], parts[1]

    def _brought(self, image: np.ndarray) -> Tensor:
        """To S pixels, so that all fit into the memory."""
        return v2.functional.resize(self.view.prepare(image), [self.size, self.size], antialias=True)

    # ------------------------------------------------------------------ trainings

    def _trained(self, train: _Labelled, classes: int, device: torch.device, what: str) -> nn.Module:
        """A network of these images; a function of them and the settings."""
        torch.manual_seed(rng.derived_seed(self.seed, "synthreal weights"))
        network = build_network(self.network, classes, self.size).to(device).train()
        mix = v2.CutMix(num_classes=classes) if self.cutmix else None
        optimizer = AdamW(self.lr, (0.9, 0.999), 1e-8, 0.0).build(network)
        steps, rule, step = math.ceil(len(train.labels) / self.batch), EpochCosine(self.epochs, min(5, self.epochs)), 0
        shown = tqdm(range(self.epochs), desc=f"{self.title}, {what}", unit="epoch", leave=False, mininterval=1.0)
        for epoch in shown:
            order = rng.permutation(self.seed, "synthreal order", epoch, len(train.labels))
            for rows in np.array_split(order, steps):  # of equal sizes, so that the last one is not a single image
                ranks.stop_if_asked()
                step += 1
                for group in optimizer.param_groups:
                    group["lr"] = self.lr * rule.factor(step, self.epochs * steps)
                seeds = [rng.key(self.seed, "synthreal view", epoch, int(row)) >> 65 for row in rows]
                images = torch.stack(
                    [self.view.train(train.images[row], seed) for row, seed in zip(rows.tolist(), seeds, strict=True)]
                ).to(device)
                labels = train.labels[torch.from_numpy(rows)].to(device)
                seed = rng.derived_seed(self.seed, "synthreal step", step)
                optimizer.zero_grad()
                training_losses(network, mix, images, labels, seed).mean().backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
        return network.eval()

    def _real_network(self, train: _Labelled, classes: int, device: torch.device) -> nn.Module:
        """The network of the real images: out of memory, out of the user's cache, or trained."""
        known = {
            "settings": self._settings(),
            "images": hashlib.sha256(train.images.numpy().tobytes()).hexdigest(),
            "labels": train.labels.tolist(),
            "device": device.type,
            "torch": torch.__version__,
        }
        key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        path = cache_folder() / "classify" / f"real-{key[:32]}.safetensors"
        if key not in self._real:
            with suppress(OSError, SafetensorError):
                self._real[key] = safetensors.torch.load(path.read_bytes())
        if key not in self._real:
            state = self._trained(train, classes, device, "real").state_dict()
            self._real[key] = {name: value.detach().cpu().contiguous() for name, value in state.items()}
            with suppress(OSError):  # a cache that cannot be written: it is trained again
                write_whole(path, safetensors.torch.save(self._real[key]))
        network = build_network(self.network, classes, self.size)
        network.load_state_dict(self._real[key])
        return network.to(device).eval()

    @torch.no_grad()
    def _accuracy(self, network: nn.Module, test: _Labelled, device: torch.device) -> float:
        correct = 0
        for start in range(0, len(test.labels), self.batch):
            rows = slice(start, start + self.batch)
            images = torch.stack([self.view.test(image, 0) for image in test.images[rows]]).to(device)
            correct += int((crop_logits(network, images).argmax(1).cpu() == test.labels[rows]).sum())
        return correct / len(test.labels)

    def _settings(self) -> Mapping[str, Any]:
        settings = {item.name: getattr(self, item.name) for item in fields(self) if item.init and item.name != "name"}
        return {**settings, "view": asdict(self.view)}


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    """Gradients are on and products whole inside the block; the random state of torch is as it was after it."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
