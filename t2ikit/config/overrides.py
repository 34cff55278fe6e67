"""Overrides of an experiment: from a command line, ``--KEY VALUE`` or ``--KEY=VALUE``, and from values of Python."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from numbers import Integral, Real
from typing import Any

from t2ikit.config.compose import check_option
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import TOP_KEYS
from t2ikit.config.merging import Override, flatten


def take_overrides(
    words: Sequence[str],
    is_override: Callable[[str], bool] = lambda key: "." in key,
    check: Callable[[str], object] = check_option,
) -> tuple[list[str], list[Override]]:
    """Splits a command line into the words of the command itself and the overrides of the experiment.

    Args:
        words: the command line behind the name of the command.
        is_override: whether ``--key`` is one; by default a key of several parts, such as ``trainer.max_steps``.
        check: refuses a key that there is not, where its value is missing; by default one of no experiment.

    Raises:
        ConfigError: an override without its value.
    """
    rest, overrides, left = list[str](), list[Override](), list(words)
    while left:
        word = left.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key or not is_override(key):
            rest.append(word)
            continue
        if not equals:
            if not left or left[0].startswith("--"):
                check(key)
                raise ConfigError(f"--{key} needs a value: --{key} VALUE or --{key}=VALUE")
            value = left.pop(0)
        overrides.append(Override(key, value))
    return rest, overrides


def take_all_overrides(words: Sequence[str]) -> tuple[list[str], list[Override]]:
    """:func:`take_overrides` with the keys of one part, such as ``--seed_everything``."""
    return take_overrides(words, lambda key: "." in key or key in TOP_KEYS)


def overrides_of(options: Mapping[str, Any]) -> tuple[Override, ...]:
    """The overrides that mean these values.

    Args:
        options: by key, ``{"trainer.max_steps": 100}``, or nested mappings. Paths, tuples, members of enumerations and
            scalars of numpy stand for text, lists, their values and numbers.

    Raises:
        ConfigError: a value that a file cannot hold, such as a set, an object or NaN; names its key.
    """
    pairs = flatten(dict(options)) if options else ()
    return tuple(Override(key, _written(value, key)) for key, value in pairs)


def _written(value: Any, key: str) -> str:
    """A value of Python as :func:`~t2ikit.config.values.read_value` reads it."""
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return _quoted(value, key)
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        if not math.isfinite(value):
            raise ConfigError(f"{key}: expected a finite number, got {value}")
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_written(item, f'{key}.{index}') for index, item in enumerate(value))}]"
    if isinstance(value, Mapping):
        for name in value:
            if type(name) not in (str, int):
                raise ConfigError(f"{key}: {name!r} is no key of a mapping: expected text or a whole number")
        pairs = (f"{_written(name, key)}: {_written(item, f'{key}.{name}')}" for name, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    hint = "give a list, which has an order" if isinstance(value, (set, frozenset)) else ""
    hint = hint or "give numbers, text, lists or mappings; a class is {class_path: ..., init_args: ...}"
    raise ConfigError(f"{key}: an experiment cannot hold a {type(value).__name__}: {hint}")


def _quoted(text: str, key: str) -> str:
    """Text in double quotes, with escapes for what YAML does not take as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{key}: half a character in {ascii(text)}") from None
    escaped = "".join(
        f"\\{character}" if character in '"\\' else character if character.isprintable() else f"\\U{ord(character):08x}"
        for character in text
    )
    return f'"{escaped}"'
