"""One mapping of an experiment over another, and one value of the command line over it."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from t2ikit.config.errors import ConfigError
from t2ikit.config.values import read_value

_TEXT_KEYS = ("run.name", "run.directory")
CLASS_KEYS = ("class_path", "init_args")
LIBRARIES = ("t2ikit", "lightning", "torch", "torchmetrics", "torchvision", "timm", "diffusers", "transformers")
"""Top-level packages whose classes every experiment may name."""
INHERITED = "inherited"
"""Key of the arguments of a model's former class: the new one takes those of them that it knows."""


@dataclass(frozen=True)
class Override:
    """``--key value`` of the command line; :func:`~t2ikit.config.values.read_value` says what the value means."""

    key: str
    text: str

    @property
    def value(self) -> Any:
        """``3`` an int, ``1e-3`` a float, ``[1, 2]`` a list, ``null`` None, anything else text."""
        value = read_value(self.text)
        return value if isinstance(value, str) or self.key not in _TEXT_KEYS else self.text


def merge(base: Any, new: Any) -> Any:
    """``new`` over ``base``: mappings key by key, anything else replaced.

    A changed ``class_path`` drops the old ``init_args``; a class path given as a string is ``{class_path: ...}``.
    """
    if isinstance(base, dict) and "class_path" in base and isinstance(new, str) and "${" not in new:
        new = {"class_path": new}
    if not (isinstance(base, dict) and isinstance(new, dict)):
        return copy.deepcopy(new)
    merged = copy.deepcopy(base)
    if "class_path" in base and "class_path" in new and not _same_class(base["class_path"], new["class_path"]):
        merged.pop("init_args", None)
    for key, value in new.items():
        merged[key] = merge(merged.get(key), value)
    return merged


def over(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One experiment over another."""
    return keep_arguments(base, merge(base, new))


def keep_arguments(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Keeps the arguments of a model whose class has changed beside it: the new class takes those that it knows."""
    old, new = (config.get("model") for config in (before, after))
    if not isinstance(old, dict) or not isinstance(new, dict) or old.get("class_path") in (None, new.get("class_path")):
        return after
    if "init_args" in old and not _same_class(old["class_path"], new.get("class_path")):
        kept = merge(old.get(INHERITED) or {}, old["init_args"])
        return {**after, "model": {**new, INHERITED: merge(kept, new.get(INHERITED) or {})}}
    return after


def _same_class(first: Any, second: Any) -> bool:
    """Whether two class paths mean one class: ``t2ikit.denoisers.CADI`` is also found in the module that defines it.

    A module that is neither of a library nor imported already is left alone: importing it would run its code.
    """
    if first == second or not (isinstance(first, str) and isinstance(second, str)):
        return bool(first == second)
    paths = [path.rpartition(".") for path in (first, second)]
    package = paths[0][0].partition(".")[0]
    if paths[0][2] != paths[1][2] or paths[1][0].partition(".")[0] != package:
        return False
    load = importlib.import_module if package in LIBRARIES else sys.modules.__getitem__
    try:
        classes = [getattr(load(module), name) for module, _, name in paths]
    except Exception:  # find_class reports why the import fails
        return False
    return classes[0] is classes[1]


def set_below(node: Any, names: Sequence[str], override: Override, path: tuple[str, ...] = ()) -> Any:
    """A copy of ``node`` with the override's value at ``names`` below it."""
    name, rest = names[0], names[1:]
    if isinstance(node, list):
        if not (name.isascii() and name.isdecimal() and int(name) < len(node)):
            raise ConfigError(
                f"--{override.key}: {'.'.join(path)} is a list of {len(node)}, '{name}' is no index of it"
            )
        index = int(name)
        below = set_below(node[index], rest, override, (*path, name)) if rest else merge(node[index], override.value)
        return [*node[:index], below, *node[index + 1 :]]
    if isinstance(node, str) and "." in node:
        node = {"class_path": node}
    if not isinstance(node, dict):
        node = {}
    if _is_class(node, path) and name not in CLASS_KEYS:
        names = ["init_args", *names]
        name, rest = names[0], names[1:]
    if rest:
        return {**node, name: set_below(node.get(name), rest, override, (*path, name))}
    return merge(node, {name: override.value})


def _is_class(node: dict[str, Any], path: tuple[str, ...]) -> bool:
    path = path[2:] if path[:1] == ("stages",) else path
    always = path in (("model",), ("data",)) or (len(path) == 2 and path[0] in ("callbacks", "loggers"))
    return always or "class_path" in node or "init_args" in node


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node
