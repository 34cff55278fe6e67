"""The commands ``t2ikit`` and ``lightning``. Bodies live in their rooms and are imported when they are called."""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

import t2ikit
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.files import SUFFIXES, find_experiment
from t2ikit.config.origins import printable
from t2ikit.config.secrets import hidden, trust_names, without_secrets
from t2ikit.launch import check_launch
from t2ikit.stopping import Failed

# When a process ends, Python looks for cycles among the half a million objects of the libraries, several times: 1.5 of
# the 1.8 CPU-seconds that an end takes. Files and processes are closed before that.
atexit.register(gc.freeze)

# Each but `run` is a module with add_parser(subparsers) and run(args) -> exit status; of one with take_overrides(words)
# `--a.b value` is taken out of the words, as args.overrides.
COMMANDS = {
    "run": ("train what an experiment file describes", "t2ikit.commands.run"),
    "sweep": ("train the cells of an experiment's sweep that are missing; their table", "t2ikit.commands.sweep"),
    "plan": ("what an experiment will cost: FLOPs, memory, disk, hours", "t2ikit.commands.plan"),
    "doctor": ("what this machine lacks for an experiment", "t2ikit.commands.doctor"),
    "sample": ("images of a trained model, from prompts", "t2ikit.commands.sample"),
    "evaluate": ("scores of a trained model, or of pictures of any other", "t2ikit.commands.evaluate"),
    "prepare": ("photos to encoded records: images, cutmix, captions, encode, check, ...", "t2ikit.commands.prepare"),
    "benchmark": ("a whole benchmark, with its page: synthreal", "t2ikit.commands.benchmark"),
    "verify-resume": (
        "kill and resume a short run, and compare it with an undisturbed one",
        "t2ikit.commands.verify_resume",
    ),
    "export": ("a trained model for diffusers, as one file, or on the Hub", "t2ikit.commands.export"),
    "import": ("released weights as a run of one's own", "t2ikit.commands.import_checkpoint"),
    "experiments": ("the experiments that come with the kit: list, show, copy", "t2ikit.commands.experiments"),
    "completion": ("the script that completes commands in a shell", "t2ikit.commands.completion"),
    "report": ("one page about runs: curves, samples, scores, differences, cost", "t2ikit.commands.report"),
    "prefer": ("a page on which people compare the pictures of models, and what they prefer", "t2ikit.commands.prefer"),
    "replay": ("make a step again that was refused, and find the first bad value", "t2ikit.commands.replay"),
}


def main(argv: Sequence[str] | None = None, prog: str = "t2ikit") -> int:
    """``t2ikit COMMAND ...``; returns the exit status.

    Mistakes of the user end with ``error: ...`` on stderr and status 2, what the system refuses (a full disk, no
    permission) with status 1; ``--debug`` anywhere shows the traceback.
    """
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what may follow
        import_module("t2ikit.commands.completion").complete(COMMANDS, prog)
    # sys.argv is read, never changed: Lightning starts the other ranks of a machine by running it again.
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"t2ikit {t2ikit.__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in COMMANDS:
            raise ConfigError(f"unknown command '{command}'{nearest(command, COMMANDS)}; see t2ikit --help")
        return _dispatch(command, rest, prog)
    except (ConfigError, FileNotFoundError, ValueError) as error:
        # `run` turns its own refusals into ConfigError: any other exception of a training is a defect.
        if debug or (command == "run" and not isinstance(error, ConfigError)):
            raise
        _print_error(error)
        return 2
    except RecursionError as error:  # of a file; a defect shows its traceback with --debug
        if debug:
            raise
        _print_error(ValueError(f"a file that is read is nested too deeply ({error})"))
        return 2
    except Failed as error:
        if debug:
            raise
        _print_error(error)
        return 1
    except BrokenPipeError:  # the reader of our output has enough, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Without a number it comes from a library; `run` says itself what a disk or a folder did to it.
        if debug or command == "run" or error.errno is None or error.strerror is None:
            raise
        named = "" if error.filename is None else f"{error.filename}: "
        _print_error(OSError(f"{named}{error.strerror} (--debug shows where)"))
        return 1
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130


def _print_error(error: Exception) -> None:
    """The message without secrets, and without what a terminal would obey: parts of it may come from a file."""
    lines = hidden(str(without_secrets(str(error)))).split("\n")
    print("error: " + "\n".join(map(printable, lines)), file=sys.stderr)


def lightning_main() -> int:
    """The console script ``lightning``: ``lightning run X.yaml`` is ours, anything else belongs to lightning-sdk."""
    arguments = sys.argv[1:]
    if is_ours(arguments) or "_ARGCOMPLETE" in os.environ:
        return main(arguments, prog="lightning")
    other = other_lightning()
    if other is None and arguments[:1] == ["run"]:  # says which experiment may be meant
        return main(arguments, prog="lightning")
    if other is None:
        print(
            "t2ikit's `lightning` knows `lightning run EXPERIMENT` only (see lightning run --help); install "
            "lightning-sdk for other commands",
            file=sys.stderr,
        )
        return 2
    return int(other.load()() or 0)


def is_ours(arguments: Sequence[str]) -> bool:
    """Whether ``lightning ARGUMENTS`` is a run of an experiment, a file or a name, or asks for help on one."""
    if not arguments or arguments[0] != "run":
        return False
    return any(word.endswith(SUFFIXES) or word in ("-h", "--help") or _is_experiment(word) for word in arguments[1:])


def _is_experiment(word: str) -> bool:
    try:
        return not word.startswith("-") and find_experiment(word).suffix in SUFFIXES
    except ConfigError:
        return False


def other_lightning() -> EntryPoint | None:
    """The console script ``lightning`` of the distribution lightning-sdk, if that is installed."""
    for script in entry_points(group="console_scripts", name="lightning"):
        if script.dist is not None and script.dist.name.lower().replace("_", "-") == "lightning-sdk":
            return script
    return None


def _dispatch(command: str, rest: Sequence[str], prog: str) -> int:
    module = import_module(COMMANDS[command][1])
    if command == "run":
        return int(module.main(rest, f"{prog} run"))
    parser = argparse.ArgumentParser(prog="t2ikit", allow_abbrev=False)
    module.add_parser(parser.add_subparsers(dest="command", required=True))
    given = argparse.Namespace()
    if hasattr(module, "take_overrides"):
        rest, given.overrides = module.take_overrides(rest)
    parsed = parser.parse_args([command, *rest], given)
    trust_names(getattr(parsed, "trust", ()))
    if command in ("prepare", "sweep", "verify-resume"):  # as `run` does itself
        check_launch()
    return int(module.run(parsed) or 0)


def _usage() -> str:
    lines = [f"  {name:<15}{summary}" for name, (summary, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: t2ikit COMMAND ...      (t2ikit COMMAND --help says more)",
            "",
            "Text-to-image models on ImageNet, from a photo on disk to a score beside the paper's.",
            "",
            "commands:",
            *lines,
            "",
            "  --version  --help  --debug (shows the traceback of an error)",
            "",
            "lightning run EXPERIMENT is the same as t2ikit run EXPERIMENT: a file, or a name of `t2ikit experiments`.",
        ]
    )
