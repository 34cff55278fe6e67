"""``t2ikit prepare check``: is everything as it was written?"""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.prepare.options import add_step, expanded


def add_parser(steps: Any) -> None:
    """Adds the step to the subcommands of ``prepare``."""
    parser = add_step(
        steps,
        "check",
        "verify prepared sets",
        "Reads every record of the sets in DIR, compares the hashes of their files, and sees that the sets are "
        "finished and still those of their images and captions. Lists what is wrong; exit status 1 if anything is.",
    )
    parser.add_argument("folder", type=expanded, metavar="DIR", help="a data set, or a single set of it")
    parser.set_defaults(prepare_run=_run)


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.check.check import prepare_check

    findings = prepare_check(args.folder)
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings" if findings else "everything is good")
    return 1 if findings else 0
