"""``t2ikit benchmark``: whole benchmarks, each with its own page."""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.benchmark import synthreal
from t2ikit.config.overrides import take_overrides

__all__ = ["add_parser", "run", "take_overrides"]


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds ``benchmark`` and its benchmarks to the subcommands of a parser."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "benchmark", help="a whole benchmark, with its page", description="A whole benchmark, with its page."
    )
    synthreal.add_parser(parser.add_subparsers(dest="benchmark", metavar="NAME", required=True))
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs what was parsed; returns the exit status."""
    return synthreal.run(args)
