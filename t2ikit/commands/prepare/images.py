"""``t2ikit prepare images``: photos to square images."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Annotated

from t2ikit.commands.prepare.options import Chunked, Step, values_of
from t2ikit.launch import cores
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.image_options import ImageOptions, Sources


@dataclass(frozen=True, kw_only=True)
class Images(Chunked, ImageOptions):
    """Crops and resizes photos and stores them in shuffled order, without loss.

    Files that cannot be used are listed in DIR/images/bad_<split>.tsv with the reason.

    Attributes:
        source: photos of train, and of val if they are there, too; names and first bytes tell the form.
        size: side of the images in pixels.
    """

    source: Annotated[str, "FOLDER|FILE|PATTERN|URL"]
    size: int = 256


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.images import prepare_images

    launch = Launch(**values_of(Launch, args))
    prepare_images(**values_of(Images, args), **values_of(Sources, args), launch=launch)
    return 0


STEP = Step("images", "1. photos to square images", Images, _run, (Sources, Launch("cpu", "1", workers=cores())))
