"""DPG-Bench's grid images: the samples of one prompt in one file, as the official scorer reads them.

A grid holds up to four square images of R pixels a side: top left, top right, bottom left, bottom right. Its file is
``<item_id>.png``, one a prompt; a single image is no grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from t2ikit.metrics.base import Samples
from t2ikit.metrics.questions.metric import images_of_items
from t2ikit.pictures import PictureFiles, StoredImages, find_pictures, save_png


def split_grid(grid: Tensor, count: int = 4) -> Tensor:
    """The images of a 2 x 2 grid: top left, top right, bottom left, bottom right.

    Args:
        grid: [3, 2 R, 2 R] uint8, or [3, R, R] when ``count`` is 1.
        count: how many of the four, 1 to 4, are taken.

    Returns:
        [count, 3, R, R].

    Raises:
        ValueError: the grid is not square with an even side, or ``count`` is out of range.
    """
    if not 1 <= count <= 4:
        raise ValueError(f"a DPG-Bench grid holds 1 to 4 images; got count={count}")
    height, width = grid.shape[1:]
    if height != width or (count > 1 and height % 2):
        raise ValueError(f"a DPG-Bench grid is square with an even side; got {height} x {width}")
    if count == 1:
        return grid[None]
    side = height // 2
    return grid.unflatten(1, (2, side)).unflatten(3, (2, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)[:count]


def join_grid(images: Tensor) -> Tensor:
    """Up to four images [K, 3, R, R] as one [3, 2 R, 2 R] grid (black where missing); a single one as it is."""
    count, channels, height, width = images.shape
    if not 1 <= count <= 4 or height != width:
        raise ValueError(f"a DPG-Bench grid takes 1 to 4 square images; got {tuple(images.shape)}")
    if count == 1:
        return images[0]
    filled = torch.zeros(4, channels, height, width, dtype=images.dtype, device=images.device)
    filled[:count] = images
    return filled.unflatten(0, (2, 2)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def write_grids(samples: Samples, folder: str | Path) -> list[Path]:
    """One ``<item_id>.png`` a prompt, that the official scorer reads with ``--resolution R`` and ``--pic-num K``.

    Args:
        samples: square images whose metadata name their ``item_id``, one to four a prompt.
        folder: where the files go; it is made.

    Returns:
        The files, in the order of the prompts.

    Raises:
        ValueError: a prompt with more than four images, or images that are not square.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = []
    for item, indices in images_of_items(samples, "a DPG-Bench grid").items():
        if "." in item or "/" in item:
            raise ValueError(
                f"item_id {item!r} cannot name a grid: the official scorer reads names up to the first dot"
            )
        files.append(Path(folder) / f"{item}.png")
        text = {"prompt": samples.prompts[indices[0]]} if samples.prompts else None
        save_png(join_grid(samples.images[indices]), files[-1], text)
    return files


def read_grids(folder: str | Path, count: int = 4) -> Samples:
    """The images of a folder of grids, made here or by any other model, with their ``item_id`` as metadata.

    Args:
        folder: of PNG or JPEG files; a name up to its first dot is the ``item_id``.
        count: images that are taken from each grid, in its order; 1 takes a file as one image.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: an image that cannot be read or that is no grid, or two files of one item; names the file.
    """
    paths = find_pictures(Path(folder))
    items = [path.name.split(".")[0] for path in paths]
    for index, item in enumerate(items):
        if item in items[:index]:
            raise ValueError(f"{paths[index]} and {paths[items.index(item)]} both hold item {item!r}: remove one")
    grids = PictureFiles(paths)
    try:
        split_grid(grids[0], count)  # all are of one size
    except ValueError as error:
        raise ValueError(f"{paths[0]}: {error}") from error
    images = ImagesOfGrids(grids, count, range(count * len(grids)))
    return Samples(images, metadata=[{"item_id": item} for item in items for _ in range(count)])


class ImagesOfGrids(StoredImages):
    """Some of the images of grids.

    Args:
        grids: square, of one size.
        count: images of each, 1 to 4.
        chosen: indices into all images, those of the first grid first.
    """

    def __init__(self, grids: PictureFiles, count: int, chosen: Sequence[int]) -> None:
        side = grids.shape[2] // (1 if count == 1 else 2)
        super().__init__(len(chosen), (side, side))
        self.grids = grids
        self.count = count
        self.chosen = chosen

    def read(self, index: int) -> np.ndarray:
        """Cut out of its grid."""
        grid, place = divmod(self.chosen[index], self.count)
        return split_grid(self.grids[grid], self.count)[place].numpy()
