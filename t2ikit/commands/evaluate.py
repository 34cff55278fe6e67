"""``t2ikit evaluate``: scores a checkpoint, or pictures of any other model, as a snapshot of an experiment does."""

from __future__ import annotations

import argparse
import math
from typing import Any

from t2ikit.commands.arguments import METHOD_HELP, add_search, add_trust, expanded, method, positive
from t2ikit.config.errors import ConfigError
from t2ikit.config.overrides import take_overrides
from t2ikit.files import require_folder

__all__ = ["add_parser", "run", "take_overrides"]

DESCRIPTION = """\
Takes a snapshot (its prompts, sampler and metrics) of an experiment with the weights of a checkpoint: the same code as
in training, with the same scores. Or scores pictures that another program made from the prompts of the snapshot."""

EXAMPLES = """examples:
  t2ikit evaluate runs/quickstart/version_0 --snapshot val
  t2ikit evaluate RUN/checkpoints/step-00250000.ckpt --snapshot val --guidance 0,1,2,4 --devices 8
  t2ikit evaluate RUN --snapshot geneval --seed 1 --compare RUN --varied seeds
  t2ikit evaluate RUN --snapshot val --search random --candidates 8 --verifier t2ikit.shapes.AskedProbability
  t2ikit evaluate --images PICTURES --experiment experiments/quickstart.yaml --snapshot val
  t2ikit evaluate --write-reference statistics --experiment experiments/base/evaluation.yaml --snapshot imagenet_val

What is written, below --out:
  step-00250000/scores/SCORE.json      each score with everything it depends on (its fingerprint); grid.png;
                                       details/ with verdicts and answers of the metrics that give them
  step-00250000-guidance-sweep/        a folder for each weight, scores.csv, and guidance.png with their curves
Options and overrides that change what is evaluated are part of the folder's name (--data.root is not), as is an
--experiment with a snapshot that the run has under the same name. An interrupted call continues with its images.

Any option of the experiment's data and snapshots may be overridden:
--data.root DIR, --callbacks.val.reference_limit 500
"""

# Options of sampling: none of them has a meaning for existing pictures.
SAMPLING = ("guidance", "steps", "method", "seed", "batch_size", "weights", "autoencoder", "search", "verifier")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``evaluate`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "evaluate",
        help="score a checkpoint, or pictures of any model",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    checkpoint_help = "step-*.ckpt of a run, or its folder for the newest one"
    add("checkpoint", metavar="CHECKPOINT", type=expanded, nargs="?", help=checkpoint_help)
    add("--snapshot", required=True, metavar="NAME", help="the snapshot: its key in the experiment's callbacks")
    add(
        "--experiment",
        type=expanded,
        metavar="FILE",
        help="experiment of the snapshot (default: that of the checkpoint's run)",
    )
    images_help = "score the pictures in DIR instead: one per prompt, in the order of the numbers in their names, or "
    add("--images", type=expanded, metavar="DIR", help=images_help + "in the layout of the benchmark of the prompts")
    write_help = "only write the statistics of the reference set, so that no later evaluation computes them"
    add("--write-reference", type=expanded, metavar="DIR", help=write_help)
    add("--guidance", type=_weights, metavar="W[,W...]", help="guidance weight; several make a sweep with a figure")
    add("--steps", type=positive, metavar="N", help="steps of the sampler (default: the snapshot's, here and below)")
    add("--method", type=method, help=METHOD_HELP)
    add("--seed", type=int, metavar="N", help="seed of the noise")
    add("--batch-size", type=positive, metavar="N", help="images sampled at once on each device")
    add("--limit", type=positive, metavar="N", help="take the first N prompts only")
    add("--weights", choices=("ema", "raw"), help="averaged weights, or the raw ones (averaged, where there are any)")
    add("--autoencoder", metavar="FOLDER_OR_ID", help="the autoencoder of the training data, if it has moved")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add("--devices", type=positive, metavar="N", help="devices of this machine that sample and score (1)")
    add("--num-nodes", type=positive, metavar="N", help="machines, each started with this command (1)")
    add("--compare", type=expanded, metavar="DIR", help="a run, or a folder with scores/, to compare the scores with")
    varied_help = "fields of the fingerprints that may differ in the comparison, e.g. guidance,steps (of the sampler)"
    add("--varied", type=_names, default=(), metavar="FIELD[,FIELD...]", help=varied_help)
    add_search(parser)
    add_trust(parser)
    add("--out", type=expanded, metavar="DIR", help="default: RUN/evaluations/NAME; for --images evaluations/NAME")
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluates a checkpoint or pictures; returns the exit status.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is missing or wrong, and what to change.
    """
    _check(args)
    from t2ikit.run.offline import evaluate  # loads torch and Lightning: not for --help

    evaluate(args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses options that contradict each other."""
    if [args.checkpoint, args.images, args.write_reference].count(None) != 2:
        raise ConfigError("what is evaluated? Give either a CHECKPOINT or --images DIR (or --write-reference DIR)")
    if args.checkpoint is None:
        option = "images" if args.images is not None else "write-reference"
        if args.experiment is None:
            raise ConfigError(
                f"--{option} needs --experiment FILE, which names the snapshot with its prompts and metrics"
            )
        given = [name for name in SAMPLING if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"--{given[0].replace('_', '-')} is an option of sampling, which --{option} leaves out")
    for option in ("out", "write_reference"):
        if getattr(args, option) is not None:
            require_folder(getattr(args, option), f"--{option.replace('_', '-')}")
    for override in args.overrides:
        if override.key.split(".")[0] not in ("data", "callbacks") and override.key != "trainer.precision":
            raise ConfigError(
                f"--{override.key}: an evaluation takes overrides of data, callbacks and trainer.precision; the model "
                "is that of the checkpoint"
            )
    if args.guidance is not None and len(args.guidance) > 1 and args.compare is not None:
        raise ConfigError("--compare compares two evaluations: give --guidance one weight")
    if args.varied and args.compare is None:
        raise ConfigError("--varied says what may differ in a comparison: give --compare DIR")


def _weights(text: str) -> list[float]:
    try:
        weights = [float(weight) for weight in text.split(",")]
    except ValueError:
        weights = [math.nan]
    if len(set(weights)) < len(weights) or not all(map(math.isfinite, weights)):
        raise argparse.ArgumentTypeError(f"give different numbers, separated by commas, such as 0,1,2,4; got {text}")
    return weights


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))
