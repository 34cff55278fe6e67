"""Does a class keep its contract? ``python -m t2ikit.testing CLASS_PATH``, or :func:`examine` in a test of your own.

Rooms are imported when a class is tried, so that ``--help`` needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ikit.testing.base import Report

__all__ = ["examine"]


def examine(build: Callable[[], Any], arrays: Mapping[str, tuple[int, ...]] | None = None, title: str = "") -> Report:
    """Tries a denoiser, objective, term, solver, augmentation or metric; its base says which it is.

    Args:
        build: makes a new one each time, with small sizes, such as ``lambda: MyDenoiser(width=32)``.
        arrays: shapes, without their first axis, of the arrays of a record that it reads.
        title: of the report; default the name of the class.

    Raises:
        ValueError: the class is none of these kinds.

    Example:
        >>> assert examine(lambda: MyDenoiser(width=32)).ok  # doctest: +SKIP
    """
    from t2ikit.testing.kinds import run

    return run(build, arrays or {}, title)
