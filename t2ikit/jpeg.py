"""JPEG files that end too early: their decoder fills what is missing and reports nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageChops

PIXELS_AT_ONCE = 2**22
"""Of a picture that are compared or converted together: layers of a whole large one would take times its memory."""
_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # within a scan, FF00 is a byte and FFD0 .. FFD7 belong to the data
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{64}")
_FILL = np.random.default_rng(0).integers(0, 255, 512, np.uint8).tobytes()
_PROGRESSIVE = (0xC2, 0xCA)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def missing_of(content: bytes) -> str | None:
    """Why a JPEG lacks data behind some point, where its bytes say so; None where they do not.

    Zeros or text stand in place of the rest, or scans never come. Its decoder takes what is missing for grey, or for
    zero coefficients.
    """
    tail = content.removesuffix(b"\xff\xd9")[-64:]
    text = _TEXT.fullmatch(tail) is not None and len(set(tail)) > 8
    if (text or tail.endswith(bytes(16))) and _scans(content)[-1:]:
        ended = content.endswith(b"\xff\xd9")
        inside = _scans(content)[-1][2] >= len(content) - 2
        if inside and text:
            return "the file ends in text before the image does, as a download does that failed half way"
        if inside and not ended:
            return "the file ends in zeros before the image does, as half a download does"
    return None if _has_all_scans(content) else "the file ends before its last scans: it is not complete"


def is_half(image: Image.Image, content: bytes, opened: Callable[[bytes], Image.Image]) -> bool:
    """Whether the data of a JPEG end before its last block does: an end mark behind half a file.

    The decoder fills the rest of such a scan with the middle grey. A picture that ends in such a grey, and a
    progressive one, whose last scan only refines it, is decoded once more with other bytes behind the data of every
    scan: a complete one does not reach them and stays the same.

    Args:
        image: the picture, decoded.
        content: its file.
        opened: how its file is opened, once more.
    """
    corner = image.crop((image.width - 1, image.height - 1, *image.size))
    grey = image.mode == "CMYK" or abs(corner.convert("L").tobytes()[0] - 128) <= 2
    if not grey and not image.info.get("progressive"):
        return False
    pieces, start = [], 0
    for _, _, end in _scans(content):
        pieces += [content[start:end], _FILL]
        start = end
    other = opened(b"".join([*pieces, content[start:]]))
    other.load()
    rows = max(1, PIXELS_AT_ONCE // image.width)
    parts = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    return other.size != image.size or any(
        ImageChops.difference(image.crop(part), other.crop(part)).getbbox(alpha_only=False) for part in parts
    )


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte of its content, end) of the segments of a JPEG up to its end mark, scan data left out."""
    position = 2
    while (match := _MARKER.search(content, position)) is not None and match.end() + 2 <= len(content):
        marker, start = content[match.end() - 1], match.end()
        if marker == 0xD9:
            return
        end = start if marker in (0x01, 0xD8) else start + int.from_bytes(content[start : start + 2], "big")
        yield marker, start, end
        position = end


def _scans(content: bytes) -> list[tuple[int, int, int]]:
    """(first byte of the header, first byte of the data, end of the data) of every scan of a JPEG."""
    scans = []
    for marker, start, end in _segments(content):
        if marker == 0xDA:
            behind = _MARKER.search(content, end)
            scans.append((start, end, behind.start() if behind else len(content)))
    return scans


def _has_all_scans(content: bytes) -> bool:
    """Whether scans bring every coefficient of every component to its full precision."""
    precision: dict[int, list[int]] = {}  # of each component: the bits that are missing of its 64 coefficients
    progressive = False
    for marker, start, end in _segments(content):
        if marker in _FRAMES and not precision:
            progressive = marker in _PROGRESSIVE
            precision = {content[offset]: [255] * 64 for offset in range(start + 8, end - 2, 3)}
        elif marker == 0xDA and end <= len(content):
            count = content[start + 2]
            first, last, approximation = content[end - 3 : end] if progressive else (0, 63, 0)
            for component in content[start + 3 : start + 3 + 2 * count : 2]:
                if component in precision:
                    precision[component][first : last + 1] = [approximation & 15] * (last + 1 - first)
            if all(not any(missing) for missing in precision.values()):
                return True  # of most files, at the first scan: its data are not searched for a marker
    return False
