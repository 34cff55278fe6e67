"""Segments of an image of the embedded data set: background, connected parts, and each part's colour and coverage.

Shapes: pixels are float64 [H, W, 3] in grey levels, masks bool [H, W], coverage float64 [h, w] in [0, 1] of the patch
around a segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2ikit.shapes.palette import COLORS, MARKS

_PALETTE = np.array(list(COLORS.values()), dtype=np.float64)
_NAMES = list(COLORS)
_SECONDS = _PALETTE[[_NAMES.index(MARKS[name]) for name in _NAMES]]
_FOREGROUND = 48.0  # grey levels (norm over the channels) from the background
_NOISIEST = 28.0  # root mean square residual above which there is no background to speak of
_LEAST_BACKGROUND = 0.12  # of the pixels
_LEAST_AREA = 0.012  # of the pixels
_NEAR = 60.0  # grey levels within which a pixel has a colour
_UNLIKE = 110.0  # grey levels beyond which it does not matter how unlike a pixel is
_TEXTURE_COST = 9.0  # grey levels by which a texture must explain the pixels better than a plain colour


@dataclass(frozen=True)
class Segment:
    """One connected part of the foreground.

    Attributes:
        color: name of its colour.
        textured: whether a second colour marks the first.
        purity: share of its inner pixels that have its colour, or one between its two colours; in [0, 1].
        first: [3] its colour as measured, grey levels.
        second: [3] the second colour of its texture, if it has one.
        patch: [h, w, 3] the pixels around it.
        coverage: [h, w] how much of each pixel of the patch it covers.
        top, left: first row and column of the patch in the image, pixels.
    """

    color: str
    textured: bool
    purity: float
    first: np.ndarray
    second: np.ndarray
    patch: np.ndarray
    coverage: np.ndarray
    top: int
    left: int

    @property
    def area(self) -> float:
        """Pixels that it covers."""
        return float(self.coverage.sum())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the pixels that are at least half covered, the far side excluded."""
        solid = self.coverage >= min(0.5, float(self.coverage.max()))
        rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
        x0, x1 = self.left + columns[0], self.left + columns[-1] + 1
        return float(x0), float(self.top + rows[0]), float(x1), float(self.top + rows[-1] + 1)


def segments(pixels: np.ndarray) -> list[Segment]:
    """Everything that stands out from the background of an image [H, W, 3]; empty where there is no background."""
    behind = background(pixels)
    if behind is None:
        return []
    foreground = ((pixels - behind) ** 2).sum(axis=2) > _FOREGROUND**2
    least = max(4.0, _LEAST_AREA * foreground.size)
    candidates = [_segment(pixels, behind, mask) for mask in components(foreground) if mask.sum() >= least]
    return [segment for segment in candidates if segment.area >= least / 2]


def background(pixels: np.ndarray) -> np.ndarray | None:
    """The linear gradient [H, W, 3] that most pixels follow, starting from the border's median; None if none do."""
    height, width = pixels.shape[:2]
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    y, x = np.mgrid[:height, :width]
    design = np.stack([np.ones(x.size), x.ravel() / width - 0.5, y.ravel() / height - 0.5], axis=1)
    flat = pixels.reshape(-1, 3)
    fitted = np.broadcast_to(np.median(border, axis=0), flat.shape)
    for reach in (75.0, 60.0, 50.0, 45.0, 45.0):
        near = ((flat - fitted) ** 2).sum(axis=1) < reach**2
        if near.sum() < _LEAST_BACKGROUND * len(flat):
            return None
        kept = design[near]
        fitted = design @ np.linalg.solve(kept.T @ kept + 1e-6 * np.eye(3), kept.T @ flat[near])
    residual = ((flat - fitted) ** 2).sum(axis=1)
    near = residual < 45.0**2
    if near.sum() < _LEAST_BACKGROUND * len(flat) or np.sqrt(residual[near].mean()) > _NOISIEST:
        return None
    return fitted.reshape(pixels.shape)


def components(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected regions of a mask [H, W] bool, each [H, W] bool: runs of each row, joined where they touch."""
    runs: list[tuple[int, int, int]] = []
    parents: list[int] = []

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    above: list[int] = []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
        current = []
        for start, end in edges.reshape(-1, 2).tolist():
            index = len(runs)
            runs.append((row, start, end))
            parents.append(index)
            current.append(index)
            for other in above:
                if runs[other][1] <= end and start <= runs[other][2]:
                    parents[root(index)] = root(other)
        above = current
    masks: dict[int, np.ndarray] = {}
    for index, (row, start, end) in enumerate(runs):
        masks.setdefault(root(index), np.zeros_like(mask))[row, start:end] = True
    return list(masks.values())


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its 8 neighbours."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """The pixels of the mask whose 4 neighbours belong to it, too."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _segment(pixels: np.ndarray, behind: np.ndarray, mask: np.ndarray) -> Segment:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = max(int(rows[0]) - 2, 0), max(int(columns[0]) - 2, 0)
    window = (slice(top, int(rows[-1]) + 3), slice(left, int(columns[-1]) + 3))
    patch, behind, mask = pixels[window], behind[window], mask[window]
    inner = _shrunk(mask)
    if inner.sum() < 5:
        difference = np.linalg.norm(patch - behind, axis=2) * mask
        inner = difference > 0.7 * difference.max()
    index, textured, purity = _color(patch[inner])
    first, second = _PALETTE[index], _SECONDS[index]
    near = patch[inner][((patch[inner] - first) ** 2).sum(axis=1) < _NEAR**2]
    first = near.mean(axis=0) if len(near) else first
    coverage = _coverage(patch, behind, [first, second] if textured else [first])
    if textured:  # a pixel between the two colours may look like background and still be covered
        coverage = np.where(inner, 1.0, coverage)
    coverage = coverage * _grown(mask)
    return Segment(_NAMES[index], textured, purity, first, second, patch, coverage, top, left)


def _color(inner: np.ndarray) -> tuple[int, bool, float]:
    """Index of the colour, whether there is a texture, and purity, of the inner pixels [n, 3] of a segment.

    A plain colour explains pixels by their distance to it, a textured one by the distance to the line from its colour
    to the second one; the line counts only if there are pixels towards both of its ends.
    """
    offsets = inner[None] - _PALETTE[:, None]
    plain = np.linalg.norm(offsets, axis=2)
    lines = _SECONDS - _PALETTE
    shares = np.clip((offsets * lines[:, None]).sum(axis=2) / (lines**2).sum(axis=1)[:, None], 0, 1)
    textured = np.linalg.norm(offsets - shares[:, :, None] * lines[:, None], axis=2)
    both_ends = ((shares < 0.35).mean(axis=1) > 0.15) & ((shares > 0.5).mean(axis=1) > 0.06)
    costs = np.minimum(plain, _UNLIKE).mean(axis=1)
    costs_of_lines = np.where(both_ends, np.minimum(textured, _UNLIKE).mean(axis=1) + _TEXTURE_COST, np.inf)
    if costs_of_lines.min() < costs.min():
        index = int(costs_of_lines.argmin())
        return index, True, float((textured[index] < _NEAR).mean())
    index = int(costs.argmin())
    return index, False, float((plain[index] < _NEAR).mean())


def _coverage(patch: np.ndarray, behind: np.ndarray, colors: list[np.ndarray]) -> np.ndarray:
    """How much of each pixel the object covers, [h, w] in [0, 1]: along the line from the background to its colour.

    Of two colours the one that explains the pixel better counts.
    """
    shares, residuals = [], []
    for color in colors:
        line = color - behind
        share = np.clip(((patch - behind) * line).sum(axis=2) / np.maximum((line * line).sum(axis=2), 1.0), 0, 1)
        shares.append(share)
        residuals.append(((patch - behind - share[:, :, None] * line) ** 2).sum(axis=2))
    return np.take_along_axis(np.stack(shares), np.argmin(residuals, axis=0)[None], axis=0)[0]
