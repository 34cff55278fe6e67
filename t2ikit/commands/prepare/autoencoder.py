"""``t2ikit prepare autoencoder``: an autoencoder of one's own, for latents."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from t2ikit.commands.prepare.options import Step, refuse_unused, values_of
from t2ikit.prepare.autoencoder_options import AutoencoderOptions

SHAPES = "shapes"


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """Trains a KL autoencoder into a folder in the format of diffusers, for --autoencoder of `encode`.

    A call that was stopped or killed goes on when it is given again.

    Attributes:
        out: folder of the autoencoder.
        source: folder of a prepared set of pixels (of `images`, or of `encode --autoencoder pixels`), or `shapes` to
            render the embedded data set.
        size: side of rendered shapes in pixels.
        difficulty: of rendered shapes.
        device: auto takes a GPU where there is one.
        overwrite: replace what an earlier call made here with other options.
    """

    out: Annotated[Path, "DIR"]
    source: Annotated[str, "shapes|DIR"]
    size: int = 32
    difficulty: Literal["simple", "imagenet", "full"] = "full"
    device: Annotated[str, "auto|cpu|cuda"] = "auto"
    overwrite: bool = False


def _run(args: argparse.Namespace) -> int:
    from t2ikit.prepare.autoencoder import StoredPictures, prepare_autoencoder
    from t2ikit.shapes.autoencoder import RenderedPictures

    options = AutoencoderOptions(**values_of(AutoencoderOptions, args))
    if args.source == SHAPES:
        rendered = RenderedPictures(args.difficulty, args.size, args.seed)
        pictures: StoredPictures | RenderedPictures = rendered
        score, others = rendered.score, {"source": SHAPES, "size": args.size, "difficulty": args.difficulty}
    else:
        refuse_unused(Autoencoder, args, "is for --source shapes", "size", "difficulty")
        pictures, score, others = StoredPictures(Path(args.source).expanduser(), args.seed), None, {"source": "DIR"}
    command = options.command(**others)
    known = prepare_autoencoder(pictures, args.out, options, args.device, args.overwrite, command, score)
    print(f"{args.out}: {json.dumps(known['scores'])}")
    empty = int(known["scores"].get("empty_channels", 0))
    if empty:
        kept = known["options"]["latent_channels"] - empty
        fewer = f"--latent-channels {kept}, or less --kl-weight" if kept else "less --kl-weight"
        print(
            f"{empty} of the latent channels hold noise alone, since the KL divergence is cheaper than what they could "
            f"say: give {fewer}"
        )
    return 0


STEP = Step("autoencoder", "an autoencoder of one's own, for latents", Autoencoder, _run, (AutoencoderOptions,))
