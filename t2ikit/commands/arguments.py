"""Arguments that several commands share."""

import argparse
import math
import re
from pathlib import Path

from t2ikit.config.origins import TRUST_HELP

METHOD_HELP = "sampler: ddim, ddpm, euler, heun, dpmpp_2m, or the class path of a Solver of your own"


def positive(text: str) -> int:
    """An integer of at least 1.

    Raises:
        ArgumentTypeError: it is less than 1.
    """
    return _at_least(1, text)


def whole(text: str) -> int:
    """An integer of at least 0.

    Raises:
        ArgumentTypeError: it is less than 0.
    """
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} is less than {least}")
    return value


def finite(text: str) -> float:
    """A number that is neither infinite nor NaN.

    Raises:
        ArgumentTypeError: it is one of these.
    """
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is no finite number")
    return value


def size(text: str) -> tuple[int, int]:
    """Height and width of ``HEIGHTxWIDTH``.

    Raises:
        ArgumentTypeError: it is no size.
    """
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, such as 32x32; got {text!r}")
    return int(match[1]), int(match[2])


def threshold(text: str) -> tuple[str, float] | str:
    """The bound of ``KIND:VALUE``, or ``none``.

    Raises:
        ArgumentTypeError: it is neither.
    """
    kind, colon, value = text.partition(":")
    if text == "none":
        return text
    if kind not in ("clamp", "dynamic", "per_channel") or not colon:
        raise argparse.ArgumentTypeError(f"expected none, clamp:C, dynamic:Q or per_channel:Q; got {text!r}")
    return kind, finite(value)


def method(name: str) -> str:
    """The name of a sampler in lower case, in which all are known, or a class path as it is."""
    return name if "." in name else name.lower()


def expanded(path: str) -> Path:
    """A path of the command line; ``~`` is expanded, which the shell leaves alone in ``--out=~/data``."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{path!r}: this machine knows no such user; write it in full") from error


def add_search(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a test-time search."""
    add = parser.add_argument_group(
        "test-time search", "samples several candidates of every image; a metric chooses one of them"
    ).add_argument
    search_help = "random: noise of its own for every candidate; zero-order: neighbours of the best noise so far"
    add("--search", choices=("random", "zero-order"), help=search_help)
    add("--candidates", type=positive, metavar="N", help="candidates of every image, the first one counted (16)")
    verifier_help = "class path of a metric that scores an image by itself, or its class node as in an experiment"
    add("--verifier", metavar="METRIC", help=verifier_help)
    add("--verifier-score", metavar="NAME", help="which score of the verifier decides, where it has several")
    add("--neighbours", type=positive, metavar="N", help="of zero-order: candidates in a round (4)")
    similarity_help = "of zero-order: cosine between the noise of a neighbour and the best one (0.95)"
    add("--similarity", type=finite, metavar="COSINE", help=similarity_help)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust``."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="NAME",
        help=TRUST_HELP,
    )
