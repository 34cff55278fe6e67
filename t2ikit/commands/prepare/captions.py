"""``t2ikit prepare captions``: from class names, from a model or from a file."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from t2ikit.commands.prepare.launch import add_launch, launch_of
from t2ikit.commands.prepare.options import add_out, add_step, expanded, refuse_unused, text_of
from t2ikit.prepare.captions.captioner import (
    CUTMIX_PROMPT,
    DEFAULT_CAPTIONER,
    PROMPT,
    Captioner,
    Decoding,
    Prompts,
)
from t2ikit.prepare.captions.http import IMAGE_FORMATS, HTTPCaptioner, Service

_ASKED = ("prompt", "cutmix_prompt", "max_new_tokens", "temperature", "top_p", "seed", "batch_size")
_LLAVA = ("captioner", "captioner_revision")
_HTTP = ("endpoint", "model", "api_key_variable", "concurrency", "timeout", "tries", "image_format")


def add_parser(steps: Any) -> None:
    """Adds the step to the subcommands of ``prepare``."""
    parser = add_step(
        steps,
        "captions",
        "3. captions from class names, from a model or from a file",
        "Writes the captions of the image sets: `An image of <class name>` (a CutMix image names both classes), long "
        "ones by a model, or your own. A model is asked as in the papers, with a prompt of its own for CutMix images; "
        "a call that was stopped goes on where it was.",
    )
    add_out(parser)
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--kind",
        choices=["aio", "llava", "http"],
        default="aio",
        help="class names; LLaVA-NeXT on the devices of this machine; or a model behind an OpenAI-compatible server",
    )
    origin.add_argument(
        "--captions",
        type=expanded,
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
    add_launch(own)
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
    parser.set_defaults(prepare_run=partial(_run, parser))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from t2ikit.prepare.captions.captions import prepare_captions

    if args.kind == "aio":
        refuse_unused(parser, args, _ASKED, "is for a model: give --kind llava or --kind http, too")
    for kind, names in (("llava", _LLAVA), ("http", _HTTP)):
        if args.kind != kind:
            refuse_unused(parser, args, names, f"is for --kind {kind}")
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
        launch=None if captioner is None else launch_of(args, batch_size),
        overwrite=args.overwrite,
    )
    return 0


def _captioner(args: argparse.Namespace) -> Captioner | None:
    if args.kind == "aio":
        return None
    prompts = Prompts(
        text_of(args.prompt, "--prompt") if args.prompt else PROMPT,
        text_of(args.cutmix_prompt, "--cutmix-prompt") if args.cutmix_prompt else CUTMIX_PROMPT,
    )
    decoding = Decoding(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    if args.kind == "llava":
        from t2ikit.prepare.captions.llava import LlavaNextCaptioner

        return LlavaNextCaptioner(args.captioner, args.captioner_revision, prompts, decoding)
    if not args.endpoint or not args.model:
        raise ValueError("--kind http needs --endpoint URL, the server, and --model NAME, one of its models")
    service = Service(args.endpoint, args.api_key_variable, args.concurrency, args.timeout, args.tries)
    return HTTPCaptioner(service, args.model, prompts, decoding, args.image_format)
