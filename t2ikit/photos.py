"""The one reader of pictures: the bytes of a file to 8-bit RGB as it is meant to be seen, whole or as a square; and
pixels to compressed bytes and back.

Photos are decoded in full and resized once, as the papers' data were. Pillow's draft mode would decode a large JPEG at
a half or a quarter of its size, which is faster and not the same picture: blocks are averaged before the resize.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from t2ikit import jpeg

MAX_PIXELS = 2**28
"""Larger pictures are taken for bombs: a worker takes up to 3.3 GB until they are RGB: 8 to 10 bytes a pixel."""

_HALF = ("WEBP", "TIFF", "AVIF", "JPEG2000", "ICO")
"""Formats whose decoders take 16 to 25 bytes a pixel: half as many are read."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
"""What is decoded. Pillow reads more: an EPS file would start another program, and any bytes may pass for a TGA."""

# fmt: off
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm",
    ".avif", ".jp2", ".j2k", ".heic", ".heif", ".ico",
)
# fmt: on
"""Endings of names, in lower case, by which a file says that it is a picture. HEIC is refused when it is decoded."""

_LIMIT = threading.Lock()
_HEIC = re.compile(rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", re.DOTALL)
_ORIENTATION = 0x0112  # the tag of EXIF and TIFF
_ON_ITS_SIDE = range(5, 9)  # its values


class BadImage(ValueError):
    """A file that holds no image that can be used; the message is the reason."""


class WrongSize(BadImage):
    """A picture of another size than the one asked for."""


class TooSmall(BadImage):
    """A picture with a shorter side than asked for; the message begins with ``SIDE_BELOW``."""


SIDE_BELOW = "a side is below"


def decode(content: bytes, size: int | tuple[int, int], place: float = 0.5, min_side: int = 0) -> np.ndarray:
    """A part of a picture as large as its aspect allows, resized (bilinear, antialiased); see :func:`read_rgb`.

    Args:
        content: the bytes of the file.
        size: (H, W) in pixels, or S of a square.
        place: of the part along the side that is cut, from 0 (left or top) to 1; 0.5 is the centre.
        min_side: the shorter side must have as many pixels, which is compared before anything is decoded.

    Returns:
        [3, H, W] uint8.

    Raises:
        TooSmall: the shorter side has fewer.
        BadImage: the reason why there is no image.
    """
    image = _rgb_image(content, None, min_side)
    height, width = (size, size) if isinstance(size, int) else size
    across = min(image.width, image.height * width / height)
    down = min(image.height, image.width * height / width)
    left, top = (image.width - across) * place, (image.height - down) * place
    box = (left, top, left + across, top + down)
    return _planes(image.resize((width, height), Image.Resampling.BILINEAR, box=box))


def read_rgb(content: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    """A whole picture.

    Grey, palette, CMYK, 16-bit and rotated (EXIF) pictures become 8-bit RGB as they are meant to be seen; transparency
    becomes white; of an animation, the first frame counts; colour profiles are ignored. The format is read from the
    content, not from the name.

    Args:
        content: the bytes of the file.
        size: the (width, height) that it must have, which is compared before anything is decoded.

    Returns:
        [3, H, W] uint8.

    Raises:
        WrongSize: it has another size.
        BadImage: the reason why there is no image.
    """
    return _planes(_rgb_image(content, size))


def size_of(file: BinaryIO) -> tuple[int, int]:
    """Width and height of a picture as :func:`read_rgb` gives it; nothing is decoded.

    Raises:
        BadImage: the file is no picture.
        OSError: it cannot be read.
    """
    with _reasons(file.read(16)):
        image = _opened(file)
        try:
            turned = _will_turn(image, file)
        except Exception:  # as where it is read: unreadable EXIF turns nothing
            turned = False
        return (image.height, image.width) if turned else image.size


def _will_turn(image: Image.Image, file: BinaryIO) -> bool:
    """Whether reading a picture of this file that has been opened swaps its width and height."""
    if _ORIENTATION in getattr(image, "tag_v2", ()):
        return False  # Pillow tells the size of a TIFF as its tag turns it, before it is read
    told = _without_pixels(file) if image.format == "PNG" else image
    return Image.Image.getexif(told).get(_ORIENTATION) in _ON_ITS_SIDE


def _without_pixels(file: BinaryIO) -> Image.Image:
    """A PNG and whatever it tells about itself; what stands behind the pixels, Pillow reads only after decoding."""
    file.seek(0)
    parts = [file.read(33)]  # the mark of a PNG and its size
    while len(head := file.read(8)) == 8 and not head.endswith(b"IEND"):
        size = int.from_bytes(head[:4], "big") + 4  # with its check sum
        if head[4:] in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            parts += [head, file.read(size)]
        else:
            file.seek(size, io.SEEK_CUR)
    return _opened(b"".join([*parts, b"\0\0\0\0IDAT"]))


def compress(pixels: np.ndarray, codec: str) -> bytes:
    """The bytes of a lossless picture file; they depend on the version of Pillow, its pixels do not.

    Args:
        pixels: [3, H, W] uint8.
        codec: "png" or "webp".
    """
    options = {"png": {}, "webp": {"lossless": True, "exact": True}}[codec]
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(content, codec.upper(), **options)
    return content.getvalue()


def decompress(content: bytes | memoryview) -> np.ndarray:
    """The inverse of :func:`compress`: [3, H, W] uint8.

    Raises:
        BadImage: the bytes are no picture of these codecs, or are cut short.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as image:
            return _planes(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImage(f"{type(error).__name__}: {error}") from error


def _planes(image: Image.Image) -> np.ndarray:
    """[3, H, W] uint8 of an RGB image."""
    # Plane by plane out of Pillow: an array of pixels would have to be transposed, another 50 us at 256 x 256.
    planes = np.empty((3, image.height, image.width), np.uint8)
    for plane, band in zip(planes, "RGB", strict=True):
        plane[:] = np.frombuffer(image.tobytes("raw", band), np.uint8).reshape(plane.shape)
    return planes


def _rgb_image(content: bytes, size: tuple[int, int] | None, min_side: int = 0) -> Image.Image:
    if not content:
        raise BadImage("empty file")
    with _reasons(content):
        image = _opened(content)
        width, height = image.size
        most = MAX_PIXELS // (2 if image.format in _HALF else 1)
        if width * height > most:
            raise BadImage(f"{width} x {height} pixels, more than {most:,}")
        if min(width, height) < min_side:
            raise TooSmall(f"{SIDE_BELOW} {min_side}: {width} x {height} pixels")
        if size is not None and sorted(size) != sorted(image.size):
            raise _wrong_size(image, size)
        is_jpeg = image.format in ("JPEG", "MPO")
        if is_jpeg:
            reason = jpeg.missing_of(content)
            if reason is not None:
                raise BadImage(reason)
        image.load()
        if is_jpeg and jpeg.is_half(image, content, _opened):
            raise BadImage("the data end before the image does: half a file")
        image = _as_rgb(_upright(image))
        if size is not None and image.size != size:
            raise _wrong_size(image, size)
        return image


def _wrong_size(image: Image.Image, size: tuple[int, int]) -> WrongSize:
    return WrongSize(f"{image.width} x {image.height} pixels, not {size[0]} x {size[1]}")


@contextmanager
def _reasons(content: bytes) -> Iterator[None]:
    """Turns whatever the decoders raise into BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata: what cannot be used raises
            yield
    except Image.UnidentifiedImageError as error:
        if _HEIC.match(content):
            raise BadImage("a HEIC picture, which is not read: convert it to JPEG") from error
        raise BadImage("not an image") from error
    except BadImage:
        raise
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # decoders of broken files raise whatever they like
        raise BadImage(" ".join(f"{type(error).__name__}: {error}".split())) from error


def _opened(content: bytes | BinaryIO) -> Image.Image:
    """The picture before it is decoded; Pillow's own limit of pixels, which is lower than ours, does not count."""
    with _LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            stream = io.BytesIO(content) if isinstance(content, bytes) else content
            return Image.open(stream, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with; it takes an unknown name for an error of the file."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


# ------------------------------------------------------------------ any picture to upright 8-bit RGB


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; unreadable EXIF turns nothing."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # the pixels are good
        return image
    return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Transparency to white, some rows at a time: the layers of a large picture would take four times its memory."""
    whole = Image.new("RGB", image.size)
    rows = max(1, jpeg.PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        layers = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        whole.paste(Image.alpha_composite(white, layers).convert("RGB"), (0, top))
    return whole


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits to [H, W] uint8; Pillow's own conversion cuts them off at 255."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not np.isfinite(low) or not np.isfinite(high) or low < 0 or high > 65535:
        raise BadImage(f"grey values of mode {image.mode} outside 0 .. 65535")
    if image.mode == "F":
        scale = 255.0 if high <= 1 else 1.0 if high <= 255 else 255 / 65535
    else:
        scale = 1.0 if image.mode == "I" and high <= 255 else 255 / 65535
    clear = image.info.get("transparency")
    eight = np.empty(values.shape, np.uint8)
    rows = max(1, jpeg.PIXELS_AT_ONCE // image.width)
    for top in range(0, image.height, rows):
        part = values[top : top + rows].astype(np.float32)
        if isinstance(clear, int):
            part[part == clear] = 255 / scale
        eight[top : top + rows] = np.rint(part * scale).astype(np.uint8)
    return eight
