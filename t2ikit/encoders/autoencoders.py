"""Image spaces: how stored images become x_0, the variable that is diffused, and how x_0 becomes an image again.

Latents follow the data of the paper: the posterior's mean and standard deviation of ``stabilityai/sd-vae-ft-ema`` are
stored as they come, every use samples ``raw = mean + std * n``, and a normalisation follows, which an experiment
chooses (the paper's runs use the scalar one).

Shapes: [B, 3, H, W] images, [B, C, h, w] x_0, [B, 2, C, h, w] stored posteriors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from t2ikit.files import parse_json
from t2ikit.pretrained import EncoderReference, find_pretrained, load_pretrained

DEFAULT_AUTOENCODER = "stabilityai/sd-vae-ft-ema"
SCALAR_FACTOR = 0.18215
CHANNEL_MEANS = (5.81, 3.25, 0.12, -2.15)
CHANNEL_STDS = (4.17, 4.62, 3.71, 3.28)
CHANNELWISE_STD = 0.5
"""Of every channel under the channel-wise normalisation, unless ``channel_std`` says another."""
Normalisation = Literal["scalar", "channelwise", "autoencoder"]
_OPTION = "--autoencoder DIR of `t2ikit prepare encode`, or `autoencoder` of LatentSpace in the experiment"


class ImageSpace(ABC):
    """The space that x_0 lives in.

    Attributes:
        channels: C of x_0.
        kind: what the records of its data hold, as their manifest says it: "pixels" or "latents".
        std: nominal standard deviation of x_0.
        bound: largest magnitude of x_0 that a sampler lets pass.
        stochastic: whether ``x_0`` samples a stored posterior, so that it wants noise.
    """

    channels: int
    kind: Literal["pixels", "latents"] = "latents"
    std: float
    stochastic: bool = False

    @property
    def bound(self) -> float:
        """4 standard deviations, unless a space knows better."""
        return 4.0 * self.std

    @property
    def downsampling(self) -> int:
        """Pixels of an image along the side of one entry of x_0."""
        return 1

    def load(self) -> None:
        """Loads what ``images`` needs, so that a missing part is refused before long work; by default nothing."""
        return

    def description(self) -> dict[str, str]:
        """What a checkpoint remembers of the space its weights were trained in."""
        return {"space": type(self).__name__}

    @abstractmethod
    def x_0(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """Stored images to x_0.

        Args:
            stored: [B, ...] as in ``StoredBatch.image``.
            noise: [B, C, h, w] standard normal, to sample a posterior; None takes its mean. Spaces without a posterior
                ignore it.

        Returns:
            [B, C, h, w] float32.

        Raises:
            ValueError: ``stored`` belongs to another space.
        """

    @abstractmethod
    def images(self, x_0: Tensor) -> Tensor:
        """x_0 [B, C, h, w] to images [B, 3, H, W] float32 in [0, 1]."""

    @abstractmethod
    def check(self, stored: EncoderReference | None) -> None:
        """Refuses stored images of another space.

        Args:
            stored: what encoded the images, from their manifest; None for pixels.

        Raises:
            ValueError: they were encoded by something else; says what to change.
        """


class PixelSpace(ImageSpace):
    """Pixels themselves, uint8 0 .. 255 to [-1, 1]."""

    channels = 3
    kind = "pixels"
    std = 0.5

    @property
    def bound(self) -> float:
        """Pixels end at +-1."""
        return 1.0

    def x_0(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] uint8 to [B, 3, H, W] float32 in [-1, 1]."""
        if stored.dtype != torch.uint8 or stored.dim() != 4 or stored.shape[1] != 3:
            raise ValueError(
                f"PixelSpace reads uint8 images [B, 3, H, W]; got {stored.dtype} {tuple(stored.shape)}. For latents, "
                "the experiment needs LatentSpace"
            )
        return stored.to(torch.float32).div_(127.5).sub_(1.0)

    def images(self, x_0: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] to [0, 1]; values outside are clamped."""
        return x_0.to(torch.float32).add(1.0).mul_(0.5).clamp_(0.0, 1.0)

    def check(self, stored: EncoderReference | None) -> None:
        """Accepts pixels only."""
        if stored is not None:
            raise ValueError(
                f"the prepared images are latents of {stored.name}; the experiment needs LatentSpace, or images that "
                "were prepared with --autoencoder pixels"
            )


@dataclass(eq=False)
class LatentSpace(ImageSpace):
    """Normalised latents of a KL autoencoder. The autoencoder is loaded when it is first used, not before.

    Attributes:
        autoencoder: a folder in the format of diffusers, a repository of the Hub, or one that comes with the kit:
            "embedded:shapes-full" (3 channels of 8 x 8 for 32 x 32 pixels of the embedded data set) or
            "embedded:shapes-simple" (4 channels of 4 x 4, for simple scenes).
        revision: commit, tag or branch of the repository.
        normalisation: "scalar" multiplies by 0.18215; "channelwise" gives every channel mean 0 and standard deviation
            ``channel_std``, by the statistics of the default autoencoder; "autoencoder" gives every channel mean 0 and
            standard deviation 1, by ``latents_mean`` and ``latents_std`` in the autoencoder's ``config.json``.
        channels: C of the latents; 0 takes that of the autoencoder once it is loaded.
        batch_size: images that are encoded or decoded at once.
        channel_std: standard deviation that the channelwise normalisation gives every channel, 0.5 if it is not said;
            1.0 for a rectified flow, whose noise has the variance 1 too.

    Raises:
        ValueError: unknown normalisation, the channel-wise one for other than 4 channels, or a ``channel_std`` that is
            not above 0 or goes with another normalisation.
    """

    autoencoder: str = DEFAULT_AUTOENCODER
    revision: str | None = None
    normalisation: Normalisation = "scalar"
    channels: int = 4
    batch_size: int = 16
    channel_std: float | None = None
    stochastic = True

    def __post_init__(self) -> None:
        if self.normalisation not in get_args(Normalisation):
            raise ValueError(f"unknown normalisation {self.normalisation!r}; choose scalar, channelwise or autoencoder")
        if self.normalisation == "channelwise" and self.channels != len(CHANNEL_MEANS):
            raise ValueError(
                f"the channelwise normalisation is known for {len(CHANNEL_MEANS)} channels, not {self.channels}: "
                "choose normalisation scalar"
            )
        if self.channel_std is not None:
            if self.normalisation != "channelwise":
                raise ValueError(
                    f"channel_std acts with the channelwise normalisation, not with {self.normalisation}: leave it "
                    "out, or choose normalisation channelwise"
                )
            if not 0.0 < self.channel_std < math.inf:
                raise ValueError(f"channel_std is a standard deviation, above 0; got {self.channel_std}")
        channelwise = CHANNELWISE_STD if self.channel_std is None else float(self.channel_std)
        self.std = channelwise if self.normalisation == "channelwise" else 1.0
        self._loaded: tuple[Any, EncoderReference] | None = None
        self._statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
        self._stored: EncoderReference | None = None

    @property
    def reference(self) -> EncoderReference:
        """Which weights these are; loads them where they are not loaded yet."""
        return self._load()[1]

    @property
    def model(self) -> Any:
        """The ``AutoencoderKL``, in evaluation mode; in float32, unless ``use`` took one of another dtype.

        Raises:
            FileNotFoundError: no such folder, or no way to the Hub; names the option.
            ValueError: another kind of model, or other channels than were said.
        """
        return self._load()[0]

    def description(self) -> dict[str, str]:
        """What identifies the space in a fingerprint or a checkpoint."""
        described = {"space": type(self).__name__, "normalisation": self.normalisation}
        if self.normalisation == "channelwise" and self.std != CHANNELWISE_STD:
            described["channel_std"] = repr(self.std)
        return described

    def load(self) -> None:
        """Loads the autoencoder."""
        self._load()

    def use(self, model: Any, reference: EncoderReference | None) -> None:
        """Takes an ``AutoencoderKL`` that is loaded already, of any dtype.

        Args:
            model: runs in its own dtype; what goes in and comes out is float32.
            reference: which weights these are, if it is known.
        """
        self._loaded = model, reference or EncoderReference(self.autoencoder, self.revision, "")

    def _load(self) -> tuple[Any, EncoderReference]:
        if self._loaded is None:
            from diffusers import AutoencoderKL

            model, source = load_pretrained(AutoencoderKL, self.autoencoder, self.revision, _OPTION)
            self.channels = self.channels or model.config.latent_channels
            if model.config.latent_channels != self.channels:
                raise ValueError(
                    f"{self.autoencoder} has {model.config.latent_channels} latent channels, not {self.channels}: "
                    "set `channels` of LatentSpace to that"
                )
            self._compare(source.reference)
            self._loaded = model, source.reference
        return self._loaded

    @property
    def downsampling(self) -> int:
        """Pixels of an image along the side of one latent."""
        return int(2 ** (len(self.model.config.block_out_channels) - 1))

    def check(self, stored: EncoderReference | None) -> None:
        """Refuses pixels, and latents of other weights.

        Weights are compared by their hash: now if the autoencoder is loaded or goes by another name, else when it is
        loaded, so that training alone does not need it.
        """
        if stored is None:
            raise ValueError(
                "the prepared images are pixels; the experiment needs PixelSpace, or images that were prepared with "
                "--autoencoder"
            )
        self._stored = stored
        same_name = (stored.name, stored.revision) == (self.autoencoder, self.revision or stored.revision)
        if self._loaded is not None or not same_name:
            self._compare(self.reference)

    def _compare(self, reference: EncoderReference) -> None:
        if self._stored is not None and self._stored.sha256 not in ("", reference.sha256):
            raise ValueError(
                f"the prepared latents are those of {self._stored.name} (SHA-256 {self._stored.sha256[:12]}), but "
                f"`autoencoder` of LatentSpace is {self.autoencoder} ({reference.sha256[:12]}): set it to the first, "
                "or prepare again with `t2ikit prepare encode --autoencoder`"
            )

    def normalise(self, raw: Tensor) -> Tensor:
        """Latents [..., C, h, w] as the autoencoder gives them, to x_0 of the same shape.

        Raises:
            ValueError: ``normalisation`` is "autoencoder", and the autoencoder has no statistics for C channels.
        """
        if self.normalisation == "scalar":
            return raw * SCALAR_FACTOR
        means, stds = _channel_statistics(*self._channel_numbers(), raw.dtype, raw.device)
        return self.std * (raw - means) / stds

    def denormalise(self, x_0: Tensor) -> Tensor:
        """The inverse of ``normalise``."""
        if self.normalisation == "scalar":
            return x_0 / SCALAR_FACTOR
        means, stds = _channel_statistics(*self._channel_numbers(), x_0.dtype, x_0.device)
        return x_0 / self.std * stds + means

    def _channel_numbers(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of every channel; reads the autoencoder's configuration, not its weights."""
        if self.normalisation == "channelwise":
            return CHANNEL_MEANS, CHANNEL_STDS
        if self._statistics is None:
            folder = find_pretrained(self.autoencoder, self.revision, _OPTION).folder
            config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
            means, stds = (tuple(config.get(name) or ()) for name in ("latents_mean", "latents_std"))
            if not len(means) == len(stds) == self.channels:
                raise ValueError(
                    f"config.json of {self.autoencoder} gives latents_mean for {len(means)} and latents_std for "
                    f"{len(stds)} channels, LatentSpace has {self.channels}: choose normalisation scalar, or set "
                    "`channels` of LatentSpace"
                )
            self._statistics = means, stds
        return self._statistics

    def x_0(self, stored: Tensor, noise: Tensor | None = None) -> Tensor:
        """[B, 2, C, h, w] posterior mean and standard deviation to normalised latents [B, C, h, w] float32."""
        if not stored.is_floating_point() or stored.dim() != 5 or stored.shape[1:3] != (2, self.channels):
            raise ValueError(
                f"LatentSpace reads posteriors [B, 2, {self.channels}, h, w]; got {stored.dtype} "
                f"{tuple(stored.shape)}. For pixels, the experiment needs PixelSpace"
            )
        mean, std = stored.to(torch.float32).unbind(1)
        return self.normalise(mean if noise is None else mean + std * noise.to(torch.float32))

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images to the posterior, in one pass.

        Args:
            images: [B, 3, H, W] uint8, or float in [0, 1]; H and W multiples of ``downsampling``.

        Returns:
            mean and standard deviation, each [B, C, h, w] float32, before any normalisation.

        Raises:
            ValueError: sides that the autoencoder cannot halve often enough.
        """
        step = self.downsampling
        if images.shape[-1] % step or images.shape[-2] % step:
            raise ValueError(
                f"{self.autoencoder} needs images whose sides are multiples of {step}; got {tuple(images.shape[-2:])}. "
                "Prepare them with another --size or --bucket"
            )
        model = self.model.to(images.device)
        means, stds = [], []
        with torch.autocast(images.device.type, enabled=False):
            for batch in images.split(self.batch_size):
                scale = 127.5 if batch.dtype == torch.uint8 else 0.5
                posterior = model.encode((batch.to(torch.float32) / scale - 1.0).to(model.dtype)).latent_dist
                means.append(posterior.mean.to(torch.float32))
                stds.append(posterior.std.to(torch.float32))
        return torch.cat(means), torch.cat(stds)

    @torch.no_grad()
    def images(self, x_0: Tensor) -> Tensor:
        """[B, C, h, w] normalised latents to images [B, 3, H, W] float32 in [0, 1]."""
        model = self.model.to(x_0.device)
        raw = self.denormalise(x_0.to(torch.float32)).to(model.dtype)
        with torch.autocast(x_0.device.type, enabled=False):
            decoded = torch.cat([model.decode(batch).sample for batch in raw.split(self.batch_size)])
        return decoded.to(torch.float32).add(1.0).mul(0.5).clamp(0.0, 1.0)


@cache
def _channel_statistics(
    means: tuple[float, ...], stds: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """As tensors [C, 1, 1], made once: numbers of Python reach a GPU by a host sync."""
    with torch.inference_mode(False):
        first, second = (torch.tensor(values, dtype=dtype, device=device).view(-1, 1, 1) for values in (means, stds))
    return first, second
