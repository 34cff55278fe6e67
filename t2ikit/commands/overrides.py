"""Overrides of an experiment on a command line, ``--KEY VALUE`` or ``--KEY=VALUE``, beside a command's own options."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from t2ikit.config.compose import check_option
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import Override


def take_overrides(
    words: Sequence[str], is_override: Callable[[str], bool] = lambda key: "." in key
) -> tuple[list[str], list[Override]]:
    """Splits a command line into the words of the command itself and the overrides of the experiment.

    Args:
        words: the command line behind the name of the command.
        is_override: whether ``--key`` is one; by default a key of several parts, such as ``trainer.max_steps``.

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
                check_option(key)
                raise ConfigError(f"--{key} needs a value: --{key} VALUE or --{key}=VALUE")
            value = left.pop(0)
        overrides.append(Override(key, value))
    return rest, overrides
