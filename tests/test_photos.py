"""JPEG files that are not complete: every way in which half a file comes to pass is refused, and whole ones are not."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from t2ikit import photos
from t2ikit.photos import BadImage, decode, read_rgb

END = b"\xff\xd9"
HTML = b"<html><body>504 Gateway Timeout</body></html>\n" * 8


def photo(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    return coarse.resize((160, 120), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, **options: Any) -> bytes:
    return saved(image, "JPEG", **options)


KINDS = {
    "baseline": jpeg(photo()),
    "fine": jpeg(photo(), quality=97, subsampling=0),
    "grey": jpeg(photo("L")),
    "inks": jpeg(photo("CMYK")),
    "restarts": jpeg(photo(), restart_marker_blocks=4),
    "progressive": jpeg(photo(), progressive=True),
    "progressive grey": jpeg(photo("L"), progressive=True, quality=95),
    "small codes": jpeg(photo(), optimize=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("rest", [b"", END, HTML, bytes(4096), HTML + END], ids=["cut", "end", "html", "zeros", "both"])
def test_a_part_of_a_file_is_refused(kind: str, share: float, rest: bytes) -> None:
    content = KINDS[kind]
    data = content.index(b"\xff\xda")
    cut = data + 14 + int(share * (len(content) - data - 16))
    with pytest.raises(BadImage):
        decode(content[:cut] + rest, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_headers_alone_are_refused(kind: str) -> None:
    content = KINDS[kind]
    start = content.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    with pytest.raises(BadImage):
        decode(content[:end] + END, 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"", b"\0" * 64, HTML], ids=["nothing", "zeros", "text"])
def test_a_whole_file_is_read_whatever_follows_its_end(kind: str, behind: bytes) -> None:
    content = KINDS[kind]
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read_rgb(content + behind), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}])
def test_a_grey_picture_is_no_half(mode: str, options: dict[str, Any]) -> None:
    content = jpeg(Image.new("RGB", (100, 60), (128, 128, 128)).convert(mode), **options)
    assert (read_rgb(content) == 128).all()


def told(kind: str, orientation: int) -> bytes:
    """A picture of 40 x 20 pixels that says how it is to be turned, in one of the places where formats say so."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :20], pixels[:10, 20:], pixels[10:, :20] = 250, 160, 80
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    name, _, place = kind.partition(" ")
    if name == "TIFF":
        pages = {"save_all": True, "append_images": [image]} if place == "pages" else {}
        packing = {"compression": "tiff_lzw"} if place == "packed" else {}
        facts: dict[int, Any] = {700: xmp.encode()} if place == "xmp" else {0x0112: orientation}
        return saved(image, name, tiffinfo=facts, **pages, **packing)
    if name != "PNG":
        options = {"lossless": True} if name == "WEBP" else {"quality": 100, "subsampling": "4:4:4"}
        return saved(image, name, **options, **({"xmp": xmp.encode()} if place == "xmp" else {"exif": exif}))
    if not place:
        return saved(image, name, exif=exif)
    entries = PngImagePlugin.PngInfo()
    if place == "xmp":
        entries.add_itxt("XML:com.adobe.xmp", xmp)
    elif place == "text":
        content = exif.tobytes()
        entries.add_text("Raw profile type exif", f"\nexif\n{len(content):8}\n{content.hex()}\n", zip=True)
    whole = saved(image, name, pnginfo=entries)
    if place != "behind":
        return whole
    behind = io.BytesIO()
    PngImagePlugin.putchunk(behind, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    return whole[:-12] + behind.getvalue() + whole[-12:]


T = Image.Transpose
TURNS = (None, T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90)
PLACES = ["JPEG", "JPEG xmp", "PNG", "PNG xmp", "PNG text", "PNG behind", "WEBP", "WEBP xmp", "AVIF", "AVIF xmp"]


@pytest.mark.parametrize("kind", [*PLACES, "TIFF", "TIFF xmp", "TIFF packed", "TIFF pages"])
def test_size_and_pixels_are_those_of_the_turned_picture(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a format says how it is turned, and without decoding for the size."""
    straight = np.asarray(Image.open(io.BytesIO(told(kind, 1))).convert("RGB"))
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image) or load(image))
    for orientation, turn in enumerate(TURNS, 1):
        content = told(kind, orientation)
        upright = Image.fromarray(straight)
        upright = upright if turn is None else upright.transpose(turn)
        decoded.clear()
        assert photos.size_of(io.BytesIO(content)) == upright.size, orientation
        assert not decoded
        difference = read_rgb(content, upright.size).astype(int) - np.asarray(upright).transpose(2, 0, 1)
        assert np.abs(difference).max() <= 3, orientation


def test_large_pictures_are_read_and_bombs_are_not() -> None:
    buffer = io.BytesIO()
    Image.new("1", (16000, 15000), 1).save(buffer, "PNG")
    assert (decode(buffer.getvalue(), 8) == 255).all()
    buffer = io.BytesIO()
    Image.new("1", (20000, 14000)).save(buffer, "PNG")
    with pytest.raises(BadImage, match="20000 x 14000 pixels, more than"):
        decode(buffer.getvalue(), 8)


def test_a_heic_picture_is_called_by_its_name() -> None:
    with pytest.raises(BadImage, match="HEIC"):
        decode(b"\0\0\0\x18ftypheic" + bytes(64), 8)


@pytest.mark.parametrize(("kind", "side"), [("PNG", 90), ("WEBP", 64), ("TIFF", 64), ("JPEG2000", 64)])
def test_the_limit_of_pixels_fits_what_a_decoder_takes(kind: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some decoders take twice the memory for a pixel: half as many pixels are read."""
    monkeypatch.setattr(photos, "MAX_PIXELS", 2**13)
    assert read_rgb(saved(Image.new("RGB", (side, side)), kind)).shape == (3, side, side)
    with pytest.raises(BadImage, match=rf"pixels, more than {2**13 if kind == 'PNG' else 2**12:,}"):
        read_rgb(saved(Image.new("RGB", (side, side + 2)), kind))


@pytest.mark.parametrize(("kind", "mode", "most"), [("PNG", "RGBA", 12), ("JPEG", "RGB", 12), ("WEBP", "RGBA", 24)])
def test_memory_is_what_is_said(kind: str, mode: str, most: int, tmp_path: Path) -> None:
    """3.3 GB for 268 million pixels: 12 bytes a pixel, 24 where half as many are read; 64 MB are not for pixels."""
    side = 4000
    (tmp_path / "photo").write_bytes(saved(Image.new(mode, (side, side), (128,) * len(mode)), kind))
    code = (
        "import io, resource, sys; from PIL import Image; from t2ikit import photos; photos._formats()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "content = open(sys.argv[1], 'rb').read(); before = peak(); photos.read_rgb(content); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "photo"], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(done.stdout) < most * side * side + 2**26
