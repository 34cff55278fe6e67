"""Short prompts of the embedded data set lengthened into captions like those of its training.

A prompt of GenEval names a few facts; a long caption also names colours, places and the background. The missing facts
come from a random scene with as many objects, into which the objects that were asked for are put; so the caption is
in the words of the training captions, and an image of that scene fulfils the prompt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t2ikit.rng import derived_seed, permutation
from t2ikit.shapes.captions import long_caption
from t2ikit.shapes.scenes import COLORS_OF, Scene, SceneObject, scenes

_BLOCK = 64  # scenes that are looked through at once


@dataclass(frozen=True)
class _Asked:
    """The objects of one clause of a prompt: ``relation`` is that of the second clause to the first."""

    class_name: str
    count: int
    color: str | None
    relation: str | None


def extended_prompt(metadata: Mapping[str, Any], difficulty: str, seed: int, index: int) -> str:
    """A long caption of a scene that fulfils a prompt.

    Args:
        metadata: of the prompt, in GenEval's format: one clause, or two of one object each.
        difficulty: whose colours and backgrounds fill in.
        seed, index: which facts fill in; ``index`` is the number of the prompt.
    """
    return long_caption(extended_scene(metadata, difficulty, seed, index))


def extended_scene(metadata: Mapping[str, Any], difficulty: str, seed: int, index: int) -> Scene:
    """The scene that :func:`extended_prompt` describes; see there."""
    asked = [_asked(clause) for clause in metadata["include"]]
    own = derived_seed(seed, "shapes-extension", index)
    filled = next(scene for scene in _candidates(own, difficulty, asked) if _fits(scene, asked))
    colors = _colors(asked, difficulty, own)
    kinds = [(one.class_name, color) for one, color in zip(asked, colors, strict=True) for _ in range(one.count)]
    objects = tuple(
        replace(place, texture=texture or "plain", shape=shape, color=color, variant=0)
        for place, (name, color) in zip(filled.objects, kinds, strict=True)
        for texture, _, shape in [name.rpartition(" ")]
    )
    background = scenes(own, "val", 0, 1, difficulty)[0].background
    return replace(filled, objects=objects, background=background)


def _asked(clause: Mapping[str, Any]) -> _Asked:
    relation, _ = clause.get("position") or (None, 0)
    return _Asked(clause["class"], clause["count"], clause.get("color"), relation)


def _candidates(seed: int, difficulty: str, asked: Sequence[_Asked]) -> Iterator[Scene]:
    """Random scenes; of difficulty "full" where the prompt asks for more objects than the difficulty has."""
    several = len(asked) > 1 and difficulty != "imagenet" or asked[0].count > 1
    for first in itertools.count(0, _BLOCK):
        yield from scenes(seed, "val", first, _BLOCK, "full" if several else difficulty)


def _fits(scene: Scene, asked: Sequence[_Asked]) -> bool:
    """Whether a scene has as many objects of each kind, and the second lies to the first as asked, plainly so."""
    if scene.count != asked[0].count or len(scene.secondary) != sum(one.count for one in asked[1:]):
        return False
    if not all(_apart(first, second) for first, second in itertools.combinations(scene.objects, 2)):
        return False
    relation = asked[-1].relation
    if relation is None:
        return True
    dx, dy = scene.secondary[0].x - scene.main.x, scene.secondary[0].y - scene.main.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    return abs(along) > 2 * abs(across) and (along < 0) == (relation in ("left of", "above"))


def _apart(first: SceneObject, second: SceneObject) -> bool:
    """Whether two objects do not touch, whatever their outlines are, which reach 1.1 radii from the centre."""
    return math.hypot(first.x - second.x, first.y - second.y) > 0.55 * (first.diameter + second.diameter) + 0.01


def _colors(asked: Sequence[_Asked], difficulty: str, seed: int) -> list[str]:
    """The colour of each clause: the one asked for, or a random one that no other clause has."""
    known = [one.color for one in asked]
    names = COLORS_OF[difficulty]
    order = (names[int(number)] for number in permutation(seed, "shapes-extension-colors", 0, len(names)))
    free = (name for name in order if name not in known)
    return [next(free) if color is None else color for color in known]
