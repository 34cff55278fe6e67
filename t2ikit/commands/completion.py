"""``t2ikit completion``: the script by which a shell completes commands, options and names of experiments."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from t2ikit.config.errors import ConfigError
from t2ikit.config.files import SUFFIXES, shipped_names

SHELLS = ("bash", "zsh", "fish")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``completion`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "completion",
        help="the script that completes commands in a shell",
        description="Prints the script by which a shell completes commands, options and names of experiments. Needs "
        "argcomplete: pip install 't2ikit[completion]'.",
        epilog='examples:\n  eval "$(t2ikit completion bash)"        # in ~/.bashrc; zsh likewise in ~/.zshrc\n'
        "  t2ikit completion fish > ~/.config/fish/completions/t2ikit.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="bash, zsh or fish")
    return parser


def run(args: argparse.Namespace) -> int:
    """Prints the script; returns the exit status."""
    print(_argcomplete().shellcode(["t2ikit", "lightning"], shell=args.shell))
    return 0


def complete(commands: Mapping[str, tuple[str, str]], prog: str) -> None:
    """Answers the shell, and ends the process.

    Args:
        commands: summary and module of every command.
        prog: the program whose words are completed; ``lightning`` has one command.
    """
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--debug", action="store_true")
    subparsers = parser.add_subparsers()
    for name, (summary, module) in commands.items():
        if prog == "lightning" and name != "run":
            continue
        if name == "run":
            _add_run(subparsers.add_parser(name, help=summary))
        else:
            _name_experiments(import_module(module).add_parser(subparsers))
    _argcomplete().autocomplete(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    """The options of ``run``, which reads its words itself."""
    from t2ikit.commands.run import FLAGS, VALUES

    parser.add_argument("experiment")
    for name in FLAGS:
        if name != "help":
            parser.add_argument(f"--{name}", action="store_true")
    for name in VALUES:
        action = parser.add_argument(f"--{name}")
        if name != "resume":
            action.completer = lambda **_: ()  # type: ignore[attr-defined]
    _name_experiments(parser)


def _name_experiments(parser: argparse.ArgumentParser) -> None:
    """Completes the arguments that name an experiment, those of sub-commands too."""
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter([suffix.removeprefix(".") for suffix in SUFFIXES])

    def names(prefix: str, **_: Any) -> list[str]:
        return [*shipped_names(), *files(prefix)]

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _name_experiments(below)
        elif action.dest == "experiment":
            action.completer = names  # type: ignore[attr-defined]
        elif parser.prog.split()[-2:-1] == ["experiments"] and action.dest == "name":
            action.completer = lambda **_: shipped_names()  # type: ignore[attr-defined]


def _argcomplete() -> Any:
    try:
        return import_module("argcomplete")
    except ModuleNotFoundError as error:
        raise ConfigError("completion needs argcomplete: pip install 't2ikit[completion]'") from error
