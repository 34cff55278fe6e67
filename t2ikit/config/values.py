"""Values of an experiment: what a word of the command line means, and text that YAML would take for something else.

YAML has more numbers than people write: 0100 is 64, 12:30 is 750, and a # ends a text. Here a value of the command line
is a number, ``true``, ``false`` or ``null`` only where it plainly looks like one; in brackets, braces or quotes it is
YAML; anything else is text, whole. In a file, what YAML would take for another number or for a truth value is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from typing import Any, get_type_hints

import yaml

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,4000})")  # Python reads no number of more digits than 4,300
_FLOAT = re.compile(r"-?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
MOST_VALUES = 100_000
"""Of a YAML file of a run, each repeated as often as aliases repeat it."""
_CONSTANTS = {
    **dict.fromkeys(("null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)
_LIKE_A_NUMBER = re.compile(r"[-+]?[0-9_.:]*[0-9][0-9_.:]*([eE][-+]?[0-9]+)?")
"""Text that one of the loaders of YAML may take for a number."""
_WITH_EXPONENT = re.compile(r"[-+]?[0-9_.]*[0-9][0-9_.]*[eE][-+]?[0-9]+")
_FRACTION = re.compile(r"-?\.[0-9].*")
_TAG = "tag:yaml.org,2002:"
_RESOLVER = yaml.resolver.Resolver()
_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML was built with it
_MOST_LEVELS = 500
_LONGEST = 60  # characters of a value in a message


class Ambiguous(yaml.MarkedYAMLError):
    """A value of a file that some readers of YAML take for one thing and others for another."""


class _Loader(yaml.SafeLoader):
    """YAML whose plain scalars mean what :func:`read_value` says."""


class _Dumper(yaml.SafeDumper):
    """YAML that quotes text which a loader may take for a number."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("!plain", re.compile(r".*", re.DOTALL), None)
_Loader.add_constructor("!plain", lambda _, node: _plain_value(node.value) if node.value else None)


def _quoted_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _LIKE_A_NUMBER.fullmatch(text) else None)


_Dumper.add_representer(str, _quoted_text)


def read_value(text: str) -> Any:
    """What a value on the command line means.

    Example:
        >>> [read_value(text) for text in ("3", "1e-3", "null", "[1, 2]", "'3'", "My Photos #2", "0100", "12:30")]
        [3, 0.001, None, [1, 2], '3', 'My Photos #2', '0100', '12:30']
    """
    if text.lstrip()[:1] in ("[", "{", "'", '"'):
        with suppress(yaml.YAMLError):  # text that begins with a bracket
            return yaml.load(text, Loader=_Loader)
    return _plain_value(text)


def _plain_value(text: str) -> Any:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def check_file_values(text: str) -> None:
    """Refuses values of an experiment file that do not plainly say what they are.

    Args:
        text: of the file. Where it is nested too deeply, or is no YAML, reading it says so.

    Raises:
        Ambiguous: a value without quotes that YAML 1.1 takes for a number or a truth value, and the command line for
            text (0100, 12:30, yes), or the other way round; or a value with a tag (``!!int``).
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Parser):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_LEVELS:
            return
        tag = getattr(event, "tag", None)
        mark: Any = event.start_mark  # of the parser in C or in Python
        if tag not in (None, "!", f"{_TAG}str"):
            shown = tag.replace(_TAG, "!!")[:_LONGEST]
            raise Ambiguous(problem=f"{shown}: write the value without its tag", problem_mark=mark)
        if isinstance(event, yaml.ScalarEvent) and event.implicit[0] and (problem := _ambiguity(event.value)):
            raise Ambiguous(problem=problem, problem_mark=mark)


def _ambiguity(text: str) -> str:
    """What is wrong with a value of a file that stands without quotes; nothing for a plain one."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_TAG)
    ours = _plain_value(text)
    if not isinstance(ours, str):
        dotted = isinstance(ours, float) and tag == "str" and _FRACTION.fullmatch(text)
        return _advice(text, repr(ours)) if dotted else ""
    if tag == "bool":
        return _advice(text, str(yaml.safe_load(text)).lower())
    if tag == "value":
        return f"write {text!r} in quotes"
    if tag == "int" or (tag == "float" and text.lstrip("-+").lower() not in (".inf", ".nan")):
        return _advice(text, str(yaml.safe_load(text)))
    if _WITH_EXPONENT.fullmatch(text) and text.count(".") < 2:
        return _advice(text, repr(float(text.replace("_", ""))))
    return ""


def _advice(text: str, value: str) -> str:
    text, value = text[:_LONGEST], value[:_LONGEST]
    return f"{text} is {value} to some readers of YAML and text to others: write {value}, or {text!r} in quotes"


def to_yaml(config: dict[str, Any]) -> str:
    """An experiment as a file that reads back the same: a run called 1e-4 is not called 0.0001 then."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _StoredLoader(yaml.SafeLoader):
    """YAML without merge keys: ten lines of them fill the memory while they are read."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "a merge key", key.start_mark)


def parse_stored(text: str) -> Any:
    """The content of a YAML file of a run folder, which may come from a stranger.

    Raises:
        ValueError: it is nested too deeply, or its aliases make more than ``MOST_VALUES`` of it.
        yaml.YAMLError: it is no YAML.
    """
    try:
        content = yaml.load(text, Loader=_StoredLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    left, count = [content], 0
    while left:
        node = left.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        left.extend(node.values() if isinstance(node, dict) else node if isinstance(node, (list, set, tuple)) else ())
    return content


def plain(node: Any) -> Any:
    """A copy with members of enumerations, as defaults of other libraries may be, replaced by their values."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    return node.value if isinstance(node, Enum) else node


def with_home(node: Any) -> Any:
    """A copy with ``~`` at the start of a text, which is a path, replaced by the home of the user.

    Raises:
        ValueError: a home that this machine does not know; a folder called ``~`` or ``~name`` would be made.
    """
    if isinstance(node, dict):
        return {key: with_home(value) for key, value in node.items()}
    if isinstance(node, list):
        return [with_home(value) for value in node]
    if not isinstance(node, str) or not node.startswith("~"):
        return node
    path = os.path.expanduser(node)
    if path == node and (node == "~" or node.startswith("~/")):
        raise ValueError(f"{node!r}: this user has no home on this machine; set HOME, or write the folder in full")
    if path == node and (match := re.match("~([a-zA-Z_][^/ ]*)/", node)):
        raise ValueError(f"{node!r}: this machine knows no user {match[1]}; write the folder in full")
    return path


def numbers_as_text(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a class with whole numbers as text where it takes text: a folder may be called 2026."""
    try:
        hints = get_type_hints(cls if hasattr(cls, "__dataclass_fields__") else cls.__init__)  # type: ignore[misc]
    except Exception:  # a hint that is imported for type checks only
        return arguments
    texts = {name for name, hint in hints.items() if hint in (str, str | None)}
    return {name: str(value) if type(value) is int and name in texts else value for name, value in arguments.items()}


def odd_number(given: Any, typed: Any, key: str) -> str:
    """What is wrong where text became a number and is no plain one (0100, 12:30, 1_000), or a number is not finite.

    Args:
        given: a value of the experiment.
        typed: the same after the type of its option was applied.
        key: its path.

    Returns:
        The message, or nothing.
    """
    if isinstance(given, dict):
        faults = (odd_number(value, _item(typed, name), f"{key}.{name}") for name, value in given.items())
        return next(filter(None, faults), "")
    if isinstance(given, (list, tuple)):
        faults = (odd_number(value, _item(typed, index), f"{key}.{index}") for index, value in enumerate(given))
        return next(filter(None, faults), "")
    if not isinstance(typed, (int, float)) or isinstance(typed, bool):
        return ""
    if isinstance(typed, float) and not math.isfinite(typed):
        return f"{key}: expected a finite number, got {given}"
    if isinstance(given, str) and not (_INTEGER.fullmatch(given) or _FLOAT.fullmatch(given)):
        return f"{key}: {given!r} is no plain number; YAML takes it for {typed}"
    return ""


def not_finite(message: str, values: Iterable[tuple[str, Any]]) -> str:
    """What is wrong where a word such as nan stands for a number: jsonargparse may take it for the name of a class.

    Args:
        message: of jsonargparse, which refuses the value.
        values: key and value of all that is given.
    """
    for key, value in values:
        word = isinstance(value, str) and _NOT_FINITE.fullmatch(value) and "float" in message
        if word and re.search(rf"(Got|Given) value: .*{re.escape(value)}", message):
            return f"{key}: expected a finite number, got {value}"
    return ""


def _item(typed: Any, name: Any) -> Any:
    try:
        return typed[name]
    except (TypeError, KeyError, IndexError):
        return None
