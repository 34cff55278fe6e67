from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from t2ikit.metrics.fingerprint import images_sha256
from t2ikit.pictures import PictureFiles, find_pictures, image_grid, save_grid, save_png


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


def test_a_folder_is_read_in_its_order(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 4, 6), dtype=torch.uint8)
    for name, image in zip(("10.png", "2.png", "1.PNG"), images, strict=True):
        save_png(image, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    files = find_pictures(tmp_path)
    assert [path.name for path in files] == ["1.PNG", "2.png", "10.png"]
    assert torch.equal(PictureFiles(files)[:], images[[2, 1, 0]])
    Image.new("L", (6, 4), 7).save(tmp_path / "a.png")
    assert (PictureFiles([tmp_path / "a.png"])[0] == 7).all()


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["s_1.png", "s_10.png", "s_2.png"], ["s_1.png", "s_2.png", "s_10.png"]),
        (["s_2_0.jpg", "s_10_1.jpeg", "s_2_11.jpg", "s_2_2.JPG"], ["s_2_0", "s_2_2", "s_2_11", "s_10_1"]),
        (["cat.png", "ant.webp", "dog.jfif"], ["ant.webp", "cat.png", "dog.jfif"]),
        (["0007 x.png", "0010 y.png"], ["0007", "0010"]),
    ],
)
def test_names_say_the_order_by_their_numbers(tmp_path: Path, names: list[str], order: list[str]) -> None:
    for name in (*names, ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    found = [path.name for path in find_pictures(tmp_path)]
    assert len(found) == len(order)
    assert all(name.startswith(start) for name, start in zip(found, order, strict=True))


@pytest.mark.parametrize("names", [["a.png", "1.png", "10.png", "2.png"], ["1.png", "01.png"], ["3.png", "3.jpg"]])
def test_names_that_say_no_order_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="name them by one pattern with a number"):
        find_pictures(tmp_path)


def test_pictures_are_read_as_photos_are(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "0.png")
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.save(tmp_path / "1.png")
    turned = Image.new("RGB", (8, 8))
    turned.paste("red", (0, 0, 8, 4))
    tags = Image.Exif()
    tags[0x0112] = 3
    turned.save(tmp_path / "2.png", exif=tags)
    read = PictureFiles(find_pictures(tmp_path))[:]
    assert np.array_equal(read[0, 0].numpy(), np.rint(grey / 257).astype(np.uint8))
    assert (read[1] == 255).all()
    assert (read[2, 0, 4:] == 255).all() and (read[2, 0, :4] == 0).all()


def test_a_picture_of_another_size_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    Image.new("1", (11500, 11500)).save(tmp_path / "1.png")
    files = find_pictures(tmp_path)
    sizes = []
    load = ImageFile.ImageFile.load

    def noted(image: ImageFile.ImageFile) -> Any:
        sizes.append(image.size)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", noted)
    with pytest.raises(ValueError, match=r"1.png has 11500 x 11500 pixels, not 8 x 8 as .*0.png"):
        PictureFiles(files)
    assert not sizes


def test_what_is_no_set_of_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no picture in"):
        find_pictures(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_pictures(tmp_path / "gone")
    noise = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    save_png(noise, tmp_path / "0.png")
    save_png(noise[:, :4], tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1.png has 8 x 4 pixels, not 8 x 8 as .*0.png"):
        PictureFiles(find_pictures(tmp_path))
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"1.png is no whole image"):
        PictureFiles(find_pictures(tmp_path))[:]
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1.png is no whole image"):
        PictureFiles(find_pictures(tmp_path))
    with pytest.raises(ValueError, match="no pictures"):
        PictureFiles([])


def test_images_on_disk_are_indexed_as_a_tensor(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (7, 3, 4, 6), dtype=torch.uint8)
    for index, image in enumerate(images):
        save_png(image, tmp_path / f"{index}.png")
    stored = PictureFiles(find_pictures(tmp_path))
    assert (tuple(stored.shape), stored.dtype, len(stored)) == ((7, 3, 4, 6), torch.uint8, 7)
    for index in (slice(None), slice(2, 5), slice(5, 99), slice(3, 3), slice(None, None, 2), [4, 1, -1], 3, -2):
        assert torch.equal(stored[index], images[index])
    assert images_sha256(stored) == images_sha256(images)
    with pytest.raises(IndexError):
        stored[7]
