"""``t2ikit benchmark synthreal``: how useful are the images of generators? Cells, tables, figures, a page."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from t2ikit.commands.arguments import add_trust, expanded, positive
from t2ikit.files import require_folder, write_whole

if TYPE_CHECKING:
    from t2ikit.classify.summary import Summary

DESCRIPTION = """\
Trains classifiers on the images of every source and tests them on real photos, and the reverse; then writes tables and
figures beside the paper's numbers into one page, DIR/report.html. Each training is a `lightning run` of
experiments/synthreal/VIEW.yaml. Only what is missing is done: the command can be killed and given again, and several of
them may work on one folder, on machines that share it. A generator that comes later is added by a further --synth."""

EXAMPLES = """examples:
  t2ikit benchmark synthreal --real IMAGENET --synth sd15=SD15 --synth mine=MINE --out DIR
  t2ikit benchmark synthreal --real IMAGENET --synth mine=MINE --out DIR --views rgb,low,high --distribution
  t2ikit benchmark synthreal --real IMAGENET --synth mine=TRAIN,TEST --out DIR --per-class 50,100,250,500 --jobs 8

A folder of images holds train and test (or val), each with a folder for every class, named by its wnid (or as --classes
FILE names them); or it is a prepared data set of pixels. Any option of the experiments may be overridden for all cells:
  --trainer.max_epochs 20 --data.batch_size 256
"""


def names(text: str) -> tuple[str, ...]:
    """The words of a list with commas.

    Raises:
        ArgumentTypeError: none, or one twice.
    """
    words = tuple(text.split(","))
    if not all(words) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"expected different names with commas between them, got {text!r}")
    return words


def counts(text: str) -> tuple[int, ...]:
    """The numbers of a list with commas, each at least 1."""
    return tuple(positive(word) for word in names(text))


def add_parser(subparsers: Any) -> None:
    """Adds the parser of ``synthreal`` to the benchmarks."""
    parser = subparsers.add_parser(
        "synthreal",
        help="how useful the images of generators are for training classifiers",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--real", required=True, metavar="DIR", type=expanded, help="real photos")
    add("--synth", action="append", default=[], metavar="NAME=DIR", help="images of a generator, or NAME=TRAIN,TEST")
    add("--out", required=True, metavar="DIR", type=expanded, help="everything goes there")
    add("--views", type=names, default=("rgb",), metavar="NAMES", help="rgb,depth,texture,low,high (default: rgb)")
    add("--networks", type=names, default=("resnet50",), metavar="NAMES", help="of all views but texture (resnet50)")
    add("--texture-networks", type=names, default=("bagnet9",), metavar="NAMES", help="of the view texture (bagnet9)")
    add("--per-class", type=counts, default=(), metavar="NUMBERS", help="images of each class, such as 50,100,250,500")
    add("--seeds", type=positive, default=3, metavar="N", help="trainings of each kind (default: 3)")
    add("--classes", default="tiny200", metavar="NAME|FILE", help="tiny200, imagenet, or lines `folder<TAB>name`")
    add("--distribution", action="store_true", help="density, coverage and copies of training photos")
    add(
        "--features",
        default="openai/clip-vit-large-patch14",
        metavar="CLIP",
        help="CLIP model of these; `random` is a small fixed network, for tests",
    )
    add("--pictures", action="store_true", help="show pictures of every source in every view")
    add("--compare", action="append", default=[], type=expanded, metavar="DIR", help="show another benchmark beside it")
    add("--jobs", type=positive, default=1, metavar="N", help="trainings at once on this machine (default: 1)")
    add("--experiments", type=expanded, metavar="DIR", help="folder of VIEW.yaml (default: experiments/synthreal)")
    add("--list", action="store_true", help="train nothing: print the state of every cell")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs what was parsed; returns the exit status: 0, or 1 where a cell has failed.

    Raises:
        ConfigError, ValueError, FileNotFoundError: wrong input, before anything is trained.
    """
    require_folder(args.out, "--out")
    from t2ikit.run.distribution import LEAST
    from t2ikit.run.experiment import origins_of
    from t2ikit.run.synthreal import benchmark_of, refuse_bad
    from t2ikit.run.synthreal_cells import items_of, make_missing, missing
    from t2ikit.run.synthreal_results import refuse_unlike, summary_of

    benchmark = benchmark_of(
        args.real.absolute(),
        args.synth,
        args.out,
        args.views,
        args.networks,
        args.texture_networks,
        args.per_class,
        args.seeds,
        args.classes,
        args.overrides,
        args.experiments,
    )
    origins = origins_of(*([] if args.experiments is None else [args.experiments]), trusted=args.trust)
    refuse_unlike(benchmark, args.compare)
    sweeps = benchmark.sweeps()
    items = items_of(benchmark, sweeps)
    if args.list:
        width = max(len(item.cell.name) for item in items)
        for item in items:
            print(f"{item.cell.name:{width}}  {item.place.state()}")
        return 0
    words = _words(args)
    command = f"t2ikit {shlex.join(words)}"
    if args.worker:
        return make_missing(benchmark, items, origins, command)
    todo = missing(benchmark, items)
    status = 0
    if todo:
        refuse_bad(benchmark, sweeps, origins, LEAST if args.distribution else 2)
        print(f"{len(items)} cells, {len(todo)} of them to be made", flush=True)
        if min(args.jobs, len(todo)) > 1:
            from t2ikit.run.workers import run_workers

            status = run_workers([*words, "--worker"], min(args.jobs, len(todo)), args.out / "logs")
        else:
            status = make_missing(benchmark, items, origins, command)
    left = missing(benchmark, items)
    print(f"{len(items) - len(left)} of {len(items)} cells are done")
    if len(left) == len(items):
        return status or 1
    features = args.features if args.distribution else None
    _write(args, summary_of(benchmark, items, origins, features, args.pictures, args.compare))
    if left:
        print(f"left: {', '.join(item.cell.name for item in left[:5])} ...; go on with: {command}", file=sys.stderr)
    return status


def _write(args: argparse.Namespace, summary: Summary) -> None:
    from t2ikit.report.synthreal import synthreal_page

    page = args.out / "report.html"
    write_whole(page, synthreal_page(summary))
    print(f"page: {page}\ntable: {args.out / 'table.csv'}")


def _words(args: argparse.Namespace) -> list[str]:
    """The command line of a worker."""
    words = ["benchmark", "synthreal", "--real", str(args.real), "--out", str(args.out), "--classes", args.classes]
    words += [word for text in args.synth for word in ("--synth", text)]
    for option in ("views", "networks", "texture_networks"):
        words += [f"--{option.replace('_', '-')}", ",".join(getattr(args, option))]
    words += ["--per-class", ",".join(map(str, args.per_class))] if args.per_class else []
    words += ["--seeds", str(args.seeds)]
    words += ["--experiments", str(args.experiments)] if args.experiments is not None else []
    words += [word for name in args.trust for word in ("--trust", name)]
    return words + [f"--{override.key}={override.text}" for override in args.overrides]
