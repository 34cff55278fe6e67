"""Captions of the embedded data set at two levels.

"aio" captions name the class and nothing else ("An image of a striped circle"). "long" captions are like those of a
captioning model: the same facts (colour, number, texture, place, further objects, background) in many wordings. Which
wording, and which of the optional facts, is drawn with the scene.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from t2ikit.shapes.palette import BACKGROUNDS, COLORS, MARKS
from t2ikit.shapes.scenes import COLORS_OF, SHAPES_OF, TEXTURES_OF, Scene, SceneObject

CAPTIONS = ("long", "aio")
NUMBERS = ("no", "one", "two", "three", "four")

_OPENINGS = (
    "a photo of",
    "an image of",
    "a picture of",
    "a drawing of",
    "this is",
    "here is",
    "we see",
    "the image shows",
    "the picture shows",
    "the scene contains",
)
_SEEN = (("is seen", "are seen"), ("sits", "sit"), ("is placed", "are placed"), ("appears", "appear"), ("lies", "lie"))
_INSETS = ("a second picture shows", "an inset shows", "another image shows", "a smaller scene shows")
_EMPTY = ("nothing but", "only", "just")
_MARK_NAMES = {"striped": "stripes", "dotted": "dots", "checked": "checks"}
_PLACES = (
    ("in the upper left", "near the top", "in the upper right"),
    ("on the left side", "in the centre", "on the right side"),
    ("in the lower left", "near the bottom", "in the lower right"),
)
_CONNECTIVES = (
    "on a an and there is are also the it behind has background fading into to with of above below left right plain"
    " noisy side by one over other spread the image in the right lower half , ."
)
_VISIBLE = 0.4  # share of an object's box that must be seen for the caption to speak of it


class _Words:
    """Chooses wordings with the numbers that were drawn with the scene."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = itertools.cycle(numbers)

    def one(self, options: Sequence[str]) -> str:
        return options[int(next(self._numbers) * len(options))]

    def chance(self, probability: float) -> bool:
        return next(self._numbers) < probability


def aio_caption(class_names: Sequence[str]) -> str:
    """The class as a sentence; several classes (CutMix) are joined by "and"."""
    return "An image of " + " and ".join(with_article(name) for name in class_names)


def long_caption(scene: Scene, opening: str | None = None) -> str:
    """One to four sentences on a scene.

    Args:
        scene: what to describe; without objects, its background is.
        opening: how the caption begins, such as "an inset shows"; by default drawn.
    """
    words = _Words(scene.wording)
    form = words.one("abcd") if opening is None else "a"
    opening = opening or words.one(_OPENINGS)
    behind = _background(scene, words)
    if not scene.objects:
        return _sentence(f"{opening} {words.one(_EMPTY)} {behind}")
    many = scene.count > 1
    main, place = _group(scene.objects[: scene.count], words), _arrangement(scene, words)
    others = list(scene.secondary)
    if form == "a" and others and words.chance(0.7):
        first = others.pop(0)
        sentences = [f"{opening} {main} and {_group([first], words)}", *_relation(scene, first, words)]
    elif form == "b":
        verb = words.one([forms[many] for forms in _SEEN])
        sentences = [f"{main} {verb} {place}"]
    elif form == "c":
        sentences = [f"on {behind} there {'are' if many else 'is'} {main} {place}"]
    elif form == "d":
        sentences = [f"{opening} {main} on {behind}"]
    else:
        sentences = [f"{opening} {main} {place}"]
    for other in others:
        noun = _group([other], words)
        sentences += _relation(scene, other, words, noun) or [f"there is also {noun} {_place(other.x, other.y)}"]
    if form not in "cd":
        them = "them" if len(scene.objects) > 1 else "it"
        sentences.append(f"{words.one((f'behind {them} is', 'the image has'))} {behind}")
    return " ".join(_sentence(sentence) for sentence in sentences)


def cutmix_caption(base: Scene, other: Scene, rectangle: Sequence[int], size: int, setting: str) -> str:
    """A long caption of a CutMix image: what is left of the base scene, then where the insert is and what it shows.

    Args:
        base: scene of the base image.
        other: scene of the insert.
        rectangle: half-open (x0, y0, x1, y1), pixels.
        size: side of the image, pixels.
        setting: "cm2" shows a part of the other image, the other settings all of it.
    """
    x0, y0, x1, y1 = (side / size for side in rectangle)
    words = _Words(base.wording[::-1])
    if setting == "cm2":
        other = visible(other, (x0, y0, x1, y1), inside=True)
        where = "in the right half" if rectangle[0] > 0 else "in the lower half"
    else:
        where = _place((x0 + x1) / 2, (y0 + y1) / 2)
    left = long_caption(visible(base, (x0, y0, x1, y1), inside=False))
    return f"{left} {long_caption(other, f'{where} {words.one(_INSETS)}')}"


def visible(scene: Scene, window: Sequence[float], inside: bool) -> Scene:
    """The scene with only the objects that are seen inside (or outside) of a window (x0, y0, x1, y1) in [0, 1]."""

    def seen(one: SceneObject) -> bool:
        half = one.diameter / 2
        width = min(one.x + half, window[2]) - max(one.x - half, window[0])
        height = min(one.y + half, window[3]) - max(one.y - half, window[1])
        share = max(width, 0.0) * max(height, 0.0) / one.diameter**2
        return (share if inside else 1 - share) >= _VISIBLE

    main = [one for one in scene.objects[: scene.count] if seen(one)]
    others = [one for one in scene.secondary if seen(one)]
    return replace(scene, objects=(*main, *others), count=len(main) or min(len(others), 1))


def vocabulary(difficulty: str) -> list[str]:
    """Texts that hold every word of every caption and prompt of a difficulty, whatever the seed and the count."""
    nouns = [form for shape in SHAPES_OF[difficulty] for form in (shape, plural(shape))]
    textures = [word for name in TEXTURES_OF[difficulty] for word in (name, _MARK_NAMES.get(name, name))]
    colors = COLORS if len(TEXTURES_OF[difficulty]) > 1 else COLORS_OF[difficulty]
    verbs = itertools.chain(*_SEEN)
    phrases = [*_OPENINGS, *_INSETS, *_EMPTY, *itertools.chain(*_PLACES), _CONNECTIVES, "large small them"]
    return [*phrases, *verbs, *NUMBERS, *nouns, *textures, *colors, *BACKGROUNDS]


def plural(name: str) -> str:
    """More than one of a class: "crosses", "striped circles"."""
    return f"{name}es" if name.endswith("s") else f"{name}s"


def with_article(noun: str) -> str:
    """The noun with its "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _group(objects: Sequence[SceneObject], words: _Words) -> str:
    """Number, size, colour and class of objects of one class and colour, such as "two red circles"."""
    one, single = objects[0], len(objects) == 1
    noun = f"{one.color} {one.class_name if single else plural(one.class_name)}"
    if one.texture == "plain" and words.chance(0.2):
        noun = f"plain {noun}"
    if single and words.chance(0.5):
        size = "large " if one.diameter > 0.7 else "small " if one.diameter < 0.58 else ""
        noun = f"{size}{noun}"
    if one.texture != "plain" and words.chance(0.4):
        noun = f"{noun} with {MARKS[one.color]} {_MARK_NAMES[one.texture]}"
    return with_article(noun) if single else f"{NUMBERS[len(objects)]} {noun}"


def _arrangement(scene: Scene, words: _Words) -> str:
    """Where the main objects are: the place of a single one, how several lie to each other."""
    main = scene.objects[: scene.count]
    if scene.count == 1:
        return _place(main[0].x, main[0].y)
    if scene.count == 2:
        dx, dy = abs(main[0].x - main[1].x), abs(main[0].y - main[1].y)
        if max(dx, dy) > 2 * min(dx, dy):
            return "side by side" if dx > dy else "one over the other"
    return "spread over the image"


def _relation(scene: Scene, other: SceneObject, words: _Words, noun: str = "") -> list[str]:
    """A sentence on where another object lies as seen from a single main one; none where it is not clear."""
    dx, dy = other.x - scene.main.x, other.y - scene.main.y
    if scene.count > 1 or max(abs(dx), abs(dy)) < 2 * min(abs(dx), abs(dy)):
        return []
    if abs(dx) > abs(dy):
        side = "left" if dx < 0 else "right"
        relation = words.one((f"{side} of", f"to the {side} of"))
    else:
        relation = "above" if dy < 0 else "below"
    target = words.one(("it", f"the {scene.main.shape}")) if noun else f"the {scene.main.shape}"
    return [f"{noun or f'the {other.shape}'} is {relation} {target}"]


def _background(scene: Scene, words: _Words) -> str:
    """Kind and colours of what is behind, such as "a tan background fading into mint"."""
    behind = scene.background
    if behind.kind == "gradient":
        return f"{with_article(behind.color)} background {words.one(('fading into', 'fading to'))} {behind.other}"
    kind = "noisy " if behind.kind == "noisy" else "plain " if words.chance(0.3) else ""
    return f"{with_article(f'{kind}{behind.color}')} background"


def _place(x: float, y: float) -> str:
    return _PLACES[(y > 0.42) + (y > 0.58)][(x > 0.42) + (x > 0.58)]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
