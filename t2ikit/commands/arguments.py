"""Arguments that several commands share."""

import argparse

METHOD_HELP = "sampler: ddim, ddpm, euler, heun, dpmpp_2m, or the class path of a Solver of your own"


def positive(text: str) -> int:
    """An integer of at least 1.

    Raises:
        ArgumentTypeError: it is less than 1.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust``."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="NAME",
        help="lets class paths name the module NAME, which is not ours, of a known library, or in the current folder; "
        "importing it runs its code. Repeatable",
    )
