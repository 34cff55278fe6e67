"""Decoding: every kind of image that a folder of photos can hold, and the bad ones."""

import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from t2ikit.photos import BadImage, decode
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.images import prepare_images
from t2ikit.prepare.sources import find_images
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet

GRADIENT = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, 0)


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def colours() -> Image.Image:
    """Left half red, right half blue."""
    values = np.zeros((64, 64, 3), np.uint8)
    values[:, :32, 0] = 255
    values[:, 32:, 2] = 255
    return Image.fromarray(values)


def halves(pixels: np.ndarray) -> tuple[list[int], list[int]]:
    """Mean colour of the outer left and right quarters."""
    side = pixels.shape[2] // 4
    left, right = pixels[:, :, :side].mean((1, 2)), pixels[:, :, -side:].mean((1, 2))
    return [int(round(v)) for v in left], [int(round(v)) for v in right]


def png_16_bit_rgb() -> bytes:
    rows = b"".join(
        b"\0" + struct.pack(">HHH", 65535, 0, 0) * 32 + struct.pack(">HHH", 0, 0, 65535) * 32 for _ in range(64)
    )
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    "content",
    [
        saved(colours(), "JPEG", quality=95),
        saved(colours()),
        saved(colours().quantize(8)),
        saved(colours().convert("CMYK"), "JPEG", quality=95),
        saved(colours().convert("RGBA")),
        saved(colours(), "GIF"),
        saved(colours(), "BMP"),
        saved(colours(), "TIFF"),
        saved(colours(), "WEBP", lossless=True),
        png_16_bit_rgb(),
        saved(colours(), "JPEG", quality=95, progressive=True),
    ],
    ids=["jpeg", "png", "palette", "cmyk", "rgba", "gif", "bmp", "tiff", "webp", "png16", "progressive"],
)
def test_colour_formats(content: bytes) -> None:
    pixels = decode(content, 16)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8 and pixels.flags["C_CONTIGUOUS"]
    left, right = halves(pixels)
    assert np.allclose(left, [255, 0, 0], atol=6) and np.allclose(right, [0, 0, 255], atol=6)


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(GRADIENT)),
        saved(Image.fromarray(GRADIENT), "JPEG", quality=95),
        saved(Image.fromarray(GRADIENT.astype(np.uint16) * 257)),
        saved(Image.fromarray(GRADIENT.astype(np.int32) * 257), "TIFF"),
        saved(Image.fromarray(GRADIENT.astype(np.float32) / 255), "TIFF"),
        saved(Image.fromarray(GRADIENT).convert("LA")),
    ],
    ids=["grey", "grey jpeg", "16 bits", "32 bits", "float", "grey with alpha"],
)
def test_grey_formats(content: bytes) -> None:
    pixels = decode(content, 64)
    assert (pixels[0] == pixels[1]).all() and (pixels[1] == pixels[2]).all()
    assert np.abs(pixels[0].astype(int) - GRADIENT).max() <= 3


def test_black_and_white() -> None:
    pixels = decode(saved(Image.fromarray(GRADIENT > 127)), 64)
    assert set(np.unique(pixels)) == {0, 255}


def test_adobe_cmyk_is_not_inverted() -> None:
    white = saved(Image.new("CMYK", (32, 32), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in white and (decode(white, 8) > 250).all()


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert (decode(saved(clear), 8) == 255).all()
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert (decode(saved(palette, transparency=0), 8) == 255).all()


def test_exif_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # half a turn
    left, right = halves(decode(saved(colours(), "JPEG", quality=95, exif=exif), 16))
    assert left[2] > 240 and right[0] > 240


def test_centre_is_kept() -> None:
    values = np.zeros((40, 120, 3), np.uint8)
    values[:, 40:80] = 200
    assert (decode(saved(Image.fromarray(values)), 16)[:, :, 1:-1] == 200).all()
    assert (decode(saved(Image.fromarray(values.transpose(1, 0, 2))), 16)[:, 1:-1] == 200).all()
    assert decode(saved(Image.fromarray(values[:1, :1])), 16).shape == (3, 16, 16)


def test_planes_are_those_of_the_resized_square() -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    square = Image.fromarray(values).resize((16, 16), Image.Resampling.BILINEAR, box=(10, 0, 60, 50))
    pixels = decode(saved(Image.fromarray(values)), 16)
    assert np.array_equal(pixels, np.asarray(square).transpose(2, 0, 1)) and pixels.flags["WRITEABLE"]


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = decode(saved(Image.fromarray(stripes)), 16).astype(int)
    assert np.abs(pixels - 127).max() <= 20


def bad_files() -> dict[str, bytes]:
    jpeg = saved(colours(), "JPEG")
    png = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    broken = bytearray(png)
    broken[len(png) // 2] ^= 255
    return {
        "empty.JPEG": b"",
        "text.JPEG": b"this is no image",
        "html.JPEG": b"<!DOCTYPE html><html></html>",
        "half.JPEG": jpeg[: len(jpeg) // 2],
        "header.JPEG": jpeg[:20],
        "half.png": png[: len(png) // 2],
        "flipped.png": bytes(broken),
        "bomb.png": png_of_size(60_000, 60_000),
        "large.png": png_of_size(20_000, 14_000),
        "zeros.JPEG": bytes(1000),
        "nan.tif": saved(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
    }


def png_of_size(width: int, height: int) -> bytes:
    content = bytearray(saved(Image.new("L", (8, 8))))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


@pytest.mark.parametrize("name", sorted(bad_files()))
def test_bad_files_have_a_reason(name: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(bad_files()[name], 16)
    reason = str(caught.value)
    expected = {"empty": "empty file", "text": "not an image", "bomb": "more than", "large": "more than"}
    assert expected.get(name.split(".")[0], "") in reason and reason and "\n" not in reason


def test_bad_files_are_listed_and_the_rest_is_stored(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = Path(shutil.copytree(photos, tmp_path / "photos"))
    for name, content in bad_files().items():
        (source / "train" / "n01440764" / name).write_bytes(content)
    (source / "train" / "n01440764" / "lost.JPEG").symlink_to(tmp_path / "nowhere")
    (source / "train" / "n01440764" / "png.JPEG").write_bytes(saved(colours()))
    with pytest.raises(ValueError, match=r"train/n01440764/.* cannot be used.*--strict"):
        prepare_images(str(source), tmp_path / "strict", 16, strict=True)
    assert not (tmp_path / "strict" / "images" / "train").exists()
    manifests = prepare_images(str(source), tmp_path / "out", 16, launch=Launch("cpu", 1, workers=2))
    assert manifests["train"].count == 13 and manifests["val"].count == 6
    listed = dict(line.split("\t") for line in (tmp_path / "out/images/bad_train.tsv").read_text().splitlines())
    assert set(listed) == {f"train/n01440764/{name}" for name in [*bad_files(), "lost.JPEG"]}
    assert listed["train/n01440764/empty.JPEG"] == "empty file"
    assert not (tmp_path / "out/images/bad_val.tsv").exists()
    assert "12 files could not be used" in capsys.readouterr().out


def test_random_crops_and_photos_that_are_too_small(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "photos" / "train" / "n01440764"
    folder.mkdir(parents=True)
    ramp = np.linspace(0, 255, 200).astype(np.uint8)
    for index in range(12):
        Image.fromarray(np.stack([ramp[None].repeat(50, 0)] * 3, 2)).save(folder / f"{index}.png")
    Image.new("RGB", (200, 40)).save(folder / "small.png")
    (folder / "bad.png").write_bytes(b"no picture")

    def columns(out: str, **options: Any) -> dict[str, np.ndarray]:
        prepare_images(str(folder.parents[1]), tmp_path / out, 50, val_share=0.1, **options)
        sets = [RecordSet(path.parent) for path in sorted((tmp_path / out / "images").glob("*/manifest.json"))]
        return {record.metadata["key"]: record.image[0, 0].astype(float) for records in sets for record in records}

    random = columns("random", crop="random", min_side=50, picture_format="webp")
    told = capsys.readouterr().out
    assert len(random) == 12 and "1 files could not be used" in told and "1 are smaller than --min-side" in told
    lists = "".join(path.read_text() for path in (tmp_path / "random" / "images").glob("bad_*.tsv"))
    assert "small.png\ta side is below 50: 200 x 40 pixels" in lists
    starts = {key: row[0] / 255 * 199 for key, row in random.items()}
    assert len({round(start) for start in starts.values()}) > 6 and max(starts.values()) <= 150.5
    assert all(row[-1] - row[0] == pytest.approx(49 / 199 * 255, abs=2) for row in random.values())
    again = columns("again", crop="random", launch=Launch("cpu", 1, workers=2))
    assert set(again) == {*random, "train/n01440764/small.png"}  # taken without --min-side
    assert all(np.array_equal(again[key], row) for key, row in random.items())
    assert any(
        not np.array_equal(row, random[key])
        for key, row in columns("seed", crop="random", seed=1).items()
        if key in random
    )
    assert all(row[0] / 255 * 199 == pytest.approx(75, abs=1) for row in columns("centre", min_side=50).values())
    with pytest.raises(FileExistsError, match="--seed differs .or --crop, --min-side"):
        columns("centre", crop="random", min_side=50)
    (folder / "bad.png").unlink()
    assert len(columns("strict", min_side=50, strict=True)) == 12  # a small photo is no fault
    with pytest.raises(ValueError, match="--min-side counts pixels"):
        columns("negative", min_side=-1)


def test_a_source_without_a_photo_that_can_be_used(tmp_path: Path) -> None:
    """Its photos are listed, and a call with another option is not refused for what is left of the first."""
    source, out = tmp_path / "photos", tmp_path / "out"
    for split, count in (("train", 5), ("val", 1)):
        (source / split / "n01440764").mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", (40 + k, 40)).save(source / split / "n01440764" / f"{k}.png")
    (source / "train" / "n01440764" / "broken.png").write_bytes(b"broken")
    message = r"no photo of train.*: 5 of 6 because a side is below 64 \(all .*bad_train.tsv\): give a lower --min-side"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            prepare_images(str(source), out, 16, min_side=64)
    listed = (out / "images/bad_train.tsv").read_text().splitlines()
    assert len(listed) == 6 and "train/n01440764/broken.png\tnot an image" in listed
    assert [path.name for path in (out / "images").iterdir()] == ["bad_train.tsv"]
    assert prepare_images(str(source), out, 16, min_side=32)["train"].count == 5
    assert len((out / "images/bad_train.tsv").read_text().splitlines()) == 1


def test_set_holds_the_photos_in_the_listed_order(photos: Path, tmp_path: Path) -> None:
    prepare_images(str(photos), tmp_path, 16, launch=Launch("cpu", 1, workers=1))
    for split, images in find_images(photos).items():
        records = RecordSet(tmp_path / "images" / split)
        assert [record.metadata["key"] for record in records] == images.keys
        for record, number in zip(records, images.class_ids, strict=True):
            assert record.metadata["class_id"] == number
            assert record.metadata["class_name"] == images.class_names[int(number)]
            assert np.array_equal(record.image, decode((photos / record.metadata["key"]).read_bytes(), 16))


def test_second_run_does_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prepare_images(str(photos), tmp_path, 16)
    file = tmp_path / "images/train/manifest.json"
    before = file.stat().st_mtime_ns
    prepare_images(str(photos), tmp_path, 16)
    assert file.stat().st_mtime_ns == before and capsys.readouterr().out.count("up to date") == 2
    with pytest.raises(FileExistsError, match="other inputs: --size differs.*--overwrite"):
        prepare_images(str(photos), tmp_path, 8)
    with pytest.raises(FileExistsError, match="other inputs: --seed differs"):
        prepare_images(str(photos), tmp_path, 16, seed=1)
    with pytest.raises(FileExistsError, match="the photos or their classes differ .--source, .*--append"):
        prepare_images(str(photos / "train"), tmp_path, 16, val_share=0.3)
    prepare_images(str(photos), tmp_path, 8, overwrite=True)
    assert Manifest.read(file.parent).image_shape == (3, 8, 8)
    with pytest.raises(ValueError, match="--size must"):
        prepare_images(str(photos), tmp_path, 2)


def test_the_manifest_says_what_wrote_the_set_and_older_ones_stay(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The format is LitData's, but no line of LitData writes it; manifests once had its version."""
    prepare_images(str(photos), tmp_path, 16)
    file = tmp_path / "images/train/manifest.json"
    facts = json.loads(file.read_text())
    assert set(facts["versions"]) == {"t2ikit", "pillow"}
    older = {**facts, "versions": {"t2ikit": "0.1.0", "pillow": "9.1", "litdata": "0.2.76"}}
    file.write_text(json.dumps(older))
    prepare_images(str(photos), tmp_path, 16)
    assert json.loads(file.read_text()) == older and capsys.readouterr().out.count("up to date") == 2
