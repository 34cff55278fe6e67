"""DPG-Bench's grids: where each image lies, one file a prompt, what is no grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from t2ikit.metrics import Samples
from t2ikit.metrics.questions.dpg_grids import join_grid, read_grids, split_grid, write_grids

IMAGES = torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_grids() -> None:
    grid = join_grid(IMAGES[:4])
    assert grid.shape == (3, 12, 12)
    assert torch.equal(grid[:, :6, 6:], IMAGES[1])
    assert torch.equal(grid[:, 6:, :6], IMAGES[2])
    assert torch.equal(split_grid(grid), IMAGES[:4])
    assert torch.equal(split_grid(join_grid(IMAGES[:3]), 3), IMAGES[:3])
    assert torch.equal(split_grid(join_grid(IMAGES[:1]), 1), IMAGES[:1])
    with pytest.raises(ValueError, match="square"):
        split_grid(torch.zeros(3, 4, 6))


def test_files_as_the_official_scorer_crops_them(tmp_path: Path) -> None:
    # Images of two prompts in turn: they are brought together by item, in order.
    samples = Samples(IMAGES, metadata=[{"item_id": name} for name in ("b", "a") * 4])
    files = write_grids(samples, tmp_path / "grids")
    assert [file.name for file in files] == ["b.png", "a.png"]
    crops = [(0, 0, 6, 6), (6, 0, 12, 6), (0, 6, 6, 12), (6, 6, 12, 12)]
    with Image.open(tmp_path / "grids" / "b.png") as grid:
        for place, box in enumerate(crops):
            expected = Image.fromarray(IMAGES[2 * place].permute(1, 2, 0).numpy())
            assert grid.crop(box).tobytes() == expected.tobytes()
    found = read_grids(tmp_path / "grids")
    assert [entry["item_id"] for entry in found.metadata] == ["a"] * 4 + ["b"] * 4
    assert torch.equal(found.images[:], torch.cat([IMAGES[1::2], IMAGES[0::2]]))
    assert len(read_grids(tmp_path / "grids", 1)) == 2


def test_what_is_no_grid(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="item_id 'a.b' cannot name a grid"):
        write_grids(Samples(IMAGES[:1], metadata=[{"item_id": "a.b"}]), tmp_path)
    with pytest.raises(ValueError, match="1 to 4 square images"):
        write_grids(Samples(IMAGES, metadata=[{"item_id": "a"}] * 8), tmp_path)
    with pytest.raises(FileNotFoundError):
        read_grids(tmp_path / "none")
    Image.new("RGB", (5, 5)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match=r"odd.png: a DPG-Bench grid is square with an even side; got 5 x 5"):
        read_grids(tmp_path)
    Image.new("RGB", (5, 5)).save(tmp_path / "odd.1.png")
    with pytest.raises(ValueError, match="the names do not say the order of the pictures"):
        read_grids(tmp_path)
    (tmp_path / "odd.1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"odd\.1\.png"):
        (tmp_path / "odd.png").unlink()
        read_grids(tmp_path)
