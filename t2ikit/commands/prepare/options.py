"""Options of the steps: the fields of a dataclass, whose docstring is their help."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser

from t2ikit.commands.arguments import expanded, finite

# As SETTINGS of t2ikit.augment.cutmix, which loads torch, and whose source must stay: it is in the hash of shapes sets.
Setting = Literal["cm2", "cm4", "cm9", "cm16", "cmall"]
TextFile = Annotated[Path | None, "FILE"]
Revision = Annotated[str | None, "REVISION"]


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What every step has that writes a part of a data set.

    Attributes:
        out: folder of this data set, the same one for every step.
        overwrite: replace what an earlier call made here from other inputs.
    """

    out: Annotated[Path, "DIR"]
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Chunked(DataSet):
    """What every step has that writes records.

    Attributes:
        shard_size: images in one chunk file; if not given, as many as fill about 64 MB. A call that is killed loses the
            chunks that it had not finished, at most one for each worker.
    """

    shard_size: Annotated[int | None, "N"] = None


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one: also 0, which argparse takes for an absent one if it is compared by value."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        absent = action.default in (None, "", ()) or action.default is False
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return action.help if absent else super()._get_help_string(action)


class _Gather(argparse.Action):
    """Gathers the values of an option of several values, which may also be given several times."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, list(values) if before is self.default else [*before, *values])


@dataclass(frozen=True)
class Step:
    """A subcommand of ``prepare``.

    Attributes:
        name: of the subcommand.
        summary: shown in the list of steps.
        options: dataclass of its options; what it says of itself is the description.
        run: takes what was parsed, and returns the exit status.
        groups: dataclasses (or objects, whose values are the defaults) of further options, each shown as a group.
    """

    name: str
    summary: str
    options: type
    run: Callable[[argparse.Namespace], int]
    groups: tuple[Any, ...] = ()

    def add(self, steps: Any) -> None:
        """Adds it to the subcommands; option names may not be shortened."""
        about = docstring_parser.parse(self.options.__doc__ or "").description
        parser = steps.add_parser(
            self.name, help=self.summary, description=about, formatter_class=Help, allow_abbrev=False
        )
        _add_options(parser, self.options)
        for group in self.groups:
            docs = [docstring_parser.parse(kind.__doc__ or "") for kind in _kinds(group)]
            title = (docs[0].short_description or "").removesuffix(".")
            details = next((doc.long_description for doc in docs if doc.long_description), None)
            _add_options(parser.add_argument_group(title, details), group)
        parser.set_defaults(prepare_run=self.run)


def _add_options(group: Any, options: Any) -> None:
    """Adds the fields of a dataclass to a parser or a group of one.

    ``Literal`` becomes choices, ``tuple`` an option of several values, ``bool`` a switch. The strings of an
    ``Annotated`` are the metavar and further names of the option; the name of the field alone makes it positional.

    Args:
        group: where they are shown.
        options: the dataclass, or an object of one, whose values are the defaults.
    """
    kinds = _kinds(options)
    hints = get_type_hints(kinds[0], include_extras=True)
    texts = {
        text.arg_name: text for kind in reversed(kinds) for text in docstring_parser.parse(kind.__doc__ or "").params
    }
    for field in fields(options):
        names, settings = _argument(field, hints[field.name], getattr(options, field.name, MISSING))
        about = " ".join((texts[field.name].description or "").split())
        group.add_argument(*names, help=about.removesuffix("."), **settings)


def _argument(field: Field[Any], hint: Any, default: Any) -> tuple[list[str], dict[str, Any]]:
    """Names of an option and the other arguments of ``add_argument``."""
    names = [_name(field)]
    settings: dict[str, Any] = {"required": True} if default is MISSING else {"default": default}
    while get_args(hint):
        origin, inner = get_origin(hint), get_args(hint)
        if origin is Literal:
            return names, {**settings, "choices": inner}
        if origin is tuple:
            settings |= {"nargs": "*", "default": list(default)} if default else {"nargs": "+"}
            settings["action"] = _Gather
        if origin is Annotated:
            settings["metavar"], *further = hint.__metadata__
            if further == [field.name]:  # not an option, but the word behind the step
                names = []
                del settings["required"]
            names += further
        hint = next(kind for kind in inner if kind is not NoneType)
    if hint is bool:
        return names, {"action": "store_true"}
    kinds = {Path: expanded, str: os.path.expanduser, float: finite}
    return names, {**settings, "type": kinds.get(hint, hint)}


def _kinds(options: Any) -> tuple[type, ...]:
    """The dataclass of some options and those that it extends."""
    return (options if isinstance(options, type) else type(options)).__mro__[:-1]


def values_of(options: type, args: argparse.Namespace) -> dict[str, Any]:
    """What was parsed, by the name of the field."""
    values = {field.name: getattr(args, field.name) for field in fields(options)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def refuse_unused(options: type, args: argparse.Namespace, reason: str, *names: str) -> None:
    """Refuses options that would have no effect.

    Args:
        options: their dataclass, which knows the defaults.
        args: what was parsed.
        reason: what the message says of the option.
        names: of the fields; all if none is given.

    Raises:
        ValueError: one of them has another value than its default.
    """
    for field in fields(options):
        if (not names or field.name in names) and getattr(args, field.name) != field.default:
            raise ValueError(f"{_name(field)} {reason}")


def text_of(path: Path | None, option: str, default: str) -> str:
    """The text of the file that an option names, or the default without it.

    Raises:
        ValueError: the file cannot be read; names the option.
    """
    if path is None:
        return default
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} needs a text file; {path} cannot be read ({error})") from error


def _name(field: Field[Any]) -> str:
    return f"--{field.name.replace('_', '-')}"
