"""``python -m t2ikit.testing CLASS_PATH [--KEY VALUE ...]``: tries a class against the contract of its kind."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import Override, set_below
from t2ikit.config.origins import TRUST_HELP, importable
from t2ikit.config.overrides import take_overrides
from t2ikit.testing import examine

EPILOG = """examples:
  python -m t2ikit.testing plain.Plain --width 32
  python -m t2ikit.testing t2ikit.denoisers.DiTI --input_size 8 --hidden_size 64 --depth 2 --num_heads 4 --text_dim 24
  python -m t2ikit.testing t2ikit.diffusion.Denoising --process t2ikit.diffusion.RectifiedFlow --process.shift 3
  python -m t2ikit.testing repa.Repa --width 64 --array features.dinov2=16,384
  python -m t2ikit.testing ddim

--KEY VALUE are options of the class, written as in an experiment: lists and mappings stand in brackets, and below a
class init_args may be left out. Give small sizes: everything is computed on the CPU, most of it several times. Each
check says "passed", "failed" with a sentence on what to change, or "does not apply" with its reason.

Objectives and terms are tried with a small CAD-I for x [4, 8, 8] as denoiser: 16 image tokens of width 64, and as many
blocks as their taps ask for. An array of a record that they read is [16, 64] a sample unless --array says otherwise.

The exit status is 0 when a check passed and none failed, 1 when one failed, 2 when the class cannot be built."""


def main(argv: Sequence[str] | None = None) -> int:
    """Tries the class; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m t2ikit.testing",
        usage="%(prog)s CLASS_PATH [--KEY VALUE ...] [--array NAME=SIZE[,SIZE...]]",
        description="Tries a denoiser, objective, term, solver, augmentation or metric, ours or your own, against the "
        "contract of its kind, in seconds on the CPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("class_path", metavar="CLASS_PATH", help="module.Class, or the name of a solver of ours")
    array_help = "shape of an array of a record that the class reads, without the axis of samples; repeatable"
    parser.add_argument("--array", metavar="NAME=SIZES", type=_array, action="append", default=[], help=array_help)
    parser.add_argument("--trust", metavar="NAME", action="append", default=[], help=TRUST_HELP)
    args, words = parser.parse_known_args(argv)
    try:
        build = _builder(args.class_path, _overrides(words), args.trust)
        report = examine(build, dict(args.array), args.class_path)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as error:  # with 0 nothing would seem to have failed
        print(f"error: {args.class_path}: its constructor ends the process, sys.exit({error.code!r})", file=sys.stderr)
        return 2
    from rich.console import Console

    report.show(Console())
    return 0 if report.ok else 1


def _array(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.partition("=")
    if not (name and equals and all(size.isdigit() for size in sizes.split(","))):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=SIZE[,SIZE...], such as features.dinov2=16,384")
    return name, tuple(int(size) for size in sizes.split(","))


def _overrides(words: Sequence[str]) -> list[Override]:
    """``--KEY VALUE`` or ``--KEY=VALUE``.

    Raises:
        ConfigError: an option without a value, or a word that is neither.
    """
    rest, overrides = take_overrides(words, is_override=bool, check=str)
    if rest:
        raise ConfigError(f"{rest[0]!r} belongs to no option: write --KEY VALUE")
    return overrides


def _builder(class_path: str, overrides: Sequence[Override], trusted: Sequence[str]) -> Callable[[], Any]:
    """What makes the class with these options.

    Raises:
        ConfigError: no such class, or an option that it does not take.
    """
    from t2ikit.config.class_nodes import check_component
    from t2ikit.diffusion.solvers import SOLVERS

    if class_path in SOLVERS and not overrides:
        return lambda: SOLVERS[class_path]
    node: dict[str, Any] = {"class_path": class_path}
    for override in overrides:
        node = set_below(node, override.key.split("."), override)
    return check_component("class", node, object, origins=importable(trusted=trusted)).build


if __name__ == "__main__":
    sys.exit(main())
