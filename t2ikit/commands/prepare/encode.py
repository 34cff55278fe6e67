"""``t2ikit prepare encode``: images and captions to the records of training."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Annotated, Literal

from t2ikit.commands.prepare.options import Chunked, Revision, Step, refuse_unused, values_of
from t2ikit.launch import cores
from t2ikit.prepare.engine.launch import Launch


@dataclass(frozen=True, kw_only=True)
class Encode(Chunked):
    """Encodes every image set with its captions into DIR/train, DIR/val, DIR/train_<setting>.

    Attributes:
        autoencoder: `pixels` to store pixels, or an AutoencoderKL from the Hub or from a local folder, or
            `embedded:shapes-full` or `embedded:shapes-simple`, those of the embedded data set.
        autoencoder_revision: commit, tag or branch on the Hub.
        text_encoder: `small` to build a T5 with random weights for the words of the captions, or a text encoder from
            the Hub or from a folder; given several times, for a denoiser that reads several, in its order.
        text_encoder_revision: commit, tag or branch on the Hub, one for each text encoder.
        text_dim: width of the `small` text encoder.
        text_dtype: number format in which the text encoder computes.
        token_format: how text states are stored.
        max_tokens: longest caption in tokens; longer captions are cut.
        seed: decides the weights of the `small` text encoder.
        keep_picture: store the 8-bit picture beside latents, compressed without loss, for an objective that reads it.
        picture_format: of the kept picture.
    """

    # Defaults as in t2ikit.encoders, whose import loads torch.
    autoencoder: Annotated[str, "pixels|NAME|FOLDER"] = "stabilityai/sd-vae-ft-ema"
    autoencoder_revision: Revision = None
    text_encoder: Annotated[tuple[str, ...], "small|NAME|FOLDER"] = ("google/flan-t5-xl",)
    text_encoder_revision: Annotated[tuple[str, ...], "REVISION"] = ()
    text_dim: int = 64
    text_dtype: Literal["float32", "bfloat16"] = "float32"
    token_format: Literal["int8", "float16"] = "int8"
    max_tokens: int = 256
    seed: int = 0
    keep_picture: bool = False
    picture_format: Literal["png", "webp"] = "png"


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.encode.encode import PIXELS, SMALL, prepare_encode

    if args.autoencoder == PIXELS:
        refuse_unused(Encode, args, "is for an autoencoder of the Hub, not for pixels", "autoencoder_revision")
    if args.text_encoder == [SMALL]:
        refuse_unused(Encode, args, "is for a text encoder of the Hub, not for `small`", "text_encoder_revision")
    if SMALL not in args.text_encoder:
        refuse_unused(Encode, args, "is for --text-encoder small", "text_dim", "seed")
    if not args.keep_picture:
        refuse_unused(Encode, args, "is for --keep-picture", "picture_format")
    prepare_encode(**values_of(Encode, args), launch=Launch(**values_of(Launch, args)))
    return 0


STEP = Step("encode", "4. images and captions to records", Encode, _run, (Launch(workers=min(cores(), 4)),))
