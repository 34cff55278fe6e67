"""``t2ikit import``: released weights as a run of one's own."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from t2ikit.commands.arguments import add_trust, expanded, whole
from t2ikit.config.merging import Override
from t2ikit.config.overrides import take_overrides

__all__ = ["add_parser", "run", "take_overrides"]

DESCRIPTION = """\
Writes a run folder from weights that the authors of CAD-I (or of CAD) have released, or from a checkpoint of their
program, whole or not at all. Afterwards t2ikit sample, evaluate, export, report, t2ikit.load and the start of another
run (model.start) take it as any run. Only --resume does not: released weights lack what a training needs to go on.

Sizes are in the shapes of the weights; numbers of heads and dropout in the config.json beside them. What they do not
say is taken from an experiment of the paper: process, normalisation of the latents, text drop, data. Nothing of the
file is run: it is safetensors, or read by torch with weights_only."""

EXAMPLES = """examples:
  t2ikit import Lucasdegeorge/CAD-I runs/released_cad_i
  t2ikit import Lucasdegeorge/CAD-I_TA runs/released_cad_i_ta --revision main
  t2ikit import DOWNLOADED/model.safetensors runs/released --text-encoder flan-t5-xl --autoencoder sd-vae-ft-ema
  t2ikit import last.ckpt runs/theirs --experiment cad_i_cmall --model.space.normalisation channelwise

Any option of the experiment may be overridden: --model.denoiser.compute_heads 12
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``import`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "import",
        help="released weights as a run of one's own",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    source_help = "the weights: a file, a folder with model.safetensors, or a repository of the Hub"
    add("source", metavar="SOURCE", help=source_help)
    add("checkpoint", metavar="CHECKPOINT", type=expanded, help="the run folder that is written, such as runs/released")
    add("--revision", metavar="REVISION", help="commit, tag or branch of the repository")
    experiment_help = (
        "experiment that the weights are of, a file or a name (that of the repository where it is known, else cad_i_ta)"
    )
    add("--experiment", type=expanded, metavar="EXPERIMENT", help=experiment_help)
    coherence_help = (
        "tensors of a coherence token, where there are some: keep them, drop them, or keep those that were ever "
        "trained (%(default)s)"
    )
    add("--coherence", choices=("auto", "keep", "drop"), default="auto", help=coherence_help)
    encoder_help = "the text encoder that it was trained with (google/flan-t5-xl)"
    add("--text-encoder", metavar="FOLDER_OR_ID", help=encoder_help)
    add("--autoencoder", metavar="FOLDER_OR_ID", help="the autoencoder (that of the experiment)")
    add("--step", type=whole, metavar="N", help="its optimizer steps, where the file does not name them (0)")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Imports what was parsed; returns the exit status.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is missing or wrong, and what to change.
    """
    from t2ikit.run.experiment import origins_of
    from t2ikit.run.imported import Request, import_released

    overrides: list[Override] = args.overrides
    given = (args.source, args.revision, args.experiment, tuple(overrides), args.coherence, args.text_encoder)
    request = Request(*given, args.autoencoder, args.step, _command(args))
    facts = import_released(request, args.checkpoint, origins_of(experiment=request.named, trusted=args.trust))
    print(f"{args.checkpoint}: {facts['file']} of {facts['source']}, experiment {facts['experiment']}")
    print(f"  weights: {facts['weights']}; {facts['coherence']}")
    where = shlex.quote(str(args.checkpoint))
    print(f'Next:\n  t2ikit sample {where} --prompt "a red circle above a blue square" --out samples')
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command as it was typed, as far as it decides what is written."""
    words = ["t2ikit", "import", args.source, str(args.checkpoint)]
    for option in ("revision", "experiment", "coherence", "text_encoder", "autoencoder", "step"):
        value = getattr(args, option)
        words += [] if value is None else [f"--{option.replace('_', '-')}", str(value)]
    words += [word for override in args.overrides for word in (f"--{override.key}", override.text)]
    return shlex.join(words)
