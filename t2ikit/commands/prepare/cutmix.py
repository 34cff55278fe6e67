"""``t2ikit prepare cutmix``: mixed images of the training set."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from t2ikit.commands.prepare.options import Chunked, Setting, Step, values_of
from t2ikit.launch import cores
from t2ikit.prepare.engine.launch import Launch


@dataclass(frozen=True, kw_only=True)
class CutMix(Chunked):
    """Composes one image per training image, with an insert of another class.

    The mixed images get AIO captions if the training set has those.

    Attributes:
        setting: size and place of the insert; cmall mixes the four others.
        seed: decides which image gives the insert, and its setting and place.
        strict_paper: never place an insert of cm9 in a corner, as the text of the paper says.
    """

    setting: Setting = "cmall"
    seed: int = 0
    strict_paper: bool = False


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.cutmix import prepare_cutmix

    prepare_cutmix(**values_of(CutMix, args), launch=Launch(**values_of(Launch, args)))
    return 0


STEP = Step("cutmix", "2. CutMix images of the training set", CutMix, _run, (Launch("cpu", "1", workers=cores()),))
