"""Denoising: the mean squared error of a denoiser's output, with terms beside it; and the error that compares runs.

Shape legend::

    x0, noise, x_t, output, target  [B, C, H, W]      t, keep, loss_B  [B]
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from t2ikit.batch import Batch, Prediction, Text, Texts, each_text, map_texts
from t2ikit.denoisers.base import Denoiser
from t2ikit.diffusion.objectives.base import Draws, Loss, Objective
from t2ikit.diffusion.processes import GaussianDiffusion, Process
from t2ikit.diffusion.terms.base import MainPass, Needs, Term
from t2ikit.diffusion.weightings import VelocityError, Weighting
from t2ikit.rng import Keyed

NAME = "denoising"
"""Of its own part of the loss, beside the terms."""

SPARE_ROWS = 2
"""Self-conditioned rows that compiled code has room for beyond the share of a micro-batch, rounded up: at rate 0.9 no
more are kept of 16, 32, ... 1,024 consecutive slots, nor of so many that Crop leaves at p = 0.5."""

LEVELS = 8
FIXED_SEED = 0
"""Of the noise of :func:`fixed_t_loss`, and of the posterior of its latents, in every run."""


class Denoising(Objective):
    """Mean squared error between a denoiser's output and the target of a process, and the terms that are added to it.

    Args:
        process: the diffusion process; default ``GaussianDiffusion()`` (linear gamma, epsilon-prediction).
        text_drop: probability that a text is replaced by the encoding of the empty prompt (classifier-free guidance),
            by that of all text encoders together.
        text_drop_each: beside it, for each text encoder in the order of the manifest, the probability that its text
            alone is replaced; independent of one another. Stable Diffusion 3 (Esser et al. 2024, appendix) takes
            0.464 for each of three. None is off.
        self_condition_rate: share of the samples whose denoiser gets its own first prediction as state; denoisers
            without state ignore it. Exact in the long run and nearly so in every micro-batch; see :meth:`kept`.
        offset_noise: standard deviation of a constant added to the noise of each channel of each sample; 0.1 is usual,
            0 is off. See :meth:`offset`.
        weighting: what the error of each sample is multiplied by, as a function of its noise level. None: 1.
        terms: further losses by name; a name is letters, digits and underscores.
        coherence: name of the array of every record that says how well its text and image agree, one number in [0, 1],
            for a denoiser that knows coherence (``CADI(coherence=True)``). CAD (Dufour et al. 2024) takes the CLIP
            score in 8 bins and drops no text: ``text_drop`` 0. None: the denoiser knows none.

    Raises:
        ValueError: a rate outside [0, 1], a negative ``offset_noise``, a term with a name that is taken or unfit.
    """

    def __init__(
        self,
        process: Process | None = None,
        text_drop: float = 0.1,
        self_condition_rate: float = 0.9,
        offset_noise: float = 0.0,
        weighting: Weighting | None = None,
        terms: dict[str, Term] | None = None,
        text_drop_each: list[float] | None = None,
        coherence: str | None = None,
    ) -> None:
        super().__init__(process if process is not None else GaussianDiffusion())
        self.text_drop_each = tuple(text_drop_each or ())
        rates = [("text_drop", text_drop), ("self_condition_rate", self_condition_rate)]
        for option, rate in [*rates, *(("text_drop_each", rate) for rate in self.text_drop_each)]:
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"{option} is a probability in [0, 1], got {rate}")
        if not 0.0 <= offset_noise < math.inf:
            raise ValueError(f"offset_noise is a standard deviation, at least 0 and finite; got {offset_noise}")
        if terms and NAME in terms:
            raise ValueError(f"terms: {NAME!r} is the name of the loss itself; give the term another")
        for name in terms or {}:
            if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name in vars(nn.ModuleDict()):
                raise ValueError(
                    f"terms: {name!r} cannot be the name of a term: take letters, digits and underscores, and no name "
                    "that torch's ModuleDict uses itself (items, keys, training, ...)"
                )
        self.text_drop = text_drop
        self.self_condition_rate = self_condition_rate
        self.offset_noise = offset_noise
        self.weighting = weighting
        self.terms = nn.ModuleDict(terms or {})
        for term in self._terms().values():
            self.needs = self.needs | term.needs
        self.coherence = coherence
        if coherence is not None:
            self.needs = self.needs | Needs(arrays=(coherence,))

    def _terms(self) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if isinstance(term, Term)}

    # ------------------------------------------------------------------ a training step

    def draw(self, batch: Batch, rng: Keyed, step: int) -> Draws:
        """Noise, conditioning drop and self-conditioning of every sample, each keyed by its slot."""
        count, device = len(batch), batch.latents.device
        return Draws(
            noise=rng.normal("noise", batch.slot, count, batch.latents.shape[1:], device),
            text=self.conditioning(batch, rng),
            keep=self.kept(batch, rng),
            terms=tuple(name for name, term in self._terms().items() if term.on(step)),
            most=min(count, math.ceil(self.self_condition_rate * count) + SPARE_ROWS),
        )

    def conditioning(self, batch: Batch, rng: Keyed) -> Texts:
        """The texts of a batch after the conditioning drop, of all text encoders together and of each alone."""
        self.check_texts(batch.text)
        rates, count, encoders = self.text_drop_each, len(batch), len(each_text(batch.text))
        if self.text_drop == 0.0 and not any(rates):
            return batch.text
        dropped = [rng.uniforms("drop", batch.slot, count)[:, 0] < self.text_drop] * encoders
        if rates:
            alone = rng.uniforms("drop each", batch.slot, count, encoders) < np.array(rates)
            dropped = [together | column for together, column in zip(dropped, alone.T, strict=True)]
        columns = iter(dropped)

        def replaced(text: Text, empty: Text) -> Text:
            drop = torch.from_numpy(next(columns))
            return text.replace(drop.to(text.mask.device, non_blocking=True), empty)

        substitutes = self.unconditional  # on its device already, but in the first step
        if substitutes is None or each_text(substitutes)[0].mask.device != batch.latents.device:
            substitutes = self.empty_prompt(batch.latents.device)
        return map_texts(replaced, batch.text, substitutes)

    def check_texts(self, texts: Texts) -> None:
        """Refuses a ``text_drop_each`` with another number of entries than there are text encoders."""
        encoders = len(each_text(texts))
        if self.text_drop_each and len(self.text_drop_each) != encoders:
            raise ValueError(
                f"model.init_args.objective.init_args.text_drop_each has {len(self.text_drop_each)} probabilities, the "
                f"data has {encoders} text encoders: give one for each, in the order of the manifest"
            )

    def kept(self, batch: Batch, rng: Keyed) -> Tensor | None:
        """[B] bool on the CPU: which samples are self-conditioned, by their slots alone; None if none ever is."""
        if self.self_condition_rate == 0.0:
            return None
        return torch.from_numpy(rng.share("self-condition", batch.slot, len(batch), self.self_condition_rate))

    def forward(self, denoiser: Denoiser, batch: Batch, draws: Draws) -> Loss:
        """The denoising loss and the terms that are on."""
        terms = {name: term for name, term in self._terms().items() if name in draws.terms}
        taps = sorted({tap for term in terms.values() for tap in term.needs.taps})
        noise = self.offset(draws.noise)
        x_t, target, prediction = main_pass(
            self.process,
            denoiser,
            batch.latents,
            noise,
            batch.t,
            draws.text,
            draws.keep,
            batch.window,
            tuple(taps),
            self._coherence_of(batch),
        )
        loss_B = self._error(prediction.output, target, batch.t)
        parts = {NAME: loss_B}
        if terms:
            features = dict(zip(taps, prediction.features, strict=True))
            main = MainPass(x_t, prediction.output, target, batch.t, features, batch.extra, batch.window)
            for name, term in terms.items():
                parts[name] = term(main)
                loss_B = loss_B + term.weight * parts[name]
        return Loss(loss_B, parts)

    # ------------------------------------------------------------------ losses

    def loss(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        noise: Tensor,
        t: Tensor,
        text: Texts,
        keep: Tensor | None = None,
        window: Tensor | None = None,
        coherence: Tensor | None = None,
    ) -> Tensor:
        """The denoising loss of every sample, without terms: a pure function of its arguments.

        The text is encoded once, for both passes.

        Args:
            denoiser: the network; it receives ``process.level(t, denoiser.level_kind)``, in fp32.
            x0: [B, C, H, W], clean.
            noise: [B, C, H, W] standard normal.
            t: [B] in [0, 1].
            text: B rows, after the conditioning drop.
            keep: [B] bool, which samples are self-conditioned, on the CPU to save a host sync. None: no first pass.
            window: [B, 4] x0 y0 x1 y1 in [0, 1], for denoisers that know which part of an image they see.
            coherence: [B] in [0, 1], for denoisers that know how well text and image agree.

        Returns:
            [B], at least fp32: the mean over C, H, W of the squared error, times the weight.

        Raises:
            ValueError: a wrong shape; the message says what was expected.
        """
        noise = self.offset(noise)
        _, target, prediction = main_pass(self.process, denoiser, x0, noise, t, text, keep, window, coherence=coherence)
        return self._error(prediction.output, target, t)

    def _coherence_of(self, batch: Batch) -> Tensor | None:
        """[B] of the records, or None where none is read."""
        return None if self.coherence is None else batch.extra[self.coherence].float().reshape(len(batch))

    @torch.no_grad()
    def validation(self, denoiser: Denoiser, batch: Batch, rng: Keyed) -> Tensor:
        """:meth:`loss` with fixed noise, full text and self-conditioning on every sample; [B]."""
        count, device = len(batch), batch.latents.device
        noise = rng.normal("validation noise", batch.slot, count, batch.latents.shape[1:], device)
        keep = torch.ones(count, dtype=torch.bool)
        coherence = self._coherence_of(batch)
        return self.loss(denoiser, batch.latents, noise, batch.t, batch.text, keep, batch.window, coherence)

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

    def _error(self, output: Tensor, target: Tensor, t: Tensor) -> Tensor:
        loss_B = squared_error(output, target)
        return loss_B if self.weighting is None else loss_B * self.weighting(self.process, t).to(loss_B.dtype)


def main_pass(
    process: Process,
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    text: Texts,
    keep: Tensor | None = None,
    window: Tensor | None = None,
    taps: tuple[int, ...] = (),
    coherence: Tensor | None = None,
) -> tuple[Tensor, Tensor, Prediction]:
    """x_t, the target, and the prediction after the self-conditioning pass of the rows that are kept.

    Args:
        process: the diffusion process.
        denoiser, x0, noise, t, text, keep, window, coherence: as in :meth:`Denoising.loss`.
        taps: blocks after which features are returned.

    Raises:
        ValueError: a wrong shape; the message says what was expected.
    """
    if noise.shape != x0.shape or t.shape != x0.shape[:1]:
        raise ValueError(
            f"noise {list(x0.shape)} and t {list(x0.shape[:1])} were expected, as x0 has them; got "
            f"{list(noise.shape)} and {list(t.shape)}"
        )
    x_t = process.add_noise(x0, noise, t)
    target = process.target(x0, noise, t)
    level = process.level(t, denoiser.level_kind)
    # A denoiser of one's own need know neither windows nor coherence nor taps.
    known = {name: value for name, value in (("window", window), ("coherence", coherence)) if value is not None}
    context = denoiser.encode_text(text, **known)
    state = None if keep is None else denoiser.self_condition(x_t, level, context, keep)
    prediction: Prediction = (
        denoiser(x_t, level, context, state, taps=taps) if taps else denoiser(x_t, level, context, state)
    )
    return x_t, target, prediction


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean over C, H, W of the squared difference, [B], at least fp32."""
    error = output.to(torch.promote_types(target.dtype, torch.float32)) - target
    return error.square().flatten(1).mean(1)


def fixed_times(process: Process) -> Tensor:
    """[LEVELS] float64: the t of ``process`` with the log-SNR of a flow's t = (i + 1/2) / LEVELS."""
    flow = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    return process.time(2.0 * torch.log((1.0 - flow) / flow))


@torch.no_grad()
def fixed_t_loss(denoiser: Denoiser, process: Process, batch: Batch) -> Tensor:
    """Mean squared error of the velocity noise - x_0 that the network's output stands for, loss_B [B], at fixed t.

    Record i is seen at level i modulo LEVELS, with noise that its index alone keys, full text and self-conditioning: so
    two runs in one image space are compared on the same inputs, whatever their seeds. It follows quality better than
    the loss that trains (Esser et al. 2024, "Scaling rectified flow transformers", section 5), and its distance between
    training and held-out records shows overfitting. A denoiser that knows coherence gets 1, as it does in sampling.

    Args:
        denoiser: in evaluation mode.
        process: with which it was trained.
        batch: records in their stored order; its slot is the index of the first.
    """
    device, count = batch.latents.device, len(batch)
    t = fixed_times(process).float().to(device)[batch.index % LEVELS]
    noise = Keyed(FIXED_SEED).normal("fixed-t noise", batch.slot, count, batch.latents.shape[1:], device)
    keep = torch.ones(count, dtype=torch.bool)
    _, target, prediction = main_pass(process, denoiser, batch.latents, noise, t, batch.text, keep)
    return squared_error(prediction.output, target) * VelocityError()(process, t)
