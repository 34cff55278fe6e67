"""``t2ikit prepare shapes``: the embedded data set."""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.prepare.options import SETTINGS, add_step, expanded


def add_parser(steps: Any) -> None:
    """Adds the step to the subcommands of ``prepare``."""
    parser = add_step(
        steps,
        "shapes",
        "the embedded data set of rendered shapes",
        "Renders and encodes the embedded data set. Experiments on shapes do this by themselves.",
    )
    parser.add_argument("--out", required=True, type=expanded, metavar="DIR", help="folder of the data set")
    parser.add_argument("--size", type=int, default=16, help="side of the images in pixels")
    parser.add_argument(
        "--difficulty", choices=["simple", "full"], default="simple", help="one plain object, or scenes"
    )
    parser.add_argument("--count", type=int, default=20000, help="images of train")
    parser.add_argument("--val-count", type=int, default=1000, help="images of val")
    parser.add_argument(
        "--captions", choices=["aio", "long"], default="long", help="class name only, or the whole scene"
    )
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=["cmall"], help="CutMix sets")
    parser.add_argument("--seed", type=int, default=0, help="decides the scenes")
    parser.set_defaults(prepare_run=_run)


def _run(args: argparse.Namespace) -> int:
    from t2ikit.shapes.dataset import build_shapes

    build_shapes(
        args.out,
        size=args.size,
        difficulty=args.difficulty,
        count=args.count,
        val_count=args.val_count,
        captions=args.captions,
        settings=tuple(args.settings),
        seed=args.seed,
    )
    return 0
