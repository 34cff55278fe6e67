"""``t2ikit prepare images``: photos to square images."""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.prepare.launch import add_launch, cores, launch_of
from t2ikit.commands.prepare.options import add_out, add_step


def add_parser(steps: Any) -> None:
    """Adds the step to the subcommands of ``prepare``."""
    parser = add_step(
        steps,
        "images",
        "1. photos to square images",
        "Centre-crops and resizes photos and stores them in shuffled order, without loss. Files that cannot be used "
        "are listed in DIR/images/bad_<split>.tsv with the reason.",
    )
    parser.add_argument(
        "--source",
        required=True,
        metavar="FOLDER|FILE|PATTERN|URL",
        help="photos of train, and of val if they are there, too; what it is is seen from its names and first bytes",
    )
    add_out(parser)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="decides the order of the photos")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be used")
    parser.add_argument(
        "--append",
        action="store_true",
        help="add the photos that have come to the source since, behind the others, which keep their place and are not "
        "read again; captions, cutmix and encode then do the new ones only",
    )
    _add_sources(parser)
    add_launch(parser, "cpu", "1", cores(), 32, shard_size=True)
    parser.set_defaults(prepare_run=_run)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_argument_group(
        "sources",
        "--source may be: a folder of class folders (ImageNet: one a wnid), or one with train/ and val/; a folder with "
        "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz as they are downloaded, or "
        "one of the tars: nothing is unpacked; Parquet files of the Hugging Face Hub (a folder, or "
        "hf://datasets/ILSVRC/imagenet-1k; pip install t2ikit[parquet]); WebDataset tars (a folder, or a pattern in "
        "quotes: 'shards/train-{000..146}.tar'). All of them also as URLs: s3:// (pip install s3fs), gs:// (gcsfs), "
        "hf://, https://.",
    )
    sources.add_argument(
        "--val-source",
        metavar="FOLDER|FILE|PATTERN|URL",
        help="photos of val, if they are not in --source, such as ILSVRC2012_img_val.tar",
    )
    sources.add_argument(
        "--val-labels",
        metavar="FILE",
        help="classes of ImageNet's val photos: ILSVRC2012_devkit_t12.tar.gz, Kaggle's LOC_val_solution.csv, or a text "
        "file with one wnid, or `photo wnid`, a line; not needed if one of the first two lies beside the photos",
    )
    sources.add_argument("--val-share", type=float, default=0.02, help="part held out if there is no val")
    sources.add_argument(
        "--class-names",
        metavar="FILE|imagenet",
        help="one `folder<TAB>name` a line, the first line for class 0, if the classes are not ImageNet's; the word "
        "imagenet if a source only numbers its classes and the numbers are ImageNet's",
    )
    sources.add_argument(
        "--label-field", metavar="NAME", help="Parquet column, or field of a WebDataset's JSON, that holds the class"
    )


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.images import prepare_images

    prepare_images(
        args.source,
        args.out,
        args.size,
        class_names=args.class_names,
        val_source=args.val_source,
        val_labels=args.val_labels,
        label_field=args.label_field,
        val_share=args.val_share,
        seed=args.seed,
        strict=args.strict,
        append=args.append,
        launch=launch_of(args),
        shard_size=args.shard_size,
        overwrite=args.overwrite,
    )
    return 0
