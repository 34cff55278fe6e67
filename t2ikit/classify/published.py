"""The numbers of the paper: "When Pretty Isn't Useful", arXiv 2602.19946, read off the figures of its project page.

Accuracy to about 0.004 (structure, texture, low, high: 0.01). Every generator was trained on photos and captions of the
web, so that one trained on ImageNet itself is not comparable with them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

NETWORKS = ("resnet50", "vit_tiny", "convnext_tiny", "swin_tiny")
VIEWS = ("depth", "texture", "low", "high")


@dataclass(frozen=True)
class Published:
    """A generator's numbers with class names as prompts; None is not given.

    Attributes:
        networks: Synth->Real on rgb, by network.
        real_synth: Real->Synth on rgb, ResNet-50.
        views: Synth->Real by view.
        density, coverage: with CLIP ViT-L/14, k = 5, cosine distance.
        captions: Synth->Real and Real->Synth with captions as prompts.
    """

    networks: dict[str, float | None]
    real_synth: float | None
    views: dict[str, float | None]
    density: float | None
    coverage: float | None
    captions: tuple[float, float] | None = None


REAL_NETWORKS = {"resnet50": 0.73, "vit_tiny": 0.42, "convnext_tiny": 0.68, "swin_tiny": 0.50}
REAL_VIEWS = {"depth": 0.75, "texture": 0.594, "low": 0.645, "high": 0.516}

_TABLE = """
SD1.5         .455 .239 .434 .307 .543 .48 .20 .37 .20 .348 .235
SD2.1         .305 .119 -    -    .238 -   -   -   -   .282 .057
SDXL          .327 .162 .308 .195 .467 .48 .06 .27 .17 .173 .104
SDXL-Turbo    .103 .121 .168 .154 .804 .20 .04 .06 .10 .490 .102
SD3-medium    .394 .231 -    -    .722 -   -   -   -   -    -
FLUX-schnell  .161 .179 .240 .204 .803 .23 .12 .14 .10 .467 .126
FLUX-dev      .193 .189 .267 .234 .786 .39 .12 .12 .10 .431 .150
SD3.5-large   .281 .144 -    -    .757 -   -   -   -   .519 .196
SD3.5-medium  .389 .246 .363 .302 .762 .45 .18 .30 .18 .417 .210
SD3.5-turbo   .150 .124 .161 .147 .703 .28 .08 .09 .09 .349 .118
Sana          .222 .149 .208 .162 .598 .28 .09 .16 .11 .281 .093
Lumina-2      .247 .131 .211 .168 .663 .36 .09 .16 .10 .477 .162
Qwen-Image    .099 .087 .088 .085 .891 .13 .04 .05 .03 .917 .084
"""
_CAPTIONS = {
    "Qwen-Image": (0.629, 0.594),
    "SD3.5-medium": (0.594, 0.691),
    "FLUX-dev": (0.556, 0.731),
    "SD1.5": (0.534, 0.513),
    "SDXL": (0.469, 0.567),
    "SDXL-Turbo": (0.462, 0.723),
}


def _read() -> dict[str, Published]:
    table = {}
    for line in _TABLE.split("\n")[1:-1]:
        name, *words = line.split()
        values = [None if word == "-" else float(word) for word in words]
        table[name] = Published(
            dict(zip(NETWORKS, values[:4], strict=True)),
            values[4],
            dict(zip(VIEWS, values[5:9], strict=True)),
            values[9],
            values[10],
            _CAPTIONS.get(name),
        )
    return table


PUBLISHED = _read()
"""By the name of the generator."""

AUTOENCODERS = {
    "SD1.5": {"rgb": 0.705, "high": 0.376, "low": 0.631},
    "SDXL": {"rgb": 0.697, "high": 0.371, "low": 0.628},
    "FLUX": {"rgb": 0.706, "high": 0.377, "low": 0.634},
}
"""Real photos through an autoencoder, and JPEG of quality 75 behind it (poster): accuracy on real photos by view."""


def published(name: str) -> tuple[str, Published] | None:
    """The paper's source that a source is called after, however it is spelt; None for another.

    ``sd15`` is a generator with class names as prompts, ``sd15_captions`` with captions, ``vae_sd15`` the real photos
    through its autoencoder.

    Example:
        >>> published("sd15")[0], published("sd15_captions")[1].real_synth, published("mine")
        ('SD1.5', 0.513, None)
    """
    return _by_plain_name().get(_plain(name))


@cache
def _by_plain_name() -> dict[str, tuple[str, Published]]:
    table = {_plain(name): (name, numbers) for name, numbers in PUBLISHED.items()}
    for name, numbers in PUBLISHED.items():
        if numbers.captions is not None:
            synth_real, real_synth = numbers.captions
            captioned = Published({"resnet50": synth_real}, real_synth, {}, None, None)
            table[f"{_plain(name)}captions"] = f"{name}, captions", captioned
    for name, by_view in AUTOENCODERS.items():
        views: dict[str, float | None] = {"low": by_view["low"], "high": by_view["high"]}
        numbers = Published({"resnet50": by_view["rgb"]}, None, views, None, None)
        table[f"vae{_plain(name)}"] = f"autoencoder of {name}", numbers
    return table


def paper_accuracy(source: str, view: str, network: str) -> float | None:
    """Synth->Real of the paper for a source called after one of its generators; of "real" Real->Real."""
    of_view = network == ("bagnet9" if view == "texture" else "resnet50")
    if source == "real":
        return REAL_NETWORKS.get(network) if view == "rgb" else REAL_VIEWS.get(view) if of_view else None
    known = published(source)
    if known is None:
        return None
    return known[1].networks.get(network) if view == "rgb" else known[1].views.get(view) if of_view else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
