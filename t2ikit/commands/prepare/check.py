"""``t2ikit prepare check``: is everything as it was written?"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from t2ikit.commands.prepare.options import Step


@dataclass(frozen=True)
class Check:
    """Reads every record of the sets in DIR and compares the hashes of their files with the manifests.

    Also looks whether the sets are finished and still belong to their images and captions. Lists what is wrong; exit
    status 1 if anything is.

    Attributes:
        folder: a data set, or a single set of it.
    """

    folder: Annotated[Path, "DIR", "folder"]


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.check.check import prepare_check

    findings = prepare_check(args.folder)
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings" if findings else "everything is good")
    return 1 if findings else 0


STEP = Step("check", "verify prepared sets", Check, _run)
