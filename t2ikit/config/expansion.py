"""A bound on what the interpolations of an experiment become: 26 lines can stand for a text of 60 GB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf.base import Container
from omegaconf.basecontainer import BaseContainer

MOST = 2**24
"""Characters that an experiment may become; each text, number, list and mapping counts for at least ``_STEP``."""
_STEP = 256
_METHODS = (
    (Container, "resolve_parse_tree"),
    (Container, "_resolve_node_interpolation"),
    (BaseContainer, "_to_content"),
)
"""Of OmegaConf: the value of a text with interpolations, the node that one names, a list or mapping as it is."""


@contextmanager
def bounded() -> Iterator[None]:
    """Around the resolution of an experiment.

    Raises:
        ValueError: it becomes more than ``MOST``; where a text does, OmegaConf adds the key.
    """
    spent = 0
    originals = [(owner, name, vars(owner)[name]) for owner, name in _METHODS]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            result = original(*args, **kwargs)
            spent += _size(result)
            if spent > MOST:
                raise ValueError(f"the interpolations of this experiment become more than {MOST:,} characters")
            return result

        return method

    for owner, name, original in originals:
        is_static = isinstance(original, staticmethod)
        method = counted(original.__func__ if is_static else original)
        setattr(owner, name, staticmethod(method) if is_static else method)
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _size(result: Any) -> int:
    """Of a value, a node, or a list or mapping without what is below its values, which was counted before."""
    value = result._value() if hasattr(result, "_value") else result
    if isinstance(value, str):
        return max(_STEP, len(value))
    return _STEP * (1 + len(value)) if type(value) in (dict, list) and value is result else _STEP
