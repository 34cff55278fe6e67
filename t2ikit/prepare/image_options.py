"""Options of ``t2ikit prepare images`` and their defaults. The command line shows them: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

Kind = Literal["auto", "folders", "pictures", "webdataset", "parquet"]
"""What a source is, where names and first bytes would say something else."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How photos become a set.

    Attributes:
        seed: decides the order of the photos.
        strict: stop at the first file that cannot be used.
        crop: which part of a photo that is longer than the images are; `random` is a place along its longer side that
            --seed and its name decide.
        min_side: photos whose shorter side has fewer pixels are left out and listed; 0 takes all.
        picture_format: how the images are stored; `raw` is read fastest, a lossless PNG or WebP takes less disk.
        bucket: sizes of aspect buckets, in place of --size, such as 256x256 320x192 192x320: each photo goes to the
            one whose aspect is nearest to its own, DIR/images/<split>/<width over height>; snapshots use the first of
            the names, 1.00 before others. Several values, or given several times.
        append: add the photos that are new in the source at the end of the set; the images that it has stay as they
            are, and their photos are not read again; captions, cutmix and encode then process the new ones only.
        into: name of a further set for training, such as train_coco: all photos of train go to DIR/images/<name>,
            beside the sets that DIR has; nothing is held out, and photos of val are not read.
    """

    seed: int = 0
    strict: bool = False
    crop: Literal["centre", "random"] = "centre"
    min_side: Annotated[int, "PIXELS"] = 0
    picture_format: Literal["raw", "png", "webp"] = "raw"
    bucket: Annotated[tuple[str, ...] | None, "HEIGHTxWIDTH"] = None
    append: bool = False
    into: Annotated[str | None, "NAME"] = None


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Sources.

    --source may be: a folder of class folders (ImageNet: one per wnid), or one with train/ and val/; a folder with
    ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as they are downloaded, or one of
    the tars: nothing is unpacked; Parquet files of the Hugging Face Hub (a folder, or hf://datasets/ILSVRC/imagenet-1k;
    pip install t2ikit[parquet]); WebDataset tars (a folder, or a pattern in quotes: 'shards/train-{000..146}.tar'); a
    folder of pictures without classes (--kind pictures). All of them also as URLs: s3:// (pip install s3fs), gs://
    (gcsfs), hf://, https://.

    What lies in a source and is no photo of it is counted with its reason: files of systems (.DS_Store, Thumbs.db,
    @eaDir), files in no class folder, samples without a photo. Folders of val may be called val, valid or validation.

    Attributes:
        kind: what the source is, if it is taken for something else: class folders (also inside tars), a folder of
            pictures without classes at any depth, WebDataset tars, or Parquet files.
        val_source: where the photos of val are, if not in --source, such as ILSVRC2012_img_val.tar.
        val_labels: classes of ImageNet's val photos: ILSVRC2012_devkit_t12.tar.gz, Kaggle's LOC_val_solution.csv, or a
            text file with one wnid, or `photo wnid`, per line; not needed if one of the first two lies beside the
            photos.
        val_share: share of the photos that is held out for val if the source has no val.
        class_names: one `folder<TAB>name` per line, the first line for class 0, if the classes are not ImageNet's; the
            word imagenet if a source only numbers its classes and the numbers are ImageNet's.
        label_field: Parquet column, or field of a WebDataset's JSON, that holds the class.
        caption_field: Parquet column, or field of a WebDataset's JSON, that holds the caption of a photo; txt means the
            file of this ending beside the photo. The photos then need no class, those without a caption are listed, and
            `prepare captions --kind source` takes the captions.
    """

    kind: Kind = "auto"
    val_source: Annotated[str | None, "FOLDER|FILE|PATTERN|URL"] = None
    val_labels: Annotated[str | None, "FILE"] = None
    val_share: float = 0.02
    class_names: Annotated[str | None, "FILE|imagenet"] = None
    label_field: Annotated[str | None, "NAME"] = None
    caption_field: Annotated[str | None, "NAME"] = None
