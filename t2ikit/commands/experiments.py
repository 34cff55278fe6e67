"""``t2ikit experiments``: the experiments that come with the kit, their run cards, and a copy of one to edit."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from t2ikit.commands.arguments import expanded
from t2ikit.config.cards import card_of, copied
from t2ikit.config.compose import part_of
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.files import TOP_KEYS, shipped_experiments, shipped_names
from t2ikit.files import partial_of, publish, require_folder

DESCRIPTION = """\
Lists the experiments that come with the kit. `t2ikit run NAME`, and every other command that takes an experiment, takes
these names; NAME.yaml in the current folder comes first."""

EXAMPLES = """examples:
  t2ikit experiments
  t2ikit experiments show cad_i_cmall
  t2ikit experiments copy quickstart mine.yaml && t2ikit run mine
"""
_WIDTH = 110


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``experiments`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "experiments",
        help="the experiments that come with the kit",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="their cards: what each trains and needs (default)")
    listing.add_argument("word", nargs="?", default="", metavar="WORD", help="only those with this word in their card")
    show = actions.add_parser("show", help="the card and the file of one")
    show.add_argument("name", metavar="NAME", help="such as quickstart")
    copy = actions.add_parser("copy", help="write one to a file of your own, to edit")
    copy.add_argument("name", metavar="NAME", help="such as quickstart")
    copy.add_argument("file", metavar="FILE", type=expanded, nargs="?", help="the copy (default: NAME.yaml, here)")
    copy.add_argument("--force", action="store_true", help="replace a file that is there")
    return parser


def run(args: argparse.Namespace) -> int:
    """Lists, shows or copies; returns the exit status.

    Raises:
        ConfigError: no such experiment, or a file that is there already.
        ValueError: the copy cannot be written there.
    """
    if args.action == "show":
        _show(_shipped(args.name))
    elif args.action == "copy":
        _copy(_shipped(args.name), args.file, args.force)
    else:
        _list(getattr(args, "word", ""))
    return 0


def _shipped(name: str) -> str:
    """The name, if it is that of a shipped experiment.

    Raises:
        ConfigError: it is none.
    """
    name = name.removesuffix(".yaml")
    if name not in shipped_names() and not _file(name).is_file():
        raise ConfigError(f"no experiment {name} comes with the kit{nearest(name, shipped_names())}")
    return name


def _list(word: str) -> None:
    cards = {name: card_of(_file(name)) for name in shipped_names()}
    shown = {name: card for name, card in cards.items() if word.lower() in f"{name} {card.text}".lower()}
    if not shown:
        raise ConfigError(f"no card holds the word {word!r}; `t2ikit experiments` lists all {len(cards)}")
    indent = " " * 2
    for name, card in shown.items():
        print(name)
        print(textwrap.fill(card.title, _WIDTH, initial_indent=indent, subsequent_indent=indent))
        print(f"{indent}needs: {card.needs}")
    print(f"\n{len(shown)} experiments. t2ikit experiments show NAME | copy NAME [FILE]; t2ikit run NAME")


def _file(name: str) -> Path:
    """The shipped file, also where the current folder has one of this name."""
    return shipped_experiments() / f"{name}.yaml"


def _show(name: str) -> None:
    path = _file(name)
    print(f"# {path}\n# Needs: {card_of(path).needs}\n{path.read_text(encoding='utf-8')}", end="")


def _copy(name: str, file: Path | None, force: bool) -> None:
    target = file or Path(f"{Path(name).name}.yaml")
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{target}: the copy of an experiment is a file *.yaml")
    if target.exists() and not force:
        raise ConfigError(f"{target} is there already: give another name, or replace it with --force")
    require_folder(target.parent, "FILE")
    target.parent.mkdir(parents=True, exist_ok=True)
    source = _file(name)
    partial = partial_of(target).with_suffix(".yaml")
    try:
        partial.write_text(copied(source, target), encoding="utf-8")
        if any(part_of(source, key) != part_of(partial, key) for key in TOP_KEYS if key != "run"):
            raise ConfigError(
                f"{target}: a file of this folder has the name of one that {name} extends, and would be taken for it: "
                "copy to another folder"
            )
        publish(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{target}: a copy of {source}\nt2ikit run {target}")
