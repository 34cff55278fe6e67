"""Aspect buckets of a data set: what they are called, and how large their images are.

A bucket is a set of its own below its split, ``train/0.60``, named by the width of its images over their height.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def bucket_shapes(sizes: Sequence[str], option: str = "--bucket") -> dict[str, tuple[int, int]]:
    """(H, W) of the buckets by their names, in the order of ``sizes``.

    Args:
        sizes: ``HEIGHTxWIDTH`` each, in pixels.
        option: where they are given, for messages.

    Raises:
        ValueError: one is no size, or two have the same aspect; names the option.

    Example:
        >>> bucket_shapes(["256x256", "320x192"])
        {'1.00': (256, 256), '0.60': (320, 192)}
    """
    shapes: dict[str, tuple[int, int]] = {}
    for size in sizes:
        match = re.fullmatch(r"([0-9]+)x([0-9]+)", size)
        height, width = (int(match[1]), int(match[2])) if match else (0, 0)
        if min(height, width) < 4:
            raise ValueError(f"{option} expects HEIGHTxWIDTH of at least 4 pixels each, such as 256x256; got {size!r}")
        name = f"{width / height:.2f}"
        if name in shapes:
            raise ValueError(f"{option} {size} has the aspect {name} of another bucket: give each aspect once")
        shapes[name] = height, width
    return shapes
