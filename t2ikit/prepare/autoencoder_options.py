"""Options of ``t2ikit prepare autoencoder``. The command line shows these texts, so nothing here imports torch."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions:
    """How the autoencoder is built and trained.

    Attributes:
        latent_channels: channels of the latents.
        block_channels: channels of each level, the finest first; each further level halves the sides.
        layers_per_block: residual layers of a level.
        steps: of the optimizer.
        batch_size: pictures of a step.
        learning_rate: the highest one; it rises over the first steps and falls to zero by a cosine.
        kl_weight: of the KL divergence between the posterior and a standard normal distribution, averaged
            over the latents.
        edge_weight: of the absolute error of differences between neighbouring pixels, which keeps outlines crisp.
        half: store the weights as float16.
        scored: held-out pictures that are decoded for the scores.
        seed: of the first weights, the order and the noise; for shapes also of the scenes.
    """

    latent_channels: int = 4
    block_channels: tuple[int, ...] = (16, 32, 64, 64)
    layers_per_block: int = 1
    steps: int = 10_000
    batch_size: int = 32
    learning_rate: float = 2e-3
    kl_weight: float = 1e-4
    edge_weight: float = 1.0
    half: bool = False
    scored: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("latent_channels", "layers_per_block", "steps", "batch_size", "scored"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(self, name)}")
        if not self.block_channels or any(channels < 8 or channels % 8 for channels in self.block_channels):
            raise ValueError(f"--block-channels must be multiples of 8; got {self.block_channels}")
        finite = all(value < math.inf for value in (self.learning_rate, self.kl_weight, self.edge_weight))
        if not (finite and self.learning_rate > 0 and self.kl_weight >= 0 and self.edge_weight >= 0):
            raise ValueError(
                "--learning-rate must be above 0, --kl-weight and --edge-weight at least 0, and all finite"
            )

    @property
    def downsampling(self) -> int:
        """Pixels along the side of one latent."""
        return int(2 ** (len(self.block_channels) - 1))

    def command(self, **others: object) -> str:
        """The command that trains the same; ``others``: further options with their values."""
        words = ["t2ikit", "prepare", "autoencoder"]
        changed = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {field.name: changed[field.name] for field in fields(self) if changed[field.name] != field.default}
        for name, value in (others | changed).items():
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return shlex.join(words)
