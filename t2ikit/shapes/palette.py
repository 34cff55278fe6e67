"""Colours of the embedded data set, by name: (red, green, blue) in grey levels, 0 .. 255."""

from __future__ import annotations

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (35, 155, 60),
    "blue": (40, 80, 225),
    "purple": (125, 35, 165),
    "pink": (250, 125, 190),
    "brown": (115, 65, 30),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
}
"""GenEval's ten colours."""

MARKS = {
    "red": "yellow",
    "orange": "black",
    "yellow": "white",
    "green": "yellow",
    "blue": "red",
    "purple": "pink",
    "pink": "white",
    "brown": "yellow",
    "black": "red",
    "white": "orange",
}
"""The second colour of a textured object, by its first: no pair twice, no mixture of a pair that is a background."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (140, 140, 142),
    "beige": (205, 188, 150),
    "mint": (160, 205, 172),
    "lavender": (172, 162, 208),
    "slate": (92, 110, 128),
    "teal": (85, 148, 150),
    "olive": (128, 132, 84),
    "tan": (184, 156, 122),
}
"""Muted colours, each far from all ten of the objects."""
