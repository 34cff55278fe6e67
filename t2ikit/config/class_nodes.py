"""Class nodes: ``{class_path: ..., init_args: ...}`` checked one by one, innermost first, and built.

So the message of a mistake names the very key; jsonargparse on the whole tree would answer with the whole tree.
"""

from __future__ import annotations

import copy
from argparse import ArgumentError
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.imports import ImportGuard, find_class, is_path, leaves
from t2ikit.config.merging import CLASS_KEYS
from t2ikit.config.messages import explain, located
from t2ikit.config.origins import NONE_BUT_KNOWN, Origins
from t2ikit.config.values import not_finite, numbers_as_text, odd_number

# Exceptions of a constructor over a mistake of the user; any other is a defect and keeps its traceback.
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, TypeError, FileNotFoundError, ImportError)


@dataclass(frozen=True)
class Component:
    """One checked class node of the top level: ``model``, ``data`` or ``callbacks.<name>``."""

    key: str
    cls: type
    class_path: str
    arguments: Namespace
    guard: ImportGuard

    def build(self, user_errors: tuple[type[Exception], ...] = USER_ERRORS, whole: bool = True) -> Any:
        """The instance.

        Args:
            user_errors: what a constructor raises over a mistake of the user; anything else is a defect.
            whole: False builds the classes below it only, and returns the arguments.

        Raises:
            ConfigError: a constructor (of this class or of one below it) refuses its arguments.
        """
        refused: list[tuple[type, Exception]] = []

        def construct(cls: type, *args: Any, **kwargs: Any) -> Any:
            try:
                return cls(*args, **kwargs)
            except Exception as error:  # jsonargparse wraps what it meets inside an Optional: keep the first
                refused.append((cls, error))
                raise

        try:
            with self.guard.watching():
                parser, instantiators = class_parser(self.cls), [(construct, object, True)]
                return parser.instantiate(self.arguments, instantiate_groups=whole, instantiators=instantiators).it
        except Exception as error:
            cls, first = refused[0] if refused else (self.cls, error)
            if not isinstance(first, user_errors):
                raise first from None
            reason = self.guard.reason(str(first))
            raise reason or ConfigError(located(f"{self.key} ({cls.__name__})", first)) from first

    def node(self) -> dict[str, Any]:
        """The class node with every default, as plain YAML; a default that YAML cannot say is left out."""
        arguments = self.arguments.get("it")
        plain = _plain(arguments.as_dict()) if isinstance(arguments, Namespace) else {}
        return {"class_path": self.class_path, "init_args": plain} if plain else {"class_path": self.class_path}


def check_component(
    key: str, node: Any, base: type, name: str | None = None, origins: Origins = NONE_BUT_KNOWN
) -> Component:
    """Checks a class node of the top level and all nodes below it.

    Args:
        key: path of the node in the experiment.
        node: ``{class_path, init_args}`` or the class path alone.
        base: what the class must derive from.
        name: given to a constructor that takes ``name`` where the node has none.
        origins: which modules may be named.

    Raises:
        ConfigError: an unknown class or key, a wrong type, a missing argument.
    """
    if isinstance(node, str):
        node = {"class_path": node}
    if not isinstance(node, dict) or "class_path" not in node:
        raise ConfigError(f"{key}: expected {{class_path: ..., init_args: ...}}, got {node!r}")
    look_at(node, key, origins, base)
    cls = find_class(node["class_path"], f"{key}.class_path", origins)
    if not issubclass(cls, base):
        home = base.__module__.partition(".")[0]
        raise ConfigError(f"{key}.class_path: {node['class_path']} is no {base.__name__} of {home}")
    arguments = node.get("init_args") or {}
    if name is not None and isinstance(arguments, dict) and "name" in accepted(cls):
        node = {**node, "init_args": {"name": name, **arguments}}
    return _check_class(node, key, origins)


def look_at(node: Any, key: str, origins: Origins, base: type = object) -> None:
    """Looks at every class node in a value before anything that they name is imported; see :meth:`Origins.look`."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            look_at(value, f"{key}.{index}", origins)
    elif isinstance(node, dict):
        class_path = node.get("class_path")
        if isinstance(class_path, str) and is_path(class_path) and "." in class_path:
            origins.look(class_path, f"{key}.class_path", base)
        for name, value in node.items():
            look_at(value, f"{key}.{name}", origins)


@cache
def class_parser(cls: type) -> ArgumentParser:
    """jsonargparse's parser of a constructor, under the key ``it``; an argument without a type takes anything."""
    if is_dataclass(cls):  # a field of a base class in another module has a type that only that module can resolve
        with suppress(NameError, TypeError):
            kinds = get_type_hints(cls, include_extras=True)
            annotations = cls.__init__.__annotations__
            annotations.update({name: kinds[name] for name in annotations if name in kinds})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "it", fail_untyped=False)
    return parser


def accepted(cls: type) -> tuple[str, ...]:
    """Names of the constructor's arguments, inherited ones included."""
    defaults = class_parser(cls).get_defaults().get("it")
    return tuple(defaults.as_dict()) if isinstance(defaults, Namespace) else ()


def _check_class(node: dict[str, Any], key: str, origins: Origins) -> Component:
    """One class node with typed arguments; the nodes below it are checked first."""
    cls = find_class(node["class_path"], f"{key}.class_path", origins)
    known = accepted(cls)
    for name in node:
        if name not in CLASS_KEYS:
            remedy = f"; write it under {key}.init_args" if name in known else nearest(name, CLASS_KEYS)
            raise ConfigError(f"{key}: unknown key '{name}'{remedy}")
    arguments = node.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"{key}.init_args: expected a mapping, got {arguments!r}")
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"{key}.init_args.{name}: {cls.__name__} takes no '{name}'{_elsewhere(cls, name)}{nearest(name, known)}"
            )
    for name, value in arguments.items():
        check_below(value, f"{key}.init_args.{name}", origins)
    return parse(cls, arguments, key, origins, node["class_path"])


def check_below(node: Any, key: str, origins: Origins = NONE_BUT_KNOWN) -> None:
    """Checks the class nodes inside a value."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            check_below(value, f"{key}.{index}", origins)
    elif isinstance(node, dict) and "class_path" in node:
        _check_class(node, key, origins)
    elif isinstance(node, dict):
        for name, value in node.items():
            check_below(value, f"{key}.{name}", origins)


def parse(cls: type, arguments: dict[str, Any], key: str, origins: Origins, class_path: str = "") -> Component:
    """The class with its arguments typed and completed with defaults.

    Raises:
        ConfigError: a wrong type or a missing argument, or a class that may not be named.
    """
    arguments = numbers_as_text(cls, arguments)
    below = f"{key}.init_args" if class_path else key
    parser, guard = class_parser(cls), ImportGuard(cls, arguments, below, origins)
    try:
        with guard.watching():
            typed = parser.parse_object({"it": copy.deepcopy(arguments)})  # which changes lists in place
    except (ArgumentError, ValueError, TypeError, KeyError) as error:
        if fault := not_finite(str(error), leaves(arguments, below)):
            raise ConfigError(fault) from None
        guard.raise_refusal(str(error))
        raise ConfigError(explain(str(error), below)) from None
    guard.raise_refusal()
    if fault := odd_number(arguments, typed.get("it"), below):
        raise ConfigError(fault)
    return Component(key, cls, class_path, typed, guard)


class _Unsaid(Exception):
    """A value that YAML cannot say."""


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        plain = {}
        for key, item in value.items():
            try:
                plain[str(key)] = _plain(item)
            except _Unsaid:
                continue
        return plain
    raise _Unsaid


def _elsewhere(cls: type, name: str) -> str:
    """Names a sibling class of the same package that does take the argument."""
    package = cls.__module__.partition(".")[0]
    for base in cls.__mro__[1:]:
        if base.__module__.partition(".")[0] != package:
            continue
        siblings: list[type] = base.__subclasses__()
        for sibling in siblings:
            if sibling is not cls and sibling.__module__.partition(".")[0] == package and name in accepted(sibling):
                return f" (an argument of {sibling.__name__})"
    return ""
