"""The embedded data set as pictures to train an autoencoder on, and the share of scenes that survive it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from t2ikit.prepare.steps import sha256_of_json
from t2ikit.shapes.detector import ShapesDetector
from t2ikit.shapes.scenes import Scene, render, scenes

SURE = 0.3
"""Least score of a detection that counts."""


class RenderedPictures:
    """Scenes that are rendered when they are asked for: no scene comes twice.

    Args:
        difficulty: "simple" or "full".
        side: of the pictures, at least 16.
        seed: of the scenes.
    """

    def __init__(self, difficulty: str, side: int, seed: int) -> None:
        self.difficulty, self.side, self.seed = difficulty, side, seed
        self.size = (side, side)
        self.identity = sha256_of_json(["shapes", difficulty, side, seed])

    def batch(self, first_slot: int, count: int) -> np.ndarray:
        """One scene a slot, [count, 3, S, S] uint8."""
        return self._render(scenes(self.seed, "train", first_slot, count, self.difficulty))

    def held_out(self, count: int) -> np.ndarray:
        """Scenes of the other split, [count, 3, S, S] uint8."""
        return self._render(scenes(self.seed, "val", 0, count, self.difficulty))

    def _render(self, chosen: list[Scene]) -> np.ndarray:
        return np.stack([render(scene, self.side) for scene in chosen])

    def score(self, images: np.ndarray, decoded: np.ndarray) -> dict[str, float]:
        """``scenes_right``, the share of held-out scenes all of whose objects the detector finds, with class and
        colour, and nothing else; ``scenes_right_before``, the same before encoding. Both [N, 3, S, S] uint8."""
        wanted = [
            Counter((one.class_name, one.color) for one in scene.objects)
            for scene in scenes(self.seed, "val", 0, len(images), self.difficulty)
        ]
        return {"scenes_right": _share(decoded, wanted), "scenes_right_before": _share(images, wanted)}


def _share(images: np.ndarray, wanted: list[Counter[tuple[str, str]]]) -> float:
    detector = ShapesDetector(SURE)
    right = [
        Counter((detection["class"], detection["color"]) for detection in detector(image)) == objects
        for image, objects in zip(images, wanted, strict=True)
    ]
    return float(np.mean(right))
