"""``t2ikit sample``: images of a trained model as PNG files with their settings as metadata."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2ikit.commands.arguments import (
    METHOD_HELP,
    add_search,
    add_trust,
    expanded,
    finite,
    method,
    positive,
    size,
    threshold,
)
from t2ikit.files import require_folder

if TYPE_CHECKING:
    from torch import Tensor

    from t2ikit.evaluation.image_store import ImageStore
    from t2ikit.evaluation.settings import Sampling
    from t2ikit.run.trained import TrainedModel

UNFINISHED = "images.sampling"
"""Folder, in the one of the images, of a search that is not finished."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``sample`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sample",
        help="sample images from a trained model",
        description="Samples images with the averaged weights of a checkpoint. Image i depends on the seed, on i and "
        "on its prompt alone, not on the batch size. Every PNG holds prompt, seed, settings and the checkpoint's "
        "SHA-256 as text metadata. A search also writes its curve, search_curve.csv and .png, the score of every "
        "candidate, and a picture of first candidates above chosen ones; an interrupted one goes on.",
    )
    add = parser.add_argument
    add(
        "checkpoint", metavar="CHECKPOINT", type=expanded, help="step-*.ckpt of a run, or its folder for the newest one"
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="the prompt of an image; may be repeated")
    prompts.add_argument("--prompts", metavar="FILE", help="a text file with one prompt per line")
    add("--count", type=positive, default=1, metavar="N", help="images per prompt (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise (%(default)s)")
    add("--steps", type=positive, default=50, metavar="N", help="steps of the sampler (%(default)s)")
    method_help = f"{METHOD_HELP} (default: euler for a model trained by rectified flow, else ddim)"
    add("--method", type=method, help=method_help)
    add("--guidance", type=finite, default=2.0, metavar="W", help="w of (1 + w) cond - w uncond (%(default)s)")
    add("--negative", metavar="TEXT", help="prompt that guidance moves away from, instead of the empty one")
    size_help = "height and width of x_0, one of those that the denoiser takes (its input_size, then other_sizes)"
    add(
        "--size",
        type=size,
        metavar="HEIGHTxWIDTH",
        help=f"{size_help}; latents of the SD VAE are an eighth of the pixels",
    )
    threshold_help = (
        "bound on the estimates of x_0: none, clamp:C, dynamic:Q or per_channel:Q (default: by the image space)"
    )
    add("--threshold", type=threshold, metavar="KIND:VALUE", help=threshold_help)
    out_help = "folder for 00000.png, ...; replaces files of these names (%(default)s)"
    add("--out", type=expanded, default=Path("samples"), metavar="DIR", help=out_help)
    add(
        "--grid",
        type=expanded,
        metavar="FILE",
        help="also write all images as one PNG; with --count, one row per prompt",
    )
    add("--batch-size", type=positive, default=16, metavar="N", help="images sampled at once (%(default)s)")
    weights_help = "the averaged weights, or the raw ones of the last step (%(default)s)"
    add("--weights", choices=("ema", "raw"), default="ema", help=weights_help)
    encoder_help = "the text encoder of the training data, if it has moved; once for each where there are several"
    add("--text-encoder", action="append", metavar="FOLDER_OR_ID", help=encoder_help)
    add("--autoencoder", metavar="FOLDER_OR_ID", help="the autoencoder of the training data, if it has moved")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add_search(parser)
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Samples and writes the images; returns the exit status.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is missing or wrong, and what to change.
    """
    from t2ikit.checkpoints.runs import find_trained
    from t2ikit.evaluation.settings import Sampling
    from t2ikit.prompts import read_prompts
    from t2ikit.run.experiment import find_method, origins_of
    from t2ikit.run.search import find_search
    from t2ikit.run.trained import find_device, load_trained

    _check_output(args)
    checkpoint = find_trained(args.checkpoint, "checkpoint")
    origins = origins_of(trusted=args.trust, checkpoint=checkpoint)
    solver = None if args.method is None else find_method(args.method, origins)
    if args.negative is not None and args.guidance == 0.0:
        raise ValueError("--negative acts through guidance: give --guidance another value than 0")
    search = find_search(args, origins)
    sampling = Sampling(
        args.steps,
        solver or Sampling.method,
        args.guidance,
        args.seed,
        args.batch_size,
        size=args.size,
        search=search,
        threshold=args.threshold,
    )
    prompts = args.prompt or read_prompts(args.prompts, "--prompts")
    device = find_device(args.device)
    encoders = args.text_encoder
    trained = load_trained(checkpoint, args.weights, args.autoencoder, origins=origins, text_encoders=encoders)
    trained.module.to(device)
    if solver is None:
        args.method = trained.module.process.solver
        sampling = replace(sampling, method=args.method)
    _sample(args, trained, sampling, [prompt for prompt in prompts for _ in range(args.count)])
    return 0


def _check_output(args: argparse.Namespace) -> None:
    """Refuses places that cannot take the images, before any is sampled.

    Raises:
        ValueError: names the option.
    """
    require_folder(args.out, "--out")
    if args.grid is not None:
        if args.grid.is_dir() or args.grid.suffix.lower() != ".png":
            raise ValueError(f"--grid {args.grid}: it is a PNG file: give a name that ends with .png, such as grid.png")
        require_folder(args.grid.parent, "--grid")


def _sample(args: argparse.Namespace, trained: TrainedModel, sampling: Sampling, prompts: Sequence[str]) -> None:
    """Image i of ``prompts[i]``, written batch by batch, so that an interrupt leaves whole images."""
    import torch

    from t2ikit.evaluation.image_store import ImageStore
    from t2ikit.pictures import save_grid, save_png

    settings = _settings(args, trained)
    grid: list[Tensor] = []
    choices: Sequence[Mapping[str, str]] = [{} for _ in prompts]
    store = ImageStore(args.out / UNFINISHED, len(prompts))
    if sampling.search is None:
        sampled = trained.images(prompts, sampling, args.negative or "")
    else:
        choices = _search(args.out, store, trained, sampling, prompts, args.negative or "")
        found, count = store.images(), sampling.batch_size
        rows = [range(first, min(first + count, len(prompts))) for first in range(0, len(prompts), count)]
        sampled = ((batch, found[batch.start : batch.stop]) for batch in rows)
    args.out.mkdir(parents=True, exist_ok=True)
    for batch, images in sampled:
        for index, image in zip(batch, images, strict=True):
            metadata = {"prompt": prompts[index], "index": str(index), **settings, **choices[index]}
            save_png(image, args.out / f"{index:05d}.png", metadata)
        if args.grid is not None:
            grid.append(images)
    if sampling.search is not None:
        store.discard()
    how = f"{args.method}, {args.steps} steps, guidance {args.guidance:g}"
    print(f"{len(prompts)} image{'s' if len(prompts) > 1 else ''} of step {trained.step} in {args.out} ({how})")
    if args.grid is not None:
        args.grid.parent.mkdir(parents=True, exist_ok=True)
        listed = "\n".join(dict.fromkeys(prompts))
        columns = args.count if args.count > 1 else None
        save_grid(torch.cat(grid), args.grid, {"prompts": listed, **settings}, columns)
        print(f"grid: {args.grid}")


def _search(
    out: Path,
    store: ImageStore,
    trained: TrainedModel,
    sampling: Sampling,
    texts: Sequence[str],
    negative: str,
) -> list[dict[str, str]]:
    """Searches the images that the store lacks and writes what the search reached; what was chosen of each image."""
    from t2ikit.evaluation.sampling import sample_missing
    from t2ikit.evaluation.selection import Selection
    from t2ikit.lock import SAMPLES, lock
    from t2ikit.metrics.fingerprint import write_files
    from t2ikit.prompts import Prompt

    search, prompts = sampling.search, [Prompt(text) for text in texts]
    assert search is not None
    search.check(prompts, (), "sample")
    out.mkdir(parents=True, exist_ok=True)
    lock(out, SAMPLES)
    rows, uncond = trained.states(texts, sampling, negative)
    sample_missing(trained.module, rows, sampling, store, "sample", prompts, uncond)
    evaluations = sampling.network_evaluations(trained.module.process)
    selection = Selection(search, prompts, store.values(), evaluations, search.score_name(prompts[0]))
    write_files(out, selection.files(store.firsts(), store.images()))
    print(selection)
    described = json.dumps(search.conditions())
    return [
        {
            "search": described,
            "network_evaluations": str(search.candidates * evaluations),
            "chosen": str(candidate),
            "verifier_score": repr(float(values[candidate])),
        }
        for candidate, values in zip(search.chosen(selection.values), selection.values, strict=True)
    ]


def _settings(args: argparse.Namespace, trained: TrainedModel) -> dict[str, str]:
    """What an image depends on besides its prompt and its index."""
    import t2ikit

    return {
        "negative": args.negative or "",
        "seed": str(args.seed),
        "steps": str(args.steps),
        "method": args.method,
        "guidance": str(args.guidance),
        "weights": args.weights,
        **({} if args.size is None else {"size": f"{args.size[0]}x{args.size[1]}"}),
        **({} if args.threshold is None else {"threshold": _bound(args.threshold)}),
        "checkpoint": trained.checkpoint.name,
        "checkpoint_sha256": trained.sha256,
        "text_encoder_sha256": ", ".join(reference.sha256 for reference in trained.manifest.text_encoders),
        "Software": f"t2ikit {t2ikit.__version__}",
    }


def _bound(threshold: tuple[str, float] | str) -> str:
    """As ``--threshold`` takes it."""
    return threshold if isinstance(threshold, str) else f"{threshold[0]}:{threshold[1]:g}"
