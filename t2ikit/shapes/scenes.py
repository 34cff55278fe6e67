"""The embedded data set: scenes of coloured shapes, drawn on demand.

Like ImageNet it is object-centric and labelled by class (outline x texture), while colour, number, position, further
objects and background are facts that the class name does not tell. A scene is a pure function of (seed, split, index,
difficulty) and does not know pixels: lengths are shares of the image's side, (0, 0) is the top left corner. The same
scene renders at any size.

Difficulties: "simple" has one plain object, six shapes, six colours and a plain background; "imagenet" the same, and in
a minority of the scenes a second object of another class, where some pairs of classes never occur (`held_out`); "full"
has textures, up to four objects of one class, further objects of other classes, ten colours, and gradients or noise.

Shapes: images are uint8 [3, S, S], channels first, as records store them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2ikit.rng import derived_seed, uniforms
from t2ikit.shapes.geometry import SHAPES, TEXTURES, VARIANTS, class_id, class_name, inside, local, marked
from t2ikit.shapes.palette import BACKGROUNDS, COLORS, MARKS

DIFFICULTIES = ("simple", "imagenet", "full")
SPLITS = ("train", "val")
SMALLEST_SIZE = 16

_SIX_COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
SHAPES_OF = {"simple": SHAPES[:6], "imagenet": SHAPES[:4], "full": SHAPES}
TEXTURES_OF = {"simple": TEXTURES[:1], "imagenet": TEXTURES[:1], "full": TEXTURES}
COLORS_OF = {"simple": _SIX_COLORS, "imagenet": _SIX_COLORS, "full": tuple(COLORS)}
"""What a difficulty draws from."""

RELATIONS = ("left of", "right of", "above", "below")
_SHARE_OF_TWO = 0.48  # of the scenes of difficulty "imagenet", whose objects are near one of few places:
_CENTRES, _SIDES, _PLAY = (0.34, 0.5, 0.66), (0.26, 0.74), 0.005

_TINT, _SHADE, _NOISE = 10.0, 9.0, 16.0  # grey levels by which object, background and each noisy pixel may differ
_MARGIN = 0.04  # of the side, around every object
_LARGEST_ANGLE, _SMALL_ANGLE = np.deg2rad(10), np.deg2rad(2)
_COLUMNS = 64  # uniform numbers a scene may use
WORDS = 32  # uniform numbers its caption may use
_OVERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """One object. ``x``, ``y`` (centre) and ``diameter`` are shares of the side; ``angle`` in radians, clockwise.

    ``variant`` is how its texture is laid, ``tint`` what is added to its colour in grey levels.
    """

    shape: str
    texture: str
    color: str
    x: float
    y: float
    diameter: float
    angle: float
    variant: int
    tint: tuple[float, float, float]

    @property
    def class_name(self) -> str:
        """Texture and outline, such as "striped circle"; the outline alone for a plain object."""
        return class_name(self.shape, self.texture)


@dataclass(frozen=True)
class Background:
    """``kind`` is "plain", "gradient" (from ``color`` to ``other`` along ``angle``) or "noisy" (of ``color``)."""

    kind: str
    color: str
    other: str
    angle: float
    shade: float


@dataclass(frozen=True)
class Scene:
    """What an image shows: ``count`` objects of the main class first, then the secondary ones.

    ``noise_seed`` decides the pixels of a noisy background; ``wording`` [WORDS], in [0, 1), the words of the caption.
    """

    objects: tuple[SceneObject, ...]
    count: int
    background: Background
    noise_seed: int
    wording: tuple[float, ...]

    @property
    def main(self) -> SceneObject:
        """The object that names the class."""
        return self.objects[0]

    @property
    def secondary(self) -> tuple[SceneObject, ...]:
        """The objects of other classes."""
        return self.objects[self.count :]

    @property
    def class_id(self) -> int:
        """Number of the class, 0 .. 39."""
        return class_id(self.main.shape, self.main.texture)


def held_out(first: str, second: str) -> bool:
    """Whether difficulty "imagenet" never shows two shapes together; each of the four lacks one partner."""
    shapes = SHAPES_OF["imagenet"]
    return abs(shapes.index(first) - shapes.index(second)) == len(shapes) // 2


def _partners(shape: str) -> tuple[str, ...]:
    return tuple(other for other in SHAPES_OF["imagenet"] if other != shape and not held_out(shape, other))


class _Chooser:
    """Hands out the uniform numbers of one scene in order."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers = numbers.tolist()
        self._next = 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        value = self._numbers[self._next]
        self._next += 1
        return low + (high - low) * value

    def index(self, count: int) -> int:
        return int(self.uniform() * count)

    def name(self, names: tuple[str, ...], without: str = "") -> str:
        left = [name for name in names if name != without]
        return left[self.index(len(left))]

    def weighted(self, *weights: float) -> int:
        """An index, with chances in proportion to ``weights``."""
        value = self.uniform() * sum(weights)
        for index, weight in enumerate(weights):
            value -= weight
            if value < 0:
                return index
        return len(weights) - 1


def scenes(seed: int, split: str, first: int, count: int, difficulty: str) -> list[Scene]:
    """The scenes ``first`` .. ``first + count - 1`` of a split; each depends on its own index alone.

    Raises:
        ValueError: unknown split or difficulty.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"unknown difficulty {difficulty!r}; set data.difficulty to one of {', '.join(DIFFICULTIES)}")
    build = {"simple": _simple, "imagenet": _imagenet, "full": _full}[difficulty]
    rows = uniforms(seed, f"shapes-{split}", first, count, _COLUMNS)
    wording = uniforms(seed, f"shapes-words-{split}", first, count, WORDS)
    return [
        build(_Chooser(row), derived_seed(seed, f"shapes-noise-{split}", first + i), tuple(wording[i].tolist()))
        for i, row in enumerate(rows)
    ]


def _simple(chooser: _Chooser, noise_seed: int, wording: tuple[float, ...]) -> Scene:
    shape, color = chooser.name(SHAPES_OF["simple"]), chooser.name(COLORS_OF["simple"])
    placed = _place(chooser, shape, "plain", color, chooser.uniform(0.5, 0.86), (0.0, 0.0, 1.0, 1.0))
    name = chooser.name(tuple(BACKGROUNDS))
    background = Background("plain", name, name, 0.0, chooser.uniform(-_SHADE, _SHADE))
    return Scene((placed,), 1, background, noise_seed, wording)


def _imagenet(chooser: _Chooser, noise_seed: int, wording: tuple[float, ...]) -> Scene:
    """A main object, and in `_SHARE_OF_TWO` of the scenes one of another class and colour beside it."""
    names, colors = SHAPES_OF["imagenet"], COLORS_OF["imagenet"]
    shape, color = chooser.name(names), chooser.name(colors)
    two = chooser.uniform() < _SHARE_OF_TWO
    other, other_color = chooser.name(_partners(shape)), chooser.name(colors, color)
    relation = chooser.name(RELATIONS)
    column, row, along = chooser.index(3), chooser.index(3), chooser.index(3)
    if two:
        low, high = _SIDES
        across = (0.3, 0.5, 0.7)[along]
        ends = (high, low) if relation in ("left of", "above") else (low, high)
        centres = [(end, across) if relation in ("left of", "right of") else (across, end) for end in ends]
        kinds, diameter = [(shape, color), (other, other_color)], chooser.uniform(0.42, 0.44)
    else:
        centres, kinds, diameter = [(_CENTRES[column], _CENTRES[row])], [(shape, color)], chooser.uniform(0.54, 0.58)
    objects = tuple(
        _place(chooser, name, "plain", its_color, diameter, _around(x, y, diameter), _SMALL_ANGLE)
        for (name, its_color), (x, y) in zip(kinds, centres, strict=True)
    )
    name = chooser.name(tuple(BACKGROUNDS))
    background = Background("plain", name, name, 0.0, chooser.uniform(-_SHADE, _SHADE))
    return Scene(objects, 1, background, noise_seed, wording)


def _around(x: float, y: float, diameter: float) -> Cell:
    """A cell that leaves an object of this diameter `_PLAY` around its centre."""
    reach = diameter / 2 + _MARGIN + _PLAY
    return x - reach, y - reach, x + reach, y + reach


def _full(chooser: _Chooser, noise_seed: int, wording: tuple[float, ...]) -> Scene:
    shape, texture, color = chooser.name(SHAPES), chooser.name(TEXTURES), chooser.name(tuple(COLORS))
    count = 1 + chooser.weighted(0.58, 0.16, 0.13, 0.13)
    others = chooser.weighted(*((0.4, 0.4, 0.2), (0.6, 0.4), (0.75, 0.25), (1.0,))[count - 1])
    kinds = [(shape, texture, color)] * count
    for _ in range(others):
        texture_of_other = TEXTURES[chooser.weighted(0.64, 0.12, 0.12, 0.12)]
        kinds.append((chooser.name(SHAPES, shape), texture_of_other, chooser.name(tuple(COLORS), color)))
    cells, sizes = _layout(chooser, count, others)
    objects = tuple(
        _place(chooser, *kind, diameter=size, cell=cell) for kind, size, cell in zip(kinds, sizes, cells, strict=True)
    )
    name = chooser.name(tuple(BACKGROUNDS))
    kind_of_background = ("plain", "gradient", "noisy")[chooser.weighted(0.4, 0.35, 0.25)]
    other, angle = chooser.name(tuple(BACKGROUNDS), name), chooser.index(8) * np.pi / 4
    background = Background(kind_of_background, name, other, angle, chooser.uniform(-_SHADE, _SHADE))
    return Scene(objects, count, background, noise_seed, wording)


Cell = tuple[float, float, float, float]


def _layout(chooser: _Chooser, count: int, others: int) -> tuple[list[Cell], list[float]]:
    """Cells (x0, y0, x1, y1) that do not overlap, and diameters that fit in them, the main objects first."""
    total = count + others
    if total == 1:
        return [(0.0, 0.0, 1.0, 1.0)], [chooser.uniform(0.56, 0.88)]
    flip_x, flip_y, turn = chooser.index(2), chooser.index(2), chooser.index(2)
    cells: list[Cell]
    if total == 2:
        large = chooser.uniform(0.40, 0.52) if others else chooser.uniform(0.40, 0.44)
        sizes = [large, chooser.uniform(0.34, 0.40) if others else large]
        split = chooser.uniform(sizes[0] + 2 * _MARGIN, 1 - sizes[1] - 2 * _MARGIN)
        cells = [(0.0, 0.0, split, 1.0), (split, 0.0, 1.0, 1.0)]
    else:
        size = chooser.uniform(0.39, 0.42)
        sizes = [size if i < count else chooser.uniform(0.36, 0.41) for i in range(total)]
        cells = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0)][:total]
        if total == 3:
            cells[0] = (0.0, 0.0, 0.5, 1.0)
    if flip_x:
        cells = [(1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in cells]
    if flip_y:
        cells = [(x0, 1 - y1, x1, 1 - y0) for x0, y0, x1, y1 in cells]
    if turn:
        cells = [(y0, x0, y1, x1) for x0, y0, x1, y1 in cells]
    return cells, sizes


def _place(
    chooser: _Chooser,
    shape: str,
    texture: str,
    color: str,
    diameter: float,
    cell: Cell,
    largest_angle: float = _LARGEST_ANGLE,
) -> SceneObject:
    reach = diameter / 2 + _MARGIN
    x = chooser.uniform(cell[0] + reach, max(cell[2] - reach, cell[0] + reach))
    y = chooser.uniform(cell[1] + reach, max(cell[3] - reach, cell[1] + reach))
    angle = chooser.uniform(-largest_angle, largest_angle)
    tint = (chooser.uniform(-_TINT, _TINT), chooser.uniform(-_TINT, _TINT), chooser.uniform(-_TINT, _TINT))
    return SceneObject(shape, texture, color, x, y, diameter, angle, chooser.index(VARIANTS[texture]), tint)


def render(scene: Scene, size: int) -> np.ndarray:
    """The image of a scene, uint8 [3, size, size], antialiased by 4 x 4 samples a pixel.

    Raises:
        ValueError: fewer than 16 pixels a side.
    """
    if size < SMALLEST_SIZE:
        raise ValueError(f"shapes need at least {SMALLEST_SIZE} pixels a side (data.size); got {size}")
    canvas = _render_background(scene.background, scene.noise_seed, size)
    for one in scene.objects:
        _render_object(canvas, one, size)
    return np.ascontiguousarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8).transpose(2, 0, 1))


def _render_background(background: Background, noise_seed: int, size: int) -> np.ndarray:
    """float64 [size, size, 3] in grey levels."""
    color = np.array(BACKGROUNDS[background.color], dtype=np.float64) + background.shade
    canvas = np.empty((size, size, 3))
    canvas[:] = color
    if background.kind == "gradient":
        middle = (np.arange(size) + 0.5) / size - 0.5
        along = np.cos(background.angle) * middle[None, :] + np.sin(background.angle) * middle[:, None]
        share = along / (np.abs(np.cos(background.angle)) + np.abs(np.sin(background.angle))) + 0.5
        canvas += share[:, :, None] * (np.array(BACKGROUNDS[background.other]) + background.shade - color)
    elif background.kind == "noisy":
        grain = uniforms(noise_seed, "shapes-grain", 0, size * size, 3).reshape(size, size, 3)
        canvas += (2 * grain - 1) * _NOISE
    return canvas


def _render_object(canvas: np.ndarray, one: SceneObject, size: int) -> None:
    radius = one.diameter / 2 * size
    x0, x1 = _pixels(one.x * size, radius, size)
    y0, y1 = _pixels(one.y * size, radius, size)
    n = _OVERSAMPLING
    x = (np.arange(x0 * n, x1 * n) + 0.5) / n - one.x * size
    y = (np.arange(y0 * n, y1 * n) + 0.5) / n - one.y * size
    u, v = local(x[None, :], y[:, None], one.angle, radius)
    solid = inside(one.shape, u, v)
    covered = _pooled(solid, n)
    first = np.array(COLORS[one.color], dtype=np.float64) + one.tint
    patch = canvas[y0:y1, x0:x1]
    patch += covered * (first - patch)
    if one.texture != "plain":
        second = np.array(COLORS[MARKS[one.color]], dtype=np.float64)
        patch += _pooled(solid & marked(one.texture, one.variant, u, v), n) * (second - first)


def _pixels(centre: float, radius: float, size: int) -> tuple[int, int]:
    """The pixels that an object can touch along one axis; an outline reaches 1.1 radii from its centre."""
    return max(int(centre - 1.1 * radius), 0), min(int(centre + 1.1 * radius) + 2, size)


def _pooled(samples: np.ndarray, n: int) -> np.ndarray:
    """Share of True among the n x n samples of each pixel: bool [h * n, w * n] -> float64 [h, w, 1]."""
    height, width = samples.shape[0] // n, samples.shape[1] // n
    return samples.reshape(height, n, width, n).sum(axis=(1, 3), dtype=np.float64)[:, :, None] / n**2
