"""``t2ikit replay``: makes a step again whose loss or gradient was not finite."""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.arguments import add_trust, expanded

DESCRIPTION = """\
Makes the step of a debug bundle again, from the experiment and the state of before the step in it, and prints where the
first value that is not finite appears: which record, weight or layer in the forward pass, which layer or weight in the
backward pass. A run whose loss or gradient is not finite writes such a bundle to debug/step-XXXXXXXX in its folder;
report.txt in it lists records, t, losses, and norms of weights and gradients.

Exit status 0: the losses equal those of the bundle bit for bit. 1: they do not."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``replay`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "replay",
        help="make a step again that was refused, and find the first bad value",
        description=DESCRIPTION,
        epilog="example:\n  t2ikit replay runs/quickstart/version_0/debug/step-00001234",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=expanded, help="debug/step-XXXXXXXX of a run folder")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Replays one bundle; the exit status."""
    from t2ikit.run.replay import replay

    return replay(args.bundle, args.trust)
