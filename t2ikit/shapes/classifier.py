"""A judge of the simple shapes that shares nothing with the exact detector: a small network trained on rendered scenes.

It learns outline and colour of the object at the first use, in a minute on a CPU core, and is kept in the cache. It is
what chooses in a test-time search on shapes, whose result the detector judges.

Shapes: B images of a batch, S classes, C colours.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from t2ikit import rng
from t2ikit.files import write_whole
from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.statistics import clustered_error, finite
from t2ikit.pretrained import cache_folder, state_sha256
from t2ikit.shapes.scenes import COLORS_OF, SHAPES_OF, render, scenes

CLASSES, COLORS = SHAPES_OF["simple"], COLORS_OF["simple"]
SIZE = 32
_SEED = 7919  # scenes that no data set of the documentation has
_BATCH = 64


class AskedProbability(Metric):
    """How probable a small network finds the object that the prompt asks for: p(outline) p(colour), in [0, 1].

    Asked is what the metadata say (GenEval's single "include" clause; class and colour of a record), else the one
    outline and the one colour that the prompt names. Where only one of the two is asked, it counts alone; where
    several are, or none, the image has no score.

    Attributes:
        count: rendered scenes of difficulty "simple" that it is trained on.
        epochs: how often it sees them.
        name: put before the score's name.
    """

    def __init__(self, count: int = 4096, epochs: int = 12, name: str | None = None) -> None:
        if count < _BATCH or epochs < 1:
            raise ValueError(f"AskedProbability: count is at least {_BATCH}, epochs at least 1; got {count}, {epochs}")
        self.count, self.epochs, self.name = count, epochs, name
        self.network: nn.Module | None = None

    def check(self, samples: Samples) -> None:
        """Refuses samples none of whose prompts asks for one object."""
        if not any(asked_object(*row) != (None, None) for row in zip(samples.prompts, samples.metadata, strict=True)):
            raise ValueError(
                f"AskedProbability: no prompt asks for one object, an outline of {', '.join(CLASSES)} or a colour of "
                f"{', '.join(COLORS)}"
            )

    @torch.no_grad()
    def observe(self, batch: SampleBatch) -> Rows:
        """[B] float64; NaN where the prompt asks for no single object."""
        logits = self._ready().to(batch.images.device)(prepared(batch.images)).double().cpu()
        outlines, colors = (part.softmax(dim=1) for part in logits.split([len(CLASSES), len(COLORS)], dim=1))
        values = torch.full((len(batch),), math.nan, dtype=torch.float64)
        for row, (prompt, metadata) in enumerate(zip(batch.prompts, batch.metadata, strict=True)):
            outline, color = asked_object(prompt, metadata)
            if outline is not None or color is not None:
                values[row] = 1.0
            if outline is not None:
                values[row] *= outlines[row, CLASSES.index(outline)]
            if color is not None:
                values[row] *= colors[row, COLORS.index(color)]
        return values

    def score(self, samples: Samples, rows: Rows) -> Result:
        """``asked_probability``, the mean over the images that have one; its error has prompts as clusters."""
        known = [(float(value), text) for value, text in zip(rows, samples.prompts, strict=True) if value == value]
        if not known:
            return Result({"asked_probability": math.nan})
        values, texts = zip(*known, strict=True)
        errors = finite({"asked_probability": clustered_error(values, texts)})
        return Result({"asked_probability": float(np.mean(values))}, errors)

    def fingerprint(self) -> dict[str, Any]:
        """The network and the hash of its weights, which a machine with other arithmetic trains differently."""
        digest = state_sha256(self._ready().state_dict())
        settings = {"count": self.count, "epochs": self.epochs}
        return {"features": "shapes-classifier-1", "features_sha256": digest, "metric": "asked_probability", **settings}

    def _ready(self) -> nn.Module:
        if self.network is None:
            with torch.inference_mode(False), torch.enable_grad():  # the first look may be in a snapshot
                self.network = _trained(self.count, self.epochs)
        return self.network


def asked_object(prompt: str, metadata: dict[str, Any]) -> tuple[str | None, str | None]:
    """Outline and colour that are asked for; None where none, or more than one, is."""
    clauses = metadata.get("include")
    if clauses is not None:
        alone = len(clauses) == 1 and clauses[0].get("count", 1) == 1
        outline, color = (clauses[0].get("class"), clauses[0].get("color")) if alone else (None, None)
    elif "class_name" in metadata:
        outline, color = metadata["class_name"], metadata.get("color")
    else:
        words = "".join(letter if letter.isalpha() else " " for letter in prompt.lower()).split()
        named = [[name for name in names if name in words] for names in (CLASSES, COLORS)]
        outline, color = (names[0] if len(names) == 1 else None for names in named)
    return outline if outline in CLASSES else None, color if color in COLORS else None


def prepared(images: Tensor) -> Tensor:
    """[B, 3, H, W] uint8 as float32 [B, 3, SIZE, SIZE] in [-1, 1]."""
    pixels = images.float() / 127.5 - 1.0
    return pixels if pixels.shape[-2:] == (SIZE, SIZE) else functional.adaptive_avg_pool2d(pixels, SIZE)


def _network() -> nn.Module:
    """[B, 3, SIZE, SIZE] to logits [B, S + C]; its first weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        layers: list[nn.Module] = []
        for before, after in ((3, 24), (24, 48), (48, 96)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        return nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(96 * 16, 128), nn.SiLU(), nn.Linear(128, len(CLASSES) + len(COLORS))
        )


def _trained(count: int, epochs: int) -> nn.Module:
    """The network, out of the cache or trained now and kept there."""
    network, path = _network(), cache_folder() / f"shapes-classifier-1-{count}-{epochs}.pt"
    if path.is_file():
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        _train(network, count, epochs)
        content = io.BytesIO()
        torch.save(network.state_dict(), content)
        write_whole(path, content.getvalue())
    return network.eval().requires_grad_(False)


def _train(network: nn.Module, count: int, epochs: int) -> None:
    """AdamW with a one-cycle rate on the cross-entropy of outline and of colour; the order of the scenes is keyed."""
    every = scenes(_SEED, "train", 0, count, "simple")
    bar = tqdm(every, desc="AskedProbability: scenes", leave=False, mininterval=1.0)
    images = torch.stack([torch.from_numpy(render(scene, SIZE)) for scene in bar])
    outlines = torch.tensor([CLASSES.index(scene.main.shape) for scene in every])
    colors = torch.tensor([COLORS.index(scene.main.color) for scene in every])
    batches = count // _BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
    for epoch in tqdm(range(epochs), desc="AskedProbability: training", unit="epoch", leave=False):
        order = torch.from_numpy(rng.permutation(_SEED, "shapes-classifier", epoch, count))
        for chosen in order[: batches * _BATCH].chunk(batches):
            outline_logits, color_logits = network(prepared(images[chosen])).split([len(CLASSES), len(COLORS)], dim=1)
            loss = functional.cross_entropy(outline_logits, outlines[chosen], label_smoothing=0.02)
            loss = loss + functional.cross_entropy(color_logits, colors[chosen], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
