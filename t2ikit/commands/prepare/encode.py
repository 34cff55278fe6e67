"""``t2ikit prepare encode``: images and captions to the records of training."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from t2ikit.commands.prepare.launch import add_launch, cores, launch_of
from t2ikit.commands.prepare.options import add_out, add_step, refuse_unused

# As in t2ikit.encoders, whose import loads torch.
_AUTOENCODER = "stabilityai/sd-vae-ft-ema"
_TEXT_ENCODER = "google/flan-t5-xl"
_MAX_TOKENS = 256


def add_parser(steps: Any) -> None:
    """Adds the step to the subcommands of ``prepare``."""
    parser = add_step(
        steps,
        "encode",
        "4. images and captions to records",
        "Encodes every image set with its captions into DIR/train, DIR/val, DIR/train_<setting>.",
    )
    add_out(parser)
    parser.add_argument(
        "--autoencoder",
        default=_AUTOENCODER,
        metavar="pixels|NAME|FOLDER",
        help="`pixels` to store pixels, or an AutoencoderKL of the Hub or of a local folder",
    )
    parser.add_argument("--autoencoder-revision", metavar="REVISION", help="commit, tag or branch on the Hub")
    parser.add_argument(
        "--text-encoder",
        default=_TEXT_ENCODER,
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
    parser.add_argument("--max-tokens", type=int, default=_MAX_TOKENS, help="longer captions are cut")
    parser.add_argument("--seed", type=int, default=0, help="of the `small` text encoder")
    add_launch(parser, workers=min(cores(), 4), batch_size=32, shard_size=True)
    parser.set_defaults(prepare_run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from t2ikit.prepare.encode.encode import PIXELS, SMALL, prepare_encode

    if args.autoencoder == PIXELS:
        refuse_unused(parser, args, ["autoencoder_revision"], "is for an autoencoder of the Hub, not for pixels")
    if args.text_encoder == SMALL:
        refuse_unused(parser, args, ["text_encoder_revision"], "is for a text encoder of the Hub, not for `small`")
    else:
        refuse_unused(parser, args, ["text_dim", "seed"], "is for --text-encoder small")

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
        launch=launch_of(args),
        shard_size=args.shard_size,
        overwrite=args.overwrite,
    )
    return 0
