"""The grids of samples as slides, small enough for a page: fewer pixels, and fewer steps where there are many."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from t2ikit.photos import BadImage, read_rgb
from t2ikit.report.page import Cell, Paragraph, Slides, Table
from t2ikit.report.run_folder import Grid, Run

MOST_PICTURES = 64
"""Of one page."""
MOST_STEPS = 24
"""Of one snapshot of one run."""
LONGEST_SIDE = 720
"""Pixels; larger grids are scaled down."""


def slides(runs: Sequence[Run]) -> list[Paragraph | Slides | Table]:
    """A slider for each snapshot, with the grids of all runs, and the prompts of the first run that has them."""
    pairs = {(grid.snapshot, run.name) for run in runs for grid in run.grids}
    most = max(1, min(MOST_STEPS, MOST_PICTURES // max(1, len(pairs))))
    blocks: list[Paragraph | Slides | Table] = []
    for snapshot in dict.fromkeys(grid.snapshot for run in runs for grid in run.grids):
        grids = {run.name: [grid for grid in run.grids if grid.snapshot == snapshot] for run in runs}
        blocks += _slides_of(snapshot, {name: entries for name, entries in grids.items() if entries}, most)
        prompts = next((run.prompts[snapshot] for run in runs if run.prompts.get(snapshot)), ())
        if prompts:
            rows: list[list[Cell]] = [[index, prompt] for index, prompt in enumerate(prompts[:MOST_PICTURES], 1)]
            blocks.append(
                Table(f"Prompts of {snapshot}, in the order of the grid", ["number", "prompt"], rows, folded=True)
            )
    return blocks


def _slides_of(snapshot: str, grids: dict[str, list[Grid]], most: int) -> list[Paragraph | Slides]:
    chosen = {name: _spread(entries, most) for name, entries in grids.items()}
    steps = sorted({grid.step for entries in chosen.values() for grid in entries})
    notes, rows = [], []
    for name, entries in chosen.items():
        if left := len(grids[name]) - len(entries):
            notes.append(f"{name}: {left} of {len(grids[name])} grids are left out; they are in samples/{snapshot}.")
        pictures = []
        for grid in entries:
            try:
                pictures.append((steps.index(grid.step), small(grid.path)))
            except (OSError, BadImage) as error:
                notes.append(f"{name}: the grid of step {grid.step} cannot be read ({error}).")
        rows.append((name, pictures))
    if not any(pictures for _, pictures in rows):
        return [Paragraph(note) for note in notes]
    positions = [f"step {step}" for step in steps]
    return [Slides(f"Samples of snapshot {snapshot}, by step", positions, rows, notes)]


def _spread(grids: Sequence[Grid], most: int) -> list[Grid]:
    """At most that many, evenly spaced, the last one among them."""
    if len(grids) <= most:
        return list(grids)
    if most == 1:
        return [grids[-1]]
    stride = (len(grids) - 1) / (most - 1)
    return [grids[round(index * stride)] for index in range(most)]


def small(path: Path) -> bytes:
    """A picture as WebP of at most ``LONGEST_SIDE`` pixels a side.

    Raises:
        OSError, BadImage: it cannot be read.
    """
    from PIL import Image

    image = Image.fromarray(read_rgb(path.read_bytes()).transpose(1, 2, 0))
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=80)
    return stream.getvalue()
