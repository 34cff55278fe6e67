"""Pictures that a record holds compressed, without loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from t2ikit.photos import BadImage, compress, decompress

CODECS = ("png", "webp")


def stored_picture(pixels: np.ndarray, codec: str) -> np.ndarray | Compressed:
    """Pixels [3, H, W] uint8 as a record holds them: compressed, or as they are where ``codec`` is empty."""
    return Compressed(codec, compress(pixels, codec), pixels.shape) if codec else pixels


@dataclass(frozen=True)
class Compressed:
    """An 8-bit picture as the bytes of a PNG or a lossless WebP file.

    Attributes:
        codec: "png" or "webp".
        content: the bytes of the file; their number differs from picture to picture.
        shape: (3, H, W), of the decoded picture.
    """

    codec: str
    content: bytes | memoryview
    shape: tuple[int, ...]

    def decode(self) -> np.ndarray:
        """The pixels, [3, H, W] uint8.

        Raises:
            ValueError: the content is no picture, or one of another shape; the set is damaged.
        """
        try:
            pixels = decompress(self.content)
        except BadImage as error:
            raise ValueError(f"a compressed picture cannot be decoded ({error}): the set is damaged") from error
        if pixels.shape != self.shape:
            raise ValueError(f"a compressed picture decodes to {pixels.shape}, not {self.shape}: the set is damaged")
        return pixels
