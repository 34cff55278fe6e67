"""``t2ikit prepare cutmix``: mixed images of the training set."""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.prepare.launch import add_launch, cores, launch_of
from t2ikit.commands.prepare.options import SETTINGS, add_out, add_step


def add_parser(steps: Any) -> None:
    """Adds the step to the subcommands of ``prepare``."""
    parser = add_step(
        steps,
        "cutmix",
        "2. CutMix images of the training set",
        "Composes one image a training image with an insert of another class. They get AIO captions if the training "
        "set has those.",
    )
    add_out(parser)
    parser.add_argument("--setting", choices=SETTINGS, default="cmall", help="where the insert goes")
    parser.add_argument("--seed", type=int, default=0, help="decides partners, settings and rectangles")
    parser.add_argument("--strict-paper", action="store_true", help="keep the inserts of cm9 off the corners")
    add_launch(parser, "cpu", "1", cores(), 32, shard_size=True)
    parser.set_defaults(prepare_run=_run)


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.cutmix import prepare_cutmix

    prepare_cutmix(
        args.out,
        args.setting,
        seed=args.seed,
        strict_paper=args.strict_paper,
        launch=launch_of(args),
        shard_size=args.shard_size,
        overwrite=args.overwrite,
    )
    return 0
