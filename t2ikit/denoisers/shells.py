"""Shells of UViT: the convolutions between pixels and the grid of the core.

Papers: "Greedy growing enables high-resolution pixel-based diffusion models" (Vasconcelos et al. 2024,
https://arxiv.org/abs/2405.16759), whose sizes are fitted to its parameter counts; the block and the levels are those of
UViT in "Simple diffusion" (Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093).

Shape legend::

    B  samples    C, H, W  channels, height, width of x     h, w  rows and columns of the core's grid
    D  width of the core                                    E     width of e, the embedding of the noise level
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t2ikit.denoisers.layers import Linear

GROUPS = 32
NAMED_LEVELS = 3
"""Levels of every named size."""
Run = Callable[..., Any]
"""``run(block, *args)`` calls a block, under gradient checkpointing or compiled where that is asked for."""


class Conv(nn.Conv2d):
    """Convolution with Xavier-uniform weights and zero bias that keeps H and W at stride 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int | None = None) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if padding is None else padding)

    def reset_parameters(self) -> None:
        """Initialises the weight again."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(cast(Tensor, self.bias))


class GroupNorm(nn.GroupNorm):
    """Affine GroupNorm of 32 groups, or of as many as divide both 32 and the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(GROUPS, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))) (1 + alpha) + beta)), with (alpha, beta) a projection of e.

    Args:
        inputs: channels of x.
        outputs: channels of the result; where they differ, a convolution of 1 x 1 carries x past the branch.
        noise_width: E.
    """

    def __init__(self, inputs: int, outputs: int, noise_width: int) -> None:
        super().__init__()
        self.first_norm = GroupNorm(inputs)
        self.first = Conv(inputs, outputs, 3)
        self.second_norm = GroupNorm(outputs)
        self.modulation = Linear(noise_width, 2 * outputs)
        self.second = Conv(outputs, outputs, 3)
        self.skip = Conv(inputs, outputs, 1) if inputs != outputs else None

    def zero_outputs(self) -> None:
        """Switches the branch and its modulation off, as a fresh network has them."""
        for layer in (self.modulation, self.second):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, inputs, H, W], e [B, E] -> [B, outputs, H, W]."""
        alpha, beta = self.modulation(e)[:, :, None, None].chunk(2, dim=1)
        branch = self.first(F.silu(self.first_norm(x)))
        branch = self.second(F.silu(self.second_norm(branch) * (1 + alpha) + beta))
        return cast(Tensor, branch + (x if self.skip is None else self.skip(x)))


class Head(nn.Module):
    """Features to the output at ``factor`` times their side: a stage of convolution and pixel shuffle a doubling.

    Args:
        inputs: channels of the features.
        channels: between the stages.
        outputs: C.
        factor: a power of 2.
    """

    def __init__(self, inputs: int, channels: int, outputs: int, factor: int) -> None:
        super().__init__()
        widths = [inputs, *[channels] * doublings(factor)]
        self.stages = nn.ModuleList(Conv(before, 4 * channels, 3) for before in widths[:-1])
        self.norm = GroupNorm(widths[-1])
        self.last = Conv(widths[-1], outputs, 3)

    def zero_outputs(self) -> None:
        """Makes the output 0."""
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H', W'] -> [B, C, factor H', factor W']."""
        for stage in self.stages:
            x = F.silu(F.pixel_shuffle(stage(x), 2))
        return cast(Tensor, self.last(F.silu(self.norm(x))))


class ShellLayers(nn.Module, ABC):
    """The layers of a shell: what leads to the core, and what leads back."""

    @abstractmethod
    def enter(self, x: Tensor, e: Tensor, run: Run) -> tuple[Tensor, list[Tensor]]:
        """x [B, C, H, W], e [B, E] -> the input of the core [B, D, h, w], and what :meth:`leave` adds again."""

    @abstractmethod
    def leave(self, x: Tensor, kept: list[Tensor], e: Tensor, run: Run) -> Tensor:
        """The output of the core [B, D, h, w], what :meth:`enter` kept, e [B, E] -> [B, C, H, W]."""


class ShallowLayers(ShellLayers):
    """One convolution to the grid and a residual block; behind the core another block and the head."""

    def __init__(self, factor: int, channels: int, in_channels: int, width: int, noise_width: int) -> None:
        super().__init__()
        self.entry = Conv(in_channels, channels, 2 * factor, factor, factor // 2)
        self.before = ResidualBlock(channels, width, noise_width)
        self.after = ResidualBlock(width, width, noise_width)
        self.head = Head(width, channels, in_channels, factor)

    def enter(self, x: Tensor, e: Tensor, run: Run) -> tuple[Tensor, list[Tensor]]:
        return run(self.before, self.entry(x), e), []

    def leave(self, x: Tensor, kept: list[Tensor], e: Tensor, run: Run) -> Tensor:
        return cast(Tensor, self.head(run(self.after, x, e)))


class LevelLayers(ShellLayers):
    """An encoder of residual blocks and average pools, and a decoder that adds what each block of it gave."""

    def __init__(
        self,
        patch: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        head_channels: int,
        in_channels: int,
        width: int,
        noise_width: int,
    ) -> None:
        super().__init__()
        deeper = (*channels[1:], width)

        def residual() -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(ResidualBlock(own, own, noise_width) for _ in range(count))
                for own, count in zip(channels, blocks, strict=True)
            )

        self.entry = Conv(in_channels, channels[0], patch, patch, 0)
        self.encoder = residual()
        self.down = nn.ModuleList(Conv(own, below, 1) for own, below in zip(channels, deeper, strict=True))
        self.up = nn.ModuleList(Conv(below, own, 1) for own, below in zip(channels, deeper, strict=True))
        self.decoder = residual()
        self.head = Head(channels[0], head_channels, in_channels, patch)

    def enter(self, x: Tensor, e: Tensor, run: Run) -> tuple[Tensor, list[Tensor]]:
        x, kept = self.entry(x), []
        for level, down in zip(self.encoder, self.down, strict=True):
            for block in cast(nn.ModuleList, level):
                x = run(block, x, e)
                kept.append(x)
            x = down(F.avg_pool2d(x, 2))
        return x, kept

    def leave(self, x: Tensor, kept: list[Tensor], e: Tensor, run: Run) -> Tensor:
        left = list(kept)
        for level, up in zip(reversed(self.decoder), reversed(self.up), strict=True):
            x = F.interpolate(up(x), scale_factor=2.0, mode="nearest")
            for block in cast(nn.ModuleList, level):
                x = run(block, x + left.pop(), e)
        return cast(Tensor, self.head(x))


class Shell(ABC):
    """Options of the layers around a core; ``build`` makes them."""

    @property
    @abstractmethod
    def scale(self) -> int:
        """Pixels along a side of one token of the core."""

    @abstractmethod
    def build(self, in_channels: int, width: int, noise_width: int, levels: LevelSizes | None) -> ShellLayers:
        """The layers.

        Args:
            in_channels: C.
            width: D.
            noise_width: E.
            levels: those of the network's named size; None where its core has sizes of its own.
        """


@dataclass(frozen=True)
class LevelSizes:
    """Channels and number of residual blocks of each level of ``Levels``, the finest first."""

    channels: tuple[int, ...]
    blocks: tuple[int, ...]


@dataclass(frozen=True)
class Shallow(Shell):
    """The shell of the first phase: one convolution of stride ``factor`` to the core's grid, nothing around the core.

    Attributes:
        factor: pixels along a side of a token, a power of 2.
        channels: of the first convolution and of the head.

    Raises:
        ValueError: a value out of range.
    """

    factor: int = 4
    channels: int = 256

    def __post_init__(self) -> None:
        doublings(self.factor)
        _check_positive("channels", (self.channels,))

    @property
    def scale(self) -> int:
        """``factor``."""
        return self.factor

    def build(self, in_channels: int, width: int, noise_width: int, levels: LevelSizes | None) -> ShallowLayers:
        """The layers."""
        return ShallowLayers(self.factor, self.channels, in_channels, width, noise_width)


@dataclass(frozen=True)
class Levels(Shell):
    """The shell of the second phase: levels of residual blocks, each at half the side of the one before.

    Attributes:
        patch: stride of the first convolution, a power of 2.
        channels: of each level, the finest first; None takes those of the network's named size.
        blocks: number of residual blocks of each level, on the way down and again on the way up; None as above.
        head_channels: of the head.

    Raises:
        ValueError: a value out of range, or channels without blocks and the reverse.
    """

    patch: int = 4
    channels: Sequence[int] | None = None
    blocks: Sequence[int] | None = None
    head_channels: int = 64

    def __post_init__(self) -> None:
        doublings(self.patch)
        channels, blocks = tuple(self.channels or ()), tuple(self.blocks or ())
        if len(channels) != len(blocks):
            raise ValueError(
                f"shell: channels {channels} and blocks {blocks} must name the same levels, or neither any"
            )
        _check_positive("channels, blocks and head_channels", (*channels, *blocks, self.head_channels))

    @property
    def scale(self) -> int:
        """``patch``, doubled by every level."""
        return self.patch * 2 ** (len(self.channels) if self.channels else NAMED_LEVELS)

    def build(self, in_channels: int, width: int, noise_width: int, levels: LevelSizes | None) -> LevelLayers:
        """The layers.

        Raises:
            ValueError: neither this nor the network's size says which levels there are.
        """
        if self.channels and self.blocks:
            levels = LevelSizes(tuple(self.channels), tuple(self.blocks))
        if levels is None:
            raise ValueError("shell: a core of your own sizes needs the channels and blocks of the levels")
        sizes = (self.patch, levels.channels, levels.blocks, self.head_channels)
        return LevelLayers(*sizes, in_channels, width, noise_width)


def doublings(factor: int) -> int:
    """How often 2 goes into ``factor``.

    Raises:
        ValueError: it is no power of 2 above 1.
    """
    count = factor.bit_length() - 1
    if factor < 2 or factor != 2**count:
        raise ValueError(f"shell: factor and patch must be a power of 2, at least 2; got {factor}")
    return count


def _check_positive(names: str, values: Sequence[int]) -> None:
    if min(values) < 1:
        raise ValueError(f"shell: {names} must be at least 1; got {min(values)}")


def zero_outputs(network: nn.Module) -> None:
    """Switches off every branch, modulation and head that a fresh network has switched off."""
    for module in network.modules():
        if callable(zero := getattr(module, "zero_outputs", None)):
            with torch.no_grad():
                zero()
