"""The command line of ``t2ikit prepare``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2ikit.augment.cutmix import SETTINGS
from t2ikit.prepare.launch_options import add_launch as _launch
from t2ikit.prepare.launch_options import cores
from t2ikit.prepare.launch_options import launch_of as _launched

if TYPE_CHECKING:
    from t2ikit.prepare.captioners import Captioner

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
    _add_extend(steps)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the step that was parsed; the exit status: 0 done, 1 ``check`` found something, 2 wrong input."""
    try:
        with _first_rank_speaks():
            return int(args.prepare_run(args))
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        print(f"t2ikit prepare {args.prepare_command}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from t2ikit.prepare.sources import SourceLost

        if not isinstance(error, SourceLost):
            raise
        reason = str(error).strip().splitlines()[-1].rpartition("SourceLost: ")[2]  # a loader process sends its trace
        print(
            f"t2ikit prepare {args.prepare_command}: {reason}. What is done is kept: give the same command again when "
            "--source can be read",
            file=sys.stderr,
        )
        return 2


@contextmanager
def _first_rank_speaks() -> Iterator[None]:
    """Every process takes the same steps; one tells of them."""
    from t2ikit.prepare.steps import first_rank

    if first_rank():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


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
        metavar="FOLDER|FILE|PATTERN|URL",
        help="photos of train, and of val if they are there, too; what it is is seen from its names and first bytes",
    )
    _out(parser)
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="decides the order of the photos")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be used")
    parser.add_argument(
        "--append",
        action="store_true",
        help="add the photos that have come to the source since, behind the others, which keep their place and are not "
        "read again; captions, cutmix and encode then do the new ones only",
    )
    _source_options(parser)
    _launch(parser, "cpu", "1", cores(), 32, shard_size=True)


def _source_options(parser: argparse.ArgumentParser) -> None:
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


def _add_captions(steps: Any) -> None:
    from t2ikit.prepare.captioners import Decoding
    from t2ikit.prepare.captioners_http import IMAGE_FORMATS, Service
    from t2ikit.prepare.captioners_llava import DEFAULT_CAPTIONER

    parser = _step(
        steps,
        "captions",
        _run_captions,
        "2. captions from class names, from a model or from a file",
        "Writes the captions of the image sets: `An image of <class name>` (a CutMix image names both classes), long "
        "ones by a model, or your own. A model is asked as in the papers, with a prompt of its own for CutMix images; "
        "a call that was stopped goes on where it was.",
    )
    _out(parser)
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--kind",
        choices=["aio", "llava", "http"],
        default="aio",
        help="class names; LLaVA-NeXT on the devices of this machine; or a model behind an OpenAI-compatible server",
    )
    origin.add_argument(
        "--captions",
        metavar="FILE",
        help="your own, one line an image: TSV (`path<TAB>caption`), JSON lines or Parquet (key or path, caption or "
        "captions); the path is relative to --source of `prepare images`; for a CutMix image, the name of its set "
        "(train_cmall/) stands before the path of its base image",
    )
    parser.add_argument("--sets", nargs="+", metavar="SET", help="only these image sets (train, val, train_cmall, ...)")
    parser.add_argument("--add", action="store_true", help="keep the captions that are there and add these")
    parser.add_argument(
        "--name",
        nargs="+",
        metavar="NAME",
        help="what the stream calls these captions: aio, long (by a model) or own (from a file) if not given; a file "
        "with several captions an image needs as many",
    )
    asked = parser.add_argument_group("what a model is asked")
    asked.add_argument("--prompt", metavar="FILE", help="another prompt than the papers', for plain images")
    asked.add_argument("--cutmix-prompt", metavar="FILE", help="another prompt than the papers', for CutMix images")
    asked.add_argument(
        "--max-new-tokens", type=int, default=Decoding.max_new_tokens, help="longest answer, in the model's tokens"
    )
    asked.add_argument("--temperature", type=float, default=Decoding.temperature, help="0 is greedy")
    asked.add_argument("--top-p", type=float, default=Decoding.top_p, help="with a temperature, share drawn from")
    asked.add_argument("--seed", type=int, default=Decoding.seed, help="with a temperature, decides the draws")
    asked.add_argument(
        "--batch-size", type=int, help="images at once; 32 for llava, eight times --concurrency for http if not given"
    )
    own = parser.add_argument_group("--kind llava")
    own.add_argument(
        "--captioner", default=DEFAULT_CAPTIONER, metavar="NAME|FOLDER", help="a LLaVA-NeXT of the Hub or of a folder"
    )
    own.add_argument("--captioner-revision", metavar="REVISION", help="commit, tag or branch on the Hub")
    _launch(own)
    server = parser.add_argument_group("--kind http")
    server.add_argument("--endpoint", metavar="URL", help="address of the server, such as http://127.0.0.1:8000/v1")
    server.add_argument("--model", metavar="NAME", help="name of the model at the server")
    server.add_argument(
        "--api-key-variable",
        default=Service.key_variable,
        metavar="VARIABLE",
        help="environment variable that holds the API key, if the server wants one",
    )
    server.add_argument("--concurrency", type=int, default=Service.concurrency, help="requests under way at once")
    server.add_argument("--timeout", type=float, default=Service.timeout, help="seconds that an answer may take")
    server.add_argument("--tries", type=int, default=Service.tries, help="how often a request is sent that fails")
    server.add_argument("--image-format", choices=IMAGE_FORMATS, default="png", help="how images are sent")


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
    _launch(parser, "cpu", "1", cores(), 32, shard_size=True)


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
    parser.add_argument("--seed", type=int, default=0, help="of the `small` text encoder")
    _launch(parser, workers=min(cores(), 4), batch_size=32, shard_size=True)


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


def _add_extend(steps: Any) -> None:
    from t2ikit.prepare.extend_prompts import DEFAULT_MODEL, Rewriting

    parser = _step(
        steps,
        "extend",
        _run_extend,
        "longer prompts for a benchmark",
        "Rewrites the prompts of a benchmark as long captions, by an instruction model. The papers' extended scores "
        "are made with such a list, which they do not publish; publish yours. A call that was stopped goes on where "
        "it was.",
    )
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="one prompt a line; .jsonl with a `prompt` in every line (GenEval's metadata); or .tsv with a column "
        "Prompt",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the extended list, JSON lines")
    parser.add_argument("--overwrite", action="store_true", help="replace a list that was made otherwise")
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME|FOLDER", help="instruction model with a chat template"
    )
    parser.add_argument("--revision", metavar="REVISION", help="commit, tag or branch on the Hub")
    parser.add_argument(
        "--instruction", metavar="FILE", help="another instruction than ours; {prompt} stands for the prompt"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=Rewriting.max_new_tokens, help="longest answer, in the model's tokens"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="prompts at once")
    _launch(parser)


def _run_images(args: argparse.Namespace) -> int:
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
        launch=_launched(args),
        shard_size=args.shard_size,
        overwrite=args.overwrite,
    )
    return 0


def _run_captions(args: argparse.Namespace) -> int:
    from t2ikit.prepare.captions import prepare_captions

    captioner = _captioner(args)
    batch_size = args.batch_size
    if batch_size is None:
        batch_size = 8 * args.concurrency if args.kind == "http" else 32
    prepare_captions(
        args.out,
        captioner=captioner,
        file=args.captions,
        sets=args.sets,
        names=args.name or (),
        add=args.add,
        launch=None if captioner is None else _launched(args, batch_size),
        overwrite=args.overwrite,
    )
    return 0


def _captioner(args: argparse.Namespace) -> Captioner | None:
    for option, value, kind in (
        ("--endpoint", args.endpoint, "http"),
        ("--model", args.model, "http"),
        ("--captioner-revision", args.captioner_revision, "llava"),
    ):
        if value is not None and args.kind != kind:
            raise ValueError(f"{option} is for --kind {kind}")
    if args.kind == "aio":
        return None
    from t2ikit.prepare.captioners import CUTMIX_PROMPT, PROMPT, Decoding, Prompts
    from t2ikit.prepare.captioners_http import HTTPCaptioner, Service
    from t2ikit.prepare.captioners_llava import LlavaNextCaptioner

    prompts = Prompts(
        _text(args.prompt, "--prompt") if args.prompt else PROMPT,
        _text(args.cutmix_prompt, "--cutmix-prompt") if args.cutmix_prompt else CUTMIX_PROMPT,
    )
    decoding = Decoding(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    if args.kind == "llava":
        return LlavaNextCaptioner(args.captioner, args.captioner_revision, prompts, decoding)
    if not args.endpoint or not args.model:
        raise ValueError("--kind http needs --endpoint URL, the server, and --model NAME, one of its models")
    service = Service(args.endpoint, args.api_key_variable, args.concurrency, args.timeout, args.tries)
    return HTTPCaptioner(service, args.model, prompts, decoding, args.image_format)


def _text(path: str, option: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} needs a text file; {path} cannot be read ({error})") from error


def _run_cutmix(args: argparse.Namespace) -> int:
    from t2ikit.prepare.cutmix import prepare_cutmix

    prepare_cutmix(
        args.out,
        args.setting,
        seed=args.seed,
        strict_paper=args.strict_paper,
        launch=_launched(args),
        shard_size=args.shard_size,
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
        text_dtype=args.text_dtype,
        seed=args.seed,
        launch=_launched(args),
        shard_size=args.shard_size,
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


def _run_extend(args: argparse.Namespace) -> int:
    from t2ikit.prepare.extend_prompts import INSTRUCTION, Rewriting, extend_prompts

    instruction = _text(args.instruction, "--instruction") if args.instruction else INSTRUCTION
    extend_prompts(
        args.prompts,
        args.out,
        args.model,
        args.revision,
        Rewriting(instruction, args.max_new_tokens),
        _launched(args, args.batch_size),
        args.overwrite,
    )
    return 0
