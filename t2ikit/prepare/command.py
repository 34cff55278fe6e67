"""The command line of ``t2ikit prepare``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from t2ikit.augment.cutmix import SETTINGS

_ORDER = "Steps, in this order: images, captions, cutmix, encode; then point an experiment at DIR with --data.root DIR."


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds ``prepare`` and its steps to the subcommands of a parser; ``run`` runs what was parsed."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "prepare",
        help="turn photos and captions into the records of training",
        description="Turns photos and captions into the records that training streams. " + _ORDER,
    )
    steps = parser.add_subparsers(dest="prepare_command", metavar="STEP", required=True)
    _add_images(steps)
    _add_captions(steps)
    _add_cutmix(steps)
    _add_encode(steps)
    _add_shapes(steps)
    _add_check(steps)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the step that was parsed; the exit status: 0 done, 1 ``check`` found something, 2 wrong input."""
    try:
        return int(args.prepare_run(args))
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        print(f"t2ikit prepare {args.prepare_command}: {error}", file=sys.stderr)
        return 2


def _step(steps: Any, name: str, run_step: Any, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = steps.add_parser(
        name, help=summary, description=description, formatter_class=_Help
    )
    parser.set_defaults(prepare_run=run_step)
    return parser


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of this data set, the same one for every step"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what an earlier call made here from other inputs"
    )


def _workers(parser: argparse.ArgumentParser) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--workers", type=int, default=cores, help="processes that work on images; 0 for none beside this one"
    )


def _add_images(steps: Any) -> None:
    parser = _step(
        steps,
        "images",
        _run_images,
        "1. photos to square images",
        "Centre-crops and resizes photos and stores them in shuffled order, without loss. Files that cannot be used "
        "are listed in DIR/images/bad_<split>.tsv with the reason.",
    )
    parser.add_argument(
        "--source",
        required=True,
        metavar="FOLDER",
        help="class folders (ImageNet: one a wnid), or train/ and val/ with class folders",
    )
    _out(parser)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument(
        "--class-names", metavar="FILE", help="one `folder<TAB>name` a line, if the classes are not ImageNet's"
    )
    parser.add_argument("--val-share", type=float, default=0.02, help="part held out if the source has no val/")
    parser.add_argument("--seed", type=int, default=0, help="decides the order of the photos")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be used")
    _workers(parser)


def _add_captions(steps: Any) -> None:
    parser = _step(
        steps,
        "captions",
        _run_captions,
        "2. captions from class names or from a table",
        "Writes the captions of the image sets: `An image of <class name>` (a CutMix image names both classes), or "
        "your own.",
    )
    _out(parser)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--kind", choices=["aio"], default="aio", help="captions made from the class names")
    kind.add_argument(
        "--tsv",
        metavar="FILE",
        help="one `path<TAB>caption` a line; the path is relative to --source of `prepare images`; for a CutMix image, "
        "the name of its set (train_cmall/) stands before the path of its base image",
    )
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these image sets (train, val, train_cmall, ...)")


def _add_cutmix(steps: Any) -> None:
    parser = _step(
        steps,
        "cutmix",
        _run_cutmix,
        "3. CutMix images of the training set",
        "Composes one image a training image with an insert of another class. They get AIO captions if the training "
        "set has those.",
    )
    _out(parser)
    parser.add_argument("--setting", choices=SETTINGS, default="cmall", help="where the insert goes")
    parser.add_argument("--seed", type=int, default=0, help="decides partners, settings and rectangles")
    parser.add_argument("--strict-paper", action="store_true", help="keep the inserts of cm9 off the corners")
    _workers(parser)


def _add_encode(steps: Any) -> None:
    from t2ikit.encoders.autoencoders import DEFAULT_AUTOENCODER
    from t2ikit.encoders.text import DEFAULT_TEXT_ENCODER, MAX_TOKENS

    parser = _step(
        steps,
        "encode",
        _run_encode,
        "4. images and captions to records",
        "Encodes every image set with its captions into DIR/train, DIR/val, DIR/train_<setting>.",
    )
    _out(parser)
    parser.add_argument(
        "--autoencoder",
        default=DEFAULT_AUTOENCODER,
        metavar="pixels|NAME|FOLDER",
        help="`pixels` to store pixels, or an AutoencoderKL of the Hub or of a local folder",
    )
    parser.add_argument("--autoencoder-revision", metavar="REVISION", help="commit, tag or branch on the Hub")
    parser.add_argument(
        "--text-encoder",
        default=DEFAULT_TEXT_ENCODER,
        metavar="small|NAME|FOLDER",
        help="`small` to build a T5 with random weights for the words of the captions, or a T5 of the Hub or of a "
        "folder",
    )
    parser.add_argument("--text-encoder-revision", metavar="REVISION", help="commit, tag or branch on the Hub")
    parser.add_argument("--text-dim", type=int, default=64, help="width of the `small` text encoder")
    parser.add_argument("--text-dtype", choices=["float32", "bfloat16"], default="float32", help="of the text encoder")
    parser.add_argument(
        "--token-format", choices=["int8", "float16"], default="int8", help="how text states are stored"
    )
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="longer captions are cut")
    parser.add_argument("--batch-size", type=int, default=32, help="images that go through a model at once")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; the first GPU if there is one")
    parser.add_argument("--seed", type=int, default=0, help="of the `small` text encoder")


def _add_shapes(steps: Any) -> None:
    parser = _step(
        steps,
        "shapes",
        _run_shapes,
        "the embedded data set of rendered shapes",
        "Renders and encodes the embedded data set. Experiments on shapes do this by themselves.",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set")
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


def _add_check(steps: Any) -> None:
    parser = _step(
        steps,
        "check",
        _run_check,
        "verify prepared sets",
        "Reads every record of the sets in DIR, and compares the hashes of their files. Lists what is wrong; exit "
        "status 1 if anything is.",
    )
    parser.add_argument("folder", metavar="DIR", help="a data set, or a single set of it")


def _run_images(args: argparse.Namespace) -> int:
    from t2ikit.prepare.images import prepare_images

    prepare_images(
        args.source,
        args.out,
        args.size,
        class_names=args.class_names,
        val_share=args.val_share,
        seed=args.seed,
        strict=args.strict,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    return 0


def _run_captions(args: argparse.Namespace) -> int:
    from t2ikit.prepare.captions import prepare_captions

    prepare_captions(args.out, args.kind, args.tsv, args.sets, args.overwrite)
    return 0


def _run_cutmix(args: argparse.Namespace) -> int:
    from t2ikit.prepare.cutmix import prepare_cutmix

    prepare_cutmix(
        args.out,
        args.setting,
        seed=args.seed,
        strict_paper=args.strict_paper,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    return 0


def _run_encode(args: argparse.Namespace) -> int:
    from t2ikit.prepare.encode import prepare_encode

    prepare_encode(
        args.out,
        autoencoder=args.autoencoder,
        autoencoder_revision=args.autoencoder_revision,
        text_encoder=args.text_encoder,
        text_encoder_revision=args.text_encoder_revision,
        token_format=args.token_format,
        max_tokens=args.max_tokens,
        text_dim=args.text_dim,
        batch_size=args.batch_size,
        device=args.device,
        text_dtype=args.text_dtype,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    return 0


def _run_shapes(args: argparse.Namespace) -> int:
    from t2ikit.data.shapes_set import build_shapes

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


def _run_check(args: argparse.Namespace) -> int:
    from t2ikit.prepare.check import prepare_check

    findings = prepare_check(args.folder)
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings" if findings else "everything is good")
    return 1 if findings else 0
