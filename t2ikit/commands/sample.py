"""``t2ikit sample``: images of a trained model as PNG files that say how they were made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2ikit.commands.arguments import positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from t2ikit.run.trained import TrainedModel


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds ``sample`` to the subcommands of a parser; ``run`` runs what was parsed."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "sample",
        help="draw images of a trained model",
        description="Draws images with the averaged weights of a checkpoint. Image i depends on the seed, on i and on "
        "its prompt alone, not on the batch size. Every PNG carries prompt, seed, settings and the checkpoint's "
        "SHA-256 as text metadata.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", type=Path, help="step-*.ckpt of a run, or its folder for the newest one")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="what to draw; may be repeated")
    prompts.add_argument("--prompts", metavar="FILE", help="one prompt a line")
    add("--count", type=positive, default=1, metavar="N", help="images of each prompt (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the noise (%(default)s)")
    add("--steps", type=positive, default=50, metavar="N", help="of the sampler (%(default)s)")
    add("--method", default="ddim", help="ddim, ddpm, euler, heun or dpmpp_2m (%(default)s)")
    add("--guidance", type=float, default=2.0, metavar="W", help="w of (1 + w) cond - w uncond (%(default)s)")
    add("--negative", metavar="TEXT", help="prompt to be guided away from, instead of the empty one")
    out_help = "folder of 00000.png, ...; files of these names are replaced (%(default)s)"
    add("--out", type=Path, default=Path("samples"), metavar="DIR", help=out_help)
    add("--grid", type=Path, metavar="FILE", help="also all images as one PNG; with --count, a row for each prompt")
    add("--batch-size", type=positive, default=16, metavar="N", help="images drawn at once (%(default)s)")
    add(
        "--weights", choices=("ema", "raw"), default="ema", help="averaged, or as the last step left them (%(default)s)"
    )
    add("--text-encoder", metavar="FOLDER_OR_ID", help="where the text encoder of the training data is now")
    add("--autoencoder", metavar="FOLDER_OR_ID", help="where the autoencoder of the training data is now")
    add("--device", help="cpu, cuda, cuda:1, ...; by default a GPU if there is one")
    return parser


def run(args: argparse.Namespace) -> int:
    """Draws what was asked for; the exit status.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is missing or wrong, and what to change.
    """
    from t2ikit.diffusion.samplers import find_solver
    from t2ikit.prompts import read_prompts
    from t2ikit.run.experiment import extend_import_path
    from t2ikit.run.trained import load_trained

    find_solver(args.method)
    if args.negative is not None and args.guidance == 0.0:
        raise ValueError("--negative acts through guidance: give --guidance another value than 0")
    prompts = args.prompt or read_prompts(args.prompts, "--prompts")
    device = _device(args.device)
    extend_import_path()
    trained = load_trained(args.checkpoint, args.weights, args.autoencoder)
    _draw(args, trained, [prompt for prompt in prompts for _ in range(args.count)], device)
    return 0


def _draw(args: argparse.Namespace, trained: TrainedModel, prompts: Sequence[str], device: torch.device) -> None:
    """Image i of ``prompts[i]``, written batch by batch, so that an interrupt leaves whole images."""
    import torch
    from tqdm import tqdm

    from t2ikit.batch import Text
    from t2ikit.encoders.autoencoders import LatentSpace
    from t2ikit.evaluation.sampling import sample_batch
    from t2ikit.pictures import save_grid, save_png

    module = trained.module
    if isinstance(module.space, LatentSpace):
        _ = module.space.model  # a missing one is told before the work, not after it
    negative = args.negative or ""
    states = _encode(trained, [*prompts, negative, ""], args.text_encoder, device)
    module.unconditional = Text.from_rows([states[""]])
    module.to(device)
    settings = _settings(args, trained)
    args.out.mkdir(parents=True, exist_ok=True)
    drawn: list[Tensor] = []
    starts = range(0, len(prompts), args.batch_size)
    with tqdm(total=len(starts) * args.steps, desc="sampling", unit="step", mininterval=0.5) as bar:
        for start in starts:
            batch = prompts[start : start + args.batch_size]
            images = sample_batch(
                module,
                [states[prompt] for prompt in batch],
                start,
                seed=args.seed,
                steps=args.steps,
                method=args.method,
                guidance=args.guidance,
                uncond=Text.from_rows([states[negative]]),
                progress=lambda done, total: bar.update(1),
            )
            for number, (image, prompt) in enumerate(zip(images, batch, strict=True), start):
                path = args.out / f"{number:05d}.png"
                save_png(image, path, {"prompt": prompt, "index": str(number), **settings})
            if args.grid is not None:
                drawn.append(images)
    print(f"{len(prompts)} image{'s' if len(prompts) > 1 else ''} of step {trained.step} in {args.out}")
    if args.grid is not None:
        args.grid.parent.mkdir(parents=True, exist_ok=True)
        listed = "\n".join(dict.fromkeys(prompts))
        columns = args.count if args.count > 1 else None
        save_grid(torch.cat(drawn), args.grid, {"prompts": listed, **settings}, columns)
        print(f"grid: {args.grid}")


def _encode(trained: TrainedModel, prompts: Sequence[str], name: str | None, device: torch.device) -> dict[str, Tensor]:
    """States [L, D] of every text, on the CPU: each encoded once and by itself, so that its company does not matter."""
    encoder = trained.text_encoder(name, device)
    return {prompt: encoder.encode([prompt])[0].cpu() for prompt in dict.fromkeys(prompts)}


def _settings(args: argparse.Namespace, trained: TrainedModel) -> dict[str, str]:
    """What an image depends on besides its prompt and its number."""
    import t2ikit

    assert trained.manifest.text_encoder is not None
    return {
        "negative": args.negative or "",
        "seed": str(args.seed),
        "steps": str(args.steps),
        "method": args.method,
        "guidance": str(args.guidance),
        "weights": args.weights,
        "checkpoint": trained.checkpoint.name,
        "checkpoint_sha256": trained.sha256,
        "text_encoder_sha256": trained.manifest.text_encoder.sha256,
        "Software": f"t2ikit {t2ikit.__version__}",
    }


def _device(name: str | None) -> torch.device:
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
