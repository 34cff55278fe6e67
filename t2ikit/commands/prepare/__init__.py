"""The command line of ``t2ikit prepare``: its steps, and the messages of their errors."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from t2ikit.commands.prepare import autoencoder, captions, check, cutmix, encode, extend, images, reencode, shapes
from t2ikit.files import require_folder
from t2ikit.launch import first_rank, loader_process_died
from t2ikit.prepare.captions.service import KEPT

_ORDER = "Steps, in this order: images, cutmix, captions, encode; then point an experiment at DIR with --data.root DIR."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds ``prepare`` and its steps to the subcommands of a parser; ``run`` runs what was parsed."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "prepare",
        help="turn photos and captions into the records of training",
        description="Turns photos and captions into the records that training streams. " + _ORDER,
        allow_abbrev=False,
    )
    steps = parser.add_subparsers(dest="prepare_command", metavar="STEP", required=True)
    for step in (images, cutmix, captions, encode, shapes, autoencoder, reencode, check, extend):
        step.STEP.add(steps)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the step that was parsed.

    Returns:
        The exit status: 0 done, 1 ``check`` found something.

    Raises:
        ValueError: wrong input, or a machine that cannot continue; names the step and what to change.
    """
    try:
        with _first_rank_speaks():
            if isinstance(getattr(args, "out", None), Path):
                require_folder(args.out if args.prepare_command != "extend" else args.out.parent, "--out")
            return int(args.prepare_run(args))
    except (ValueError, OSError, RuntimeError) as error:
        message = _message(error, getattr(args, "out", None))
        if message is None:
            raise
        raise ValueError(f"prepare {args.prepare_command}: {message}") from error
    except KeyboardInterrupt:
        if args.prepare_command not in ("shapes", "check") and first_rank():
            print(f"prepare {args.prepare_command}: {KEPT}", file=sys.stderr)
        raise


def _message(error: Exception, out: Path | None) -> str | None:
    """What the user reads of an error; None for a defect, which is shown in full."""
    reason = str(error).strip()
    if isinstance(error, RuntimeError):
        from t2ikit.prepare.sources import SourceLost

        if isinstance(error, SourceLost):
            reason = reason.splitlines()[-1].rpartition("SourceLost: ")[2]  # a loader process sends its traceback
            return f"{reason}. What is done is kept: give the same command again when --source can be read"
        if type(error).__name__ == "OutOfMemoryError":  # of torch
            return f"the device has too little memory for this batch: give a smaller --batch-size; {KEPT}"
        if loader_process_died(error):
            return f"{reason.splitlines()[0]} The machine has too little memory: give fewer --workers; {KEPT}"
        return None
    if not isinstance(error, OSError) or error.errno is None:
        return reason
    if error.errno in _FULL:
        return f"the disk is full ({error}): free some space, or choose another --out; {KEPT}"
    if error.errno in _FORBIDDEN:
        return f"{error}: this user may not read or write there; choose another --out, or change the permissions"
    if out is not None and str(error.filename).startswith(str(out)):
        return f"{reason}: choose another --out"
    return reason


@contextmanager
def _first_rank_speaks() -> Iterator[None]:
    """Every process takes the same steps; the first one prints."""
    if first_rank():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield
