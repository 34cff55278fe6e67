"""``t2ikit prepare shapes``: the embedded data set."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from t2ikit.commands.prepare.options import Setting, Step, values_of


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Renders and encodes the embedded data set. Experiments on shapes do this by themselves.

    Attributes:
        out: folder of the data set.
        size: side of the images in pixels.
        difficulty: one plain object, or scenes.
        count: images of train.
        val_count: images of val.
        captions: aio names the class only, long describes the whole scene.
        settings: CutMix settings, each of which gets a set.
        seed: decides the scenes.
    """

    out: Annotated[Path, "DIR"]
    size: int = 16
    difficulty: Literal["simple", "imagenet", "full"] = "simple"
    count: int = 20000
    val_count: int = 1000
    captions: Literal["aio", "long"] = "long"
    settings: tuple[Setting, ...] = ("cmall",)
    seed: int = 0


def _run(args: argparse.Namespace) -> int:
    from t2ikit.shapes.dataset import build_shapes

    build_shapes(**values_of(Shapes, args))
    return 0


STEP = Step("shapes", "the embedded data set of rendered shapes", Shapes, _run)
