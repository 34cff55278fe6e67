from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from t2ikit.callbacks.image_grid import image_grid, save_grid


def test_small_images_are_enlarged_and_stay_themselves() -> None:
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    grid = image_grid(images, smallest=32, gap=2)
    assert grid.shape == (3, 2 * 32 + 2, 3 * 32 + 2 * 2)
    torch.testing.assert_close(grid[:, 34:66:2, 34:66:2], images[4])
    assert (grid[:, 34:, 68:] == 255).all()


def test_the_file_holds_the_grid(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    picture = save_grid(images, tmp_path / "grid.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), picture.permute(1, 2, 0).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
