"""What the command lines of the steps have in common: how help is shown, ``--out``, files of text."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Run = Callable[[argparse.Namespace], int]
SETTINGS = ("cm2", "cm4", "cm9", "cm16", "cmall")
"""As in ``t2ikit.augment.cutmix``, whose import loads torch."""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one: also 0, which argparse takes for an absent one if it is compared by value."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def add_step(steps: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    """Adds a step to the subcommands of ``prepare``; options must be written out."""
    parser: argparse.ArgumentParser = steps.add_parser(
        name, help=summary, description=description, formatter_class=Help, allow_abbrev=False
    )
    return parser


def add_out(parser: argparse.ArgumentParser) -> None:
    """Adds ``--out`` and ``--overwrite``."""
    parser.add_argument(
        "--out",
        required=True,
        type=expanded,
        metavar="DIR",
        help="folder of this data set, the same one for every step",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier call made here from other inputs"
    )


def expanded(path: str) -> Path:
    """A path of the command line; ``~`` is expanded, which the shell leaves alone in ``--out=~/data``."""
    return Path(path).expanduser()


def refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str], reason: str) -> None:
    """Refuses options that would be passed over in silence.

    Args:
        parser: knows the defaults.
        args: what was parsed.
        names: of the options that have no effect here.
        reason: what to say of them.

    Raises:
        ValueError: one of them was given another value than its default.
    """
    for name in names:
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} {reason}")


def text_of(path: str, option: str) -> str:
    """The text of a file that an option names.

    Raises:
        ValueError: it cannot be read; names the option.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} needs a text file; {path} cannot be read ({error})") from error
