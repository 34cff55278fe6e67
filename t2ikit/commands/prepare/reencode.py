"""``t2ikit prepare reencode``: photos through an autoencoder and back."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from t2ikit.commands.prepare.options import Step, values_of
from t2ikit.prepare.reencode_options import Reencoding


@dataclass(frozen=True, kw_only=True)
class Reencode:
    """Makes pictures again through an autoencoder, in the same class folders.

    `benchmark synthreal --synth vae=DIR` then shows how much of the gap of generated images is the autoencoder's.

    A call that was stopped or killed goes on when it is given again.

    Attributes:
        source: a folder of class folders, or of train and val of these.
        out: gets the same folders.
        classes: take these class folders only: tiny200, imagenet, or a file with one `folder<TAB>name` a line.
        per_class: take the first so many pictures of a folder only.
        device: auto takes a GPU where there is one.
        batch_size: pictures at once.
        overwrite: remove all pictures that earlier calls made here in another way; no other file is removed.
    """

    source: Annotated[Path, "DIR"]
    out: Annotated[Path, "DIR"]
    classes: Annotated[str | None, "tiny200|imagenet|FILE"] = None
    per_class: Annotated[int | None, "N"] = None
    device: Annotated[str, "auto|cpu|cuda"] = "auto"
    batch_size: int = 16
    overwrite: bool = False

    def __post_init__(self) -> None:
        for option, value in (("per-class", self.per_class), ("batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"--{option} must be at least 1; got {value}")


def _run(args: argparse.Namespace) -> int:
    from t2ikit.classify.classes import read_classes
    from t2ikit.prepare.reencode import prepare_reencode
    from t2ikit.run.trained import find_device

    given = Reencode(**values_of(Reencode, args))
    prepare_reencode(
        given.source,
        given.out,
        Reencoding(**values_of(Reencoding, args)),
        folders=None if given.classes is None else set(read_classes(given.classes).label_of_folder),
        per_class=given.per_class,
        device=find_device(None if given.device == "auto" else given.device),
        batch_size=given.batch_size,
        overwrite=given.overwrite,
    )
    return 0


STEP = Step("reencode", "photos through an autoencoder and back", Reencode, _run, (Reencoding,))
