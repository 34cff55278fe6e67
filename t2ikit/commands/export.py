"""``t2ikit export``: a trained model for diffusers, as one safetensors file, or on the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from t2ikit.commands.arguments import add_trust, expanded
from t2ikit.config.errors import ConfigError

DESCRIPTION = """\
Writes the averaged weights of a checkpoint with all that is needed to sample from them elsewhere, whole or not at all.

--format diffusers (default): a folder that t2ikit.load(DIR) and, with `import t2ikit.pipeline`,
DiffusionPipeline.from_pretrained(DIR, trust_remote_code=False) take: weights, model card with the scores of this step,
sampler settings, text encoder and autoencoder. Of these two, one that the Hub has is named, with revision and hash;
others are included.
--format safetensors: one file with the configuration in its metadata, and with small text encoders and autoencoders
inside; t2ikit.load and model.start take it.

Both are also taken wherever a checkpoint is: `t2ikit sample DIR`, `evaluate`, {checkpoint: DIR} in an experiment."""

EXAMPLES = """examples:
  t2ikit export runs/quickstart exported --license apache-2.0
  t2ikit export runs/quickstart model.safetensors --format safetensors
  t2ikit export runs/cad_i_cmall exported --include-encoders --push NAME/cad-i --license other
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``export`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "export",
        help="a trained model for diffusers, as one file, or on the Hub",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "checkpoint", metavar="CHECKPOINT", type=expanded, help="step-*.ckpt of a run, or its folder for the newest one"
    )
    add("out", metavar="DIR", type=expanded, help="the folder, or the file of --format safetensors")
    add("--format", choices=("diffusers", "safetensors"), default="diffusers", help="what is written (%(default)s)")
    weights_help = "the averaged weights, or the raw ones of the last step (%(default)s)"
    add("--weights", choices=("ema", "raw"), default="ema", help=weights_help)
    add("--include-encoders", action="store_true", help="also include the text encoders and the autoencoder of the Hub")
    licence_help = (
        "licence of the weights in the model card, as the Hub names it: apache-2.0, cc-by-nc-4.0 (%(default)s)"
    )
    add("--license", default="other", metavar="NAME", help=licence_help)
    add("--force", action="store_true", help="replace an export that is there")
    push_help = "then upload the folder to this repository of the Hub, made where it is missing (hf auth login first)"
    add("--push", metavar="OWNER/NAME", help=push_help)
    add("--private", action="store_true", help="with --push: a new repository is private")
    encoder_help = "the text encoder of the training data, if it has moved; once for each where there are several"
    add("--text-encoder", action="append", metavar="FOLDER_OR_ID", help=encoder_help)
    add("--autoencoder", metavar="FOLDER_OR_ID", help="the autoencoder of the training data, if it has moved")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Exports what was parsed; returns the exit status.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is missing or wrong, and what to change.
    """
    if args.format == "safetensors":
        for option, given in (("--push", args.push), ("--include-encoders", args.include_encoders)):
            if given:
                raise ConfigError(f"{option} is of a folder: leave out --format safetensors")
    elif args.out.suffix == ".safetensors":
        raise ConfigError(f"{args.out}: --format diffusers writes a folder; for one file add --format safetensors")
    if args.push is not None and args.push.count("/") != 1:
        raise ConfigError(f"--push {args.push}: a repository of the Hub is OWNER/NAME")
    if args.private and args.push is None:
        raise ConfigError("--private is about --push: give --push OWNER/NAME too")
    if args.out.exists() and not args.force:  # before weights are loaded
        raise ConfigError(f"{args.out} is there already: give another name, or replace it with --force")
    from t2ikit.checkpoints.runs import find_trained
    from t2ikit.run.experiment import origins_of
    from t2ikit.run.export import export_file, export_folder
    from t2ikit.run.trained import load_trained

    checkpoint = find_trained(args.checkpoint, "checkpoint")
    origins = origins_of(trusted=args.trust, checkpoint=checkpoint)
    encoders = args.text_encoder
    trained = load_trained(checkpoint, args.weights, args.autoencoder, origins=origins, text_encoders=encoders)
    if args.format == "safetensors":
        export_file(trained, args.out, force=args.force)
    else:
        export_folder(
            trained,
            args.out,
            licence=args.license,
            include=args.include_encoders,
            force=args.force,
            repository=args.push,
        )
    print(f"{args.out}: {trained.weights} weights of step {trained.step}")
    print(f'  python -c "import t2ikit; t2ikit.load({str(args.out)!r}).sample({"a prompt"!r})[0].save({"0.png"!r})"')
    if args.push is not None:
        print(f"  {_push(args.out, args.push, args.private)}")
    return 0


def _push(folder: Path, repository: str, private: bool) -> str:
    """Uploads the folder in one commit; returns its address.

    Raises:
        ConfigError: the Hub refuses it; the folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="t2ikit export"))
    except Exception as error:  # the Hub's client, its HTTP library and the socket each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--push {repository}: {reason}. {folder} is whole; log in with `hf auth login`") from error
