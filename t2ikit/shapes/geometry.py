"""Outlines and textures of the embedded data set, as tests on points; shared by the renderer and the exact detector.

An object lives in its own frame: (u, v) = offset from its centre, turned back by its angle, in units of its radius; u
points right, v points down, and every outline reaches about from -1 to 1.

Shapes: ``u`` and ``v`` are float arrays of any one shape [...]; tests return bool [...].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

Test = Callable[[np.ndarray, np.ndarray], np.ndarray]

_FIFTH = 2 * np.pi / 5


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Folded to the half of one spike: inside is the origin's side of the line from the notch to the tip.
    radius, angle = np.hypot(u, v), np.arctan2(u, -v)
    folded = np.abs(np.mod(angle + _FIFTH / 2, _FIFTH) - _FIFTH / 2)
    tip, notch = 1.08, 0.46 * np.array([np.cos(_FIFTH / 2), np.sin(_FIFTH / 2)])
    x, y = radius * np.cos(folded), radius * np.sin(folded)
    return (x - tip) * notch[1] <= (notch[0] - tip) * y


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = 1.15 * u, 0.12 - 1.12 * v
    disc = x * x + y * y - 1
    return disc * disc * disc <= x * x * y * y * y  # products: ** on floats is forty times slower


def _arrow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    shaft = (np.abs(v) <= 0.3) & (u >= -1) & (u <= 0.1)
    return shaft | ((u >= 0) & (np.abs(v) <= 0.95 * (1 - u)))


OUTLINES: dict[str, Test] = {
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.88,
    "triangle": lambda u, v: (v <= 0.85) & (np.abs(u) <= (v + 1) / 1.85),
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) <= 0.34) & (np.maximum(np.abs(u), np.abs(v)) <= 1),
    "star": _star,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) <= 0.25,
    "diamond": lambda u, v: np.abs(u) / 0.68 + np.abs(v) / 1.05 <= 1,
    "heart": _heart,
    "crescent": lambda u, v: (u * u + v * v <= 1) & ((u - 0.5) ** 2 + v * v >= 0.72**2),
    "arrow": _arrow,
}
SHAPES = tuple(OUTLINES)

TEXTURES = ("plain", "striped", "dotted", "checked")
VARIANTS = {"plain": 1, "striped": 8, "dotted": 2, "checked": 2}
"""How many ways there are to lay each texture: phases, and for stripes also four directions."""

_STRIPES, _DOTS, _CHECKS = 0.84, 0.8, 0.6  # radii


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points [...] belong to ``shape``; bool [...]."""
    return OUTLINES[shape](u, v)


def marked(texture: str, variant: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points [...] carry the second colour of a texture; bool [...].

    Stripes have a period of 0.84 radii, in four directions; dots lie 0.8 radii apart; checks are 0.6 radii wide. The
    last bit of ``variant`` shifts the pattern by half a period.
    """
    shift, direction = 0.5 * (variant % 2), variant // 2
    if texture == "striped":
        along = (u, v, (u + v) * np.sqrt(0.5), (u - v) * np.sqrt(0.5))[direction]
        return np.mod(along / _STRIPES + shift, 1) < 0.45
    if texture == "dotted":
        return np.hypot(np.mod(u / _DOTS + shift, 1) - 0.5, np.mod(v / _DOTS + shift, 1) - 0.5) < 0.33
    if texture == "checked":
        odd = np.floor(u / _CHECKS + shift) + np.floor(v / _CHECKS)
        return np.mod(odd, 2) == 1
    return np.zeros(np.broadcast(u, v).shape, dtype=bool)


def local(x: np.ndarray, y: np.ndarray, angle: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The object's own coordinates (u, v) of offsets (x, y) from its centre; ``angle`` in radians, clockwise."""
    c, s = np.cos(angle) / radius, np.sin(angle) / radius
    return c * x + s * y, c * y - s * x


@dataclass(frozen=True)
class Moments:
    """Area and centroid (u, v) of an outline in its own frame."""

    area: float
    u: float
    v: float


@cache
def moments(shape: str) -> Moments:
    """Moments of an outline, by counting 800 x 800 points."""
    side = (np.arange(800) + 0.5) / 800 * 2.4 - 1.2
    u, v = np.meshgrid(side, side)
    found = inside(shape, u, v)
    return Moments(float(found.mean()) * 2.4**2, float(u[found].mean()), float(v[found].mean()))


def class_name(shape: str, texture: str) -> str:
    """The name of a class; a plain shape is named by its shape alone."""
    return shape if texture == "plain" else f"{texture} {shape}"


def class_id(shape: str, texture: str) -> int:
    """The number of a class, 0 .. 39; a plain shape has the same in both difficulties."""
    return TEXTURES.index(texture) * len(SHAPES) + SHAPES.index(shape)
