"""The training objective: one loss a sample, without side effects.

Shape legend::

    x0, noise  [B, C, H, W]      t, keep, loss_B  [B]
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from t2ikit.batch import Text
from t2ikit.denoisers.base import Denoiser
from t2ikit.diffusion.processes import Process


class Objective:
    """Mean squared error between a denoiser's output and the target of a process.

    Args:
        process: the diffusion process.
        offset_noise: standard deviation of a constant added to the noise of each channel of each sample; 0.1 is usual,
            0 is off. See :meth:`offset`.
        min_snr: g of Min-SNR-g weighting (Hang et al. 2023, equation 6): the loss counts as an error of x_0 weighted
            by min(SNR, g). None: every sample weighs the same.
        space: "output" measures the error where the network predicts, "epsilon" as an error of the noise
            (Hoogeboom et al. 2023, for a network that predicts v).

    Raises:
        ValueError: a negative ``offset_noise``, a ``min_snr`` that is not above 0, both ``min_snr`` and
            ``space="epsilon"``, or an unknown ``space``.
    """

    def __init__(
        self,
        process: Process,
        offset_noise: float = 0.0,
        min_snr: float | None = None,
        space: Literal["output", "epsilon"] = "output",
    ) -> None:
        if offset_noise < 0.0:
            raise ValueError(f"offset_noise is a standard deviation, at least 0; got {offset_noise}")
        if min_snr is not None and not min_snr > 0.0:
            raise ValueError(f"min_snr must be above 0 (5 is usual), or null for no weighting; got {min_snr}")
        if space not in ("output", "epsilon"):
            raise ValueError(f"space must be 'output' or 'epsilon', got {space!r}")
        if min_snr is not None and space == "epsilon":
            raise ValueError("min_snr and space='epsilon' are two weightings of the same loss: choose one")
        self.process = process
        self.offset_noise = offset_noise
        self.min_snr = min_snr
        self.space = space

    def loss(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        text: Text | tuple[Text, ...],
        keep: Tensor | None = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """The loss of every sample, a pure function of its arguments.

        The text is encoded once, for both passes.

        Args:
            denoiser: the network; it receives ``process.level(t, denoiser.level_kind)``, in fp32.
            x0: [B, C, H, W], clean.
            noise: [B, C, H, W] standard normal.
            t: [B] in [0, 1].
            text: B rows, after the conditioning drop.
            keep: [B] bool, which samples are self-conditioned, on the CPU to save a host sync. None: no first pass.
            window: [B, 4] x0 y0 x1 y1 in [0, 1], for denoisers that know which part of an image they see.

        Returns:
            [B], at least fp32: the mean over C, H, W of the squared error, times :meth:`weight`.

        Raises:
            ValueError: a wrong shape; the message says what was expected.
        """
        if noise.shape != x0.shape or t.shape != x0.shape[:1]:
            raise ValueError(
                f"noise {list(x0.shape)} and t {list(x0.shape[:1])} were expected, as x0 has them; got "
                f"{list(noise.shape)} and {list(t.shape)}"
            )
        noise = self.offset(noise)
        x_t = self.process.add_noise(x0, noise, t)
        target = self.process.target(x0, noise, t)
        level = self.process.level(t, denoiser.level_kind)
        # A denoiser of one's own need not know windows.
        context = denoiser.encode_text(text) if window is None else denoiser.encode_text(text, window=window)
        state = None if keep is None else denoiser.self_condition(x_t, level, context, keep)
        output = denoiser(x_t, level, context, state).output
        error = output.to(torch.promote_types(target.dtype, torch.float32)) - target
        loss_B = error.square().flatten(1).mean(1)
        weight = self.weight(t)
        return loss_B if weight is None else loss_B * weight.to(loss_B.dtype)

    def weight(self, t: Tensor) -> Tensor | None:
        """The weight of each sample, t [B] -> [B], or None when all are 1.

        Written with alpha^2 and sigma^2 rather than their ratio, which is infinite at t = 0.
        """
        if self.min_snr is None and self.space == "output":
            return None
        alpha, sigma = self.process.scales(t)
        gain = self.process.error_gain(t)
        if self.min_snr is None:
            return (alpha * gain).square()
        return torch.minimum(alpha.square(), self.min_snr * sigma.square()) * gain.square()

    def offset(self, noise: Tensor) -> Tensor:
        """Noise whose channel means have variance 1 / (H W) + offset_noise^2; [B, C, H, W] -> the same.

        That is the law of noise + offset_noise * (one normal number a channel), for the mean of white noise does not
        depend on the rest of it: scaling the mean does the same as adding further random numbers, and needs none.
        """
        if self.offset_noise == 0.0:
            return noise
        pixels = noise[0, 0].numel()
        mean = noise.mean(dim=tuple(range(2, noise.dim())), keepdim=True)
        scale: float = (1.0 + self.offset_noise**2 * pixels) ** 0.5 - 1.0
        return noise + scale * mean
