"""The error of every mistake in an experiment, and the nearest known name that its message ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A mistake of the user: the message names the key and what to change. Ends a command with status 2."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them where they are few.

    Args:
        name: as it was given; a key of YAML may be a number.
        known: the names that are allowed.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if close:
        return f"; nearest known: '{close[0]}'"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= 20 else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
