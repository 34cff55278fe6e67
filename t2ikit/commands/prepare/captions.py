"""``t2ikit prepare captions``: from class names, from the source, from a model or from a file."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from t2ikit.commands.prepare.options import DataSet, Revision, Step, TextFile, refuse_unused, text_of, values_of
from t2ikit.prepare.captions.captioner import CUTMIX_PROMPT, DEFAULT_CAPTIONER, PROMPT, Captioner, Decoding, Prompts
from t2ikit.prepare.captions.http import HTTPCaptioner, ImageFormat
from t2ikit.prepare.captions.service import Service
from t2ikit.prepare.engine.launch import Devices, Launch


@dataclass(frozen=True, kw_only=True)
class Captions(DataSet):
    """Writes the captions of the image sets: `An image of <class name>`, those of the source, of a model, or your own.

    `An image of` names both classes of a CutMix image. A model gets the prompts of the papers, of which one is for
    CutMix images. To continue after a call was stopped, give the same command again.

    Attributes:
        kind: aio takes the class names; source the captions that the source holds beside its photos (--caption-field of
            `prepare images`); llava runs a LLaVA-NeXT on the devices of this machine; http asks a model
            behind an OpenAI-compatible server. It is aio if neither this nor --captions is given.
        captions: a file with your own captions, instead of --kind. It has one line per image, as TSV
            (`path<TAB>caption`), JSON lines or Parquet (key or path, caption or captions). The path is relative to
            --source of `prepare images`; for a CutMix image, the name of its set (train_cmall/) stands before the path
            of its base image.
        sets: only these image sets (train, val, train_cmall, ...).
        add: keep the existing captions and add these to them.
        name: name of these captions, which experiments use; if not given, aio for class names, source for those of the
            source, long for a model, own
            for a file. A file with several captions per image needs one name for each.
    """

    kind: Literal["aio", "source", "llava", "http"] | None = None
    captions: Annotated[Path | None, "FILE"] = None
    sets: Annotated[tuple[str, ...] | None, "SET"] = None
    add: bool = False
    name: Annotated[tuple[str, ...] | None, "NAME"] = None


@dataclass(frozen=True, kw_only=True)
class Asked(Decoding):
    """What a model is asked.

    Attributes:
        prompt: file with your own prompt for plain images, instead of the papers'.
        cutmix_prompt: file with your own prompt for CutMix images, instead of the papers'.
        batch_size: images at once; if not given, 32 for llava and eight times --concurrency for http.
    """

    prompt: TextFile = None
    cutmix_prompt: TextFile = None
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Llava:
    """Options of --kind llava.

    Attributes:
        captioner: a LLaVA-NeXT from the Hub or from a folder.
        captioner_revision: commit, tag or branch on the Hub.
    """

    captioner: Annotated[str, "NAME|FOLDER"] = DEFAULT_CAPTIONER
    captioner_revision: Revision = None


@dataclass(frozen=True, kw_only=True)
class Server(Service):
    """Options of --kind http.

    Attributes:
        model: name of the model at the server.
        image_format: file format in which images are sent.
    """

    model: Annotated[str, "NAME"] = ""
    image_format: ImageFormat = "png"


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.captions.captions import prepare_captions

    if args.kind and args.captions:
        raise ValueError("captions come from a file (--captions) or from a captioner (--kind), not from both: give one")
    if args.kind not in ("llava", "http"):
        refuse_unused(Asked, args, "is for a model: give --kind llava or --kind http, too")
    for kind, options in (("llava", Llava), ("http", Server)):
        if args.kind != kind:
            refuse_unused(options, args, f"is for --kind {kind}")
    captioner = _captioner(args)
    batch_size = args.batch_size
    if batch_size is None:
        batch_size = 8 * args.concurrency if args.kind == "http" else 32
    prepare_captions(
        args.out,
        captioner=captioner,
        from_source=args.kind == "source",
        file=args.captions,
        sets=args.sets,
        names=args.name or (),
        add=args.add,
        launch=None if captioner is None else Launch(**values_of(Devices, args), batch_size=batch_size),
        overwrite=args.overwrite,
    )
    return 0


def _captioner(args: argparse.Namespace) -> Captioner | None:
    if args.kind not in ("llava", "http"):
        return None
    prompts = Prompts(
        text_of(args.prompt, "--prompt", PROMPT), text_of(args.cutmix_prompt, "--cutmix-prompt", CUTMIX_PROMPT)
    )
    decoding = Decoding(**values_of(Decoding, args))
    if args.kind == "llava":
        from t2ikit.prepare.captions.llava import LlavaNextCaptioner

        return LlavaNextCaptioner(args.captioner, args.captioner_revision, prompts, decoding)
    if not args.endpoint or not args.model:
        raise ValueError("--kind http needs --endpoint URL, the server, and --model NAME, one of its models")
    return HTTPCaptioner(Service(**values_of(Service, args)), args.model, prompts, decoding, args.image_format)


STEP = Step(
    "captions",
    "3. captions from class names, from the source, from a model or from a file",
    Captions,
    _run,
    (Asked, Llava, Server, Devices),
)
