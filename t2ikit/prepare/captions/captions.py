"""Captions of the image sets: "An image of <class name>" (AIO), of the source, of a captioner, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2ikit.launch import first_rank
from t2ikit.prepare.captions.caption_file import (
    CaptionColumn,
    aio_caption,
    column_names,
    images_done,
    source_caption,
    write_captions,
)
from t2ikit.prepare.captions.captioner import Captioner
from t2ikit.prepare.images import IMAGES, metadata_of, wanted_sets
from t2ikit.records.record_set import RecordSet

if TYPE_CHECKING:
    from t2ikit.prepare.engine.launch import Launch


def prepare_captions(
    out: str | Path,
    *,
    captioner: Captioner | None = None,
    from_source: bool = False,
    file: str | Path | None = None,
    sets: Sequence[str] | None = None,
    names: Sequence[str] = (),
    add: bool = False,
    launch: Launch | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Writes the captions of image sets: of a captioner, of the source, from a file, or of the class names (AIO).

    Captions stay when images are appended: the same call then adds those of the new images, and the AIO captions of
    these if the file has such a column. ``t2ikit prepare captions --help`` explains the options ``sets``, ``names``,
    ``add`` and ``overwrite``.

    Args:
        out: the folder of the data set.
        captioner: a model that describes the images.
        from_source: take the captions that the source holds beside the photos (``--caption-field``).
        file: the option ``--captions``. A key in it is the key of an image, such as ``train/n02012849/x.JPEG``, or
            ``train_cmall/train/n02012849/x.JPEG`` for CutMix.
        sets: None takes all, or with a file those whose keys it has.
        names: of the columns; default "aio", "source" for those of the source, "long" for a captioner, for a file "own"
            or "own1", "own2", ...
        launch: on which devices the captioner runs.

    Returns:
        Names of the sets that have these captions now.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is wrong with which option, or which line.
    """
    root = Path(out)
    targets = wanted_sets(root, sets)
    if (captioner is not None or from_source) and file is not None:
        raise ValueError("captions come from a file (--captions) or from a captioner (--kind), not from both at once")
    if captioner is None and not first_rank():
        return targets  # nothing to share: one process writes
    if captioner is not None:
        from t2ikit.prepare.captions.from_model import caption_images

        name = column_names(names, "long", 1)[0]
        caption_images(root, targets, captioner, name, add, launch, overwrite)
    elif file is not None:
        from t2ikit.prepare.captions.from_file import import_captions

        targets = import_captions(root, targets, Path(file), names, add, overwrite, every=sets is not None)
    else:
        kind = "source" if from_source else "aio"
        name = column_names(names, kind, 1)[0]
        for target in targets:
            write_known(root, target, overwrite, name, add, kind)
    return targets


def write_known(
    root: Path, name: str, overwrite: bool, column: str = "aio", add: bool = False, kind: str = "aio"
) -> None:
    """Writes the captions of one image set that follow from its metadata; does nothing where they are there.

    Args:
        root: the folder of the data set.
        name: of the image set.
        overwrite: replace other captions.
        column: name of these captions.
        add: keep the others.
        kind: "aio", or "source" for those of the source.

    Raises:
        ValueError: the images have no class, or were read without captions.
    """
    caption = {"aio": aio_caption, "source": source_caption}[kind]
    columns = (CaptionColumn(column, kind, kind),)
    done = images_done(root, name, columns, add, overwrite)
    if done < len(RecordSet(root / IMAGES / name)):
        rows = ((metadata, (caption(metadata),)) for metadata in metadata_of(root, name, done))
        write_captions(root, name, columns, rows, add, done)
