"""``t2ikit prefer``: a page on which people compare the pictures of models, and what they prefer."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t2ikit.commands.arguments import expanded, finite
from t2ikit.config.origins import printable
from t2ikit.files import partial_of, require_folder, write_whole

BUILD = """\
Writes one HTML file on which people compare pictures of models, two at a time, without knowing whose they are, and its
key, which stays with you: page.key.json of page.html. Pictures are paired by their number; unlike prompts of one number
are refused, numbers that a model lacks are left out and listed. The page asks nothing of any network and works from the
disk; raters send you the file that it exports. More than 100 MB of pictures go into a folder beside the page, which
goes with it."""

BUILD_EXAMPLES = """examples:
  t2ikit prefer build A=samples/a B=samples/b --out page.html
  t2ikit prefer build base=one tuned=two other=three --out page.html --questions quality --repeat 0.1
  t2ikit prefer build ours=samples other=pictures --out page.html --prompts prompts.txt

A folder is one of `t2ikit sample`, the images that a snapshot kept, or numbered pictures of any program."""

ANALYSE = """\
Reads what raters exported, and says for each question and for all together: shares of all ratings with 95 % intervals,
for how many prompts most votes are for a model, the agreement of the raters, the share of the left side; strengths of
three or more models; and a line about every rater."""

ANALYSE_EXAMPLES = """examples:
  t2ikit prefer analyse exports/*.json --key page.key.json
  t2ikit prefer analyse exports/*.json --key page.key.json --ties davidson --out preference.json"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``prefer`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "prefer",
        help="a page on which people compare the pictures of models, and what they prefer",
        description="A page on which people compare the pictures of models, and what they prefer.",
    )
    parts = parser.add_subparsers(dest="part", metavar="build|analyse", required=True)
    build = _part(parts, "build", "write the page and its key", BUILD, BUILD_EXAMPLES)
    add = build.add_argument
    add("folders", nargs="+", metavar="NAME=DIR", type=_folder, help="a model and its pictures; two or more")
    add(
        "--out",
        required=True,
        metavar="NAME.html",
        type=expanded,
        help="the page, NAME.html; NAME.key.json is written beside it",
    )
    add(
        "--questions",
        default="quality,consistency",
        metavar="NAMES",
        help="quality: which picture looks better; consistency: which fits the prompt better (%(default)s)",
    )
    add("--repeat", type=finite, default=0.05, metavar="SHARE", help="of the comparisons, asked twice (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the orders (%(default)s)")
    prompts_help = "line N (from 0) is the prompt of the pictures called N, for pictures that do not hold their prompt"
    add("--prompts", metavar="FILE", type=expanded, help=prompts_help)
    analyse = _part(parts, "analyse", "what the raters prefer", ANALYSE, ANALYSE_EXAMPLES)
    add = analyse.add_argument
    add("exports", nargs="+", metavar="EXPORT.json", type=expanded, help="a file of every rater")
    add("--key", required=True, metavar="FILE", type=expanded, help="page.key.json, as build wrote it")
    ties_help = "of three or more models: a tie is half a win of each (default), or has its own probability"
    add("--ties", choices=("half", "davidson"), help=ties_help)
    add("--no-strengths", action="store_true", help="of three or more models: leave the strengths out")
    add("--out", metavar="FILE.json", type=expanded, help="also write everything as JSON")
    return parser


def _part(parts: Any, name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parts.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def _folder(text: str) -> tuple[str, Path]:
    """The model and the folder of ``NAME=DIR``.

    Raises:
        ArgumentTypeError: a part is missing.
    """
    name, _, folder = text.partition("=")
    if not name.strip() or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, such as A=samples/a; got {text!r}")
    return name.strip(), expanded(folder)


def run(args: argparse.Namespace) -> int:
    """Does what was parsed; returns the exit status.

    Raises:
        ValueError, FileNotFoundError: what is missing or wrong, and what to change.
    """
    return _build(args) if args.part == "build" else _analyse(args)


def _require_file(path: Path, example: str, suffix: str) -> None:
    """Refuses an ``--out`` that cannot be written, before work whose results would be lost.

    Args:
        path: of the option.
        example: name of such a file, for the message.
        suffix: the longest of those of the files that are written.

    Raises:
        ValueError: it is a folder, or the system refuses to make such a file; says why.
    """
    folder = path.absolute().parent
    require_folder(folder, "--out")
    while not folder.is_dir():
        folder = folder.parent
    try:
        if path.is_dir():
            raise ValueError(f"--out {path} is a folder: name a file, such as {path / example}")
        probe = folder / partial_of(path.with_suffix(suffix)).name
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out {path}: {error.strerror}: choose another file") from error


def _build(args: argparse.Namespace) -> int:
    from t2ikit.report.preference.building import build

    folders = dict(args.folders)
    if len(folders) < len(args.folders):
        raise ValueError("two folders have one name: give every model its own, as in A=DIR B=DIR")
    _require_file(args.out, "page.html", ".key.json")
    questions = tuple(name.strip() for name in args.questions.split(","))
    built = build(folders, args.out, secrets.token_hex(16), questions, args.repeat, args.seed, args.prompts)
    print(f"page: {built.page} ({built.page.stat().st_size / 1e6:.1f} MB)")
    if built.pictures is not None:
        print(f"pictures: {built.pictures}, to be given with the page")
    print(f"key: {built.key_path}, not to be given to raters: it says whose pictures are whose")
    count, models = len(built.key.prompts), len(folders)
    print(f"{count} prompts, {models} models, {built.comparisons} comparisons for each rater")
    for model, enlarged in built.enlarged.items():
        if enlarged:
            print(f"{enlarged} pictures of {model} are enlarged to the size of the largest of their prompt")
    if built.key.left_out:
        print(f"{len(built.key.left_out)} numbers are left out:")
        for number, lacking in built.key.left_out.items():
            print(printable(f"  {number}: not in {', '.join(lacking)}"))
    return 0


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    """Refuses an ``--out`` of analyse that cannot be written, or that would replace what nobody can make again."""
    _require_file(out, "preference.json", out.suffix)
    if out.suffix.lower() != ".json" or out.name.lower().endswith(".key.json"):
        raise ValueError(f"--out {out}: name a JSON file that is no key, such as preference.json")
    for path in inputs:
        if out.resolve() == path.resolve() or (out.exists() and path.exists() and out.samefile(path)):
            raise ValueError(f"--out {out} is {path}, which is read: name another file, such as preference.json")


def _analyse(args: argparse.Namespace) -> int:
    from rich.console import Console

    from t2ikit.report.preference.analysis import analyse
    from t2ikit.report.preference.exports import read_exports
    from t2ikit.report.preference.key import read_key
    from t2ikit.report.preference.tables import tables

    if args.out is not None:
        _check_out(args.out, [args.key, *args.exports])
    key = read_key(args.key)
    if args.ties is not None and (args.no_strengths or len(key.models) < 3):
        raise ValueError("--ties acts on the strengths of three or more models: leave it out here")
    raters = read_exports(args.exports, key)
    analysis = analyse(raters, key, None if args.no_strengths else args.ties or "half")
    counts = f"{analysis.ratings} ratings of {analysis.prompts} prompts by {len(raters)} raters"
    print(f"{counts}; in brackets 95 % intervals, of a bootstrap over prompts")
    console = Console(width=120)
    for table in tables(analysis):
        console.print(table)
    for rater in analysis.raters:
        if not rater.follows:
            name = printable(rater.name)
            print(f"{name}: the answers do not stand in the order of the page; were they changed by hand?")
    if args.out is not None:
        write_whole(args.out, analysis.to_json())
        print(f"analysis: {args.out}")
    return 0
