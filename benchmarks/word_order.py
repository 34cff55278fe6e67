"""Word order: whether the states of a noun say which texture stands before it: ``python -m benchmarks word_order``.

A linear map is fitted to the states of the nouns in three quarters of the captions of full scenes, and asked about the
rest; for the small T5 with random weights, and for the one whose heads look at neighbouring words.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.base import Benchmark, Measurement, Settings
from t2ikit.encoders.small_t5 import build_small_t5
from t2ikit.encoders.text import TextEncoder
from t2ikit.shapes.captions import long_caption, vocabulary
from t2ikit.shapes.scenes import SHAPES, TEXTURES, scenes

_RIDGE = 1e-3


def _measure(settings: Settings) -> Iterator[Measurement]:
    captions = [long_caption(scene) for scene in scenes(0, "train", 0, 64 if settings.small else 3000, "full")]
    for word_order in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            built = build_small_t5(Path(folder) / "t5", vocabulary("full"), word_order=word_order)
            states, textures = nouns(TextEncoder.load(str(built)), captions)
        right, commonest = probe(states, textures)
        name = "heads that look at neighbouring words" if word_order else "random weights alone"
        yield Measurement(
            f"texture of a noun by its state, {name}", right, "", "always the commonest texture", commonest
        )


def nouns(encoder: TextEncoder, captions: list[str]) -> tuple[Tensor, Tensor]:
    """The states [N, D] of every noun, in float64, and the texture [N] that the word before it names, or "plain"."""
    states, textures = [], []
    for caption, row in zip(captions, encoder.encode(captions), strict=True):
        words = encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer(caption).input_ids)
        for place, word in enumerate(words):
            if word in SHAPES and place > 0:
                before = words[place - 1]
                textures.append(TEXTURES.index(before if before in TEXTURES else "plain"))
                states.append(row[place])
    return torch.stack(states).double(), torch.tensor(textures)


def probe(states: Tensor, classes: Tensor) -> tuple[float, float]:
    """Share of the last quarter that a linear map of the other three finds, and share of the commonest class there."""
    first = len(states) * 3 // 4
    x = torch.cat([states, torch.ones(len(states), 1)], dim=1)
    known, target = x[:first], torch.nn.functional.one_hot(classes[:first]).double()
    weights = torch.linalg.solve(known.T @ known + _RIDGE * torch.eye(x.shape[1]), known.T @ target)
    asked = classes[first:]
    right = ((x[first:] @ weights).argmax(1) == asked).double().mean()
    commonest = (asked == classes[:first].bincount().argmax()).double().mean()
    return float(right), float(commonest)


BENCHMARKS = [
    Benchmark("word_order", "whether text states of the shapes say which adjective belongs to a noun", _measure),
]
