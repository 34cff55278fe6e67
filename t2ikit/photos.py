"""The bytes of a file to the square of pixels that is stored, and pixels to compressed bytes and back.

Photos are decoded in full and resized once, as the papers' data were. Pillow's draft mode would decode a large JPEG at
a half or a quarter of its size, which is faster and not the same picture: blocks are averaged before the resize.
"""

from __future__ import annotations

import io
import warnings
from functools import cache

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 2**27
"""Larger images are taken for bombs: 134 million pixels are 400 MB when decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
"""What is decoded. Pillow reads more: an EPS file would start another program, and any bytes may pass for a TGA."""


class BadImage(ValueError):
    """A file that holds no image that can be used; the message is the reason."""


def decode(content: bytes, size: int) -> np.ndarray:
    """The centre square of an image, resized to S x S (bilinear, antialiased).

    Grey, palette, CMYK, 16-bit and rotated (EXIF) images become 8-bit RGB as they are meant to be seen; transparency
    becomes white; of an animation, the first frame counts; colour profiles are ignored. The format is read from the
    content, not from the name.

    Args:
        content: the bytes of the file.
        size: S in pixels.

    Returns:
        [3, S, S] uint8.

    Raises:
        BadImage: the reason why there is no image.
    """
    if not content:
        raise BadImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and odd metadata: what cannot be used raises
            image: Image.Image = Image.open(io.BytesIO(content), formats=_formats())
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
            if image.format == "JPEG" and _ends_in_zeros(content):
                raise BadImage("the file ends in zeros before the image does, as half a download does")
            image.load()
            image = _as_rgb(_upright(image))
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise BadImage("not an image") from error
    except BadImage:
        raise
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # decoders of broken files raise whatever they like
        raise BadImage(" ".join(f"{type(error).__name__}: {error}".split())) from error
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return _planes(square)


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
    planes = bytearray().join(image.tobytes("raw", band) for band in "RGB")
    return np.frombuffer(planes, np.uint8).reshape(3, image.height, image.width)


@cache
def _formats() -> tuple[str, ...]:
    """Those that this Pillow was built with; it takes an unknown name for an error of the file."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _ends_in_zeros(content: bytes) -> bool:
    """Whether a JPEG lacks its end mark and has zeros instead, which its decoder takes for an image of grey."""
    if not content.endswith(bytes(16)):
        return False
    return content.find(b"\xff\xd9", content.rfind(b"\xff\xda")) < 0  # the end mark, behind the start of the last scan


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; unreadable EXIF turns nothing."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # the pixels are good
        return image
    return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Grey values of more than 8 bits to [H, W] uint8; Pillow's own conversion cuts them off at 255."""
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
        raise BadImage(f"grey values of mode {image.mode} outside 0 .. 65535")
    if image.mode == "F":
        scale = 255.0 if values.max() <= 1 else 1.0 if values.max() <= 255 else 255 / 65535
    else:
        scale = 1.0 if image.mode == "I" and values.max() <= 255 else 255 / 65535
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        values[values == clear] = 255 / scale
    return np.rint(values * scale).astype(np.uint8)
