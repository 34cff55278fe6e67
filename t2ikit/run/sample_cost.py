"""What an image of an experiment costs: the FLOPs of its sampler, counted without weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from t2ikit.batch import Prediction, Texts, each_text
from t2ikit.config.errors import ConfigError
from t2ikit.denoisers import Denoiser, TextContext
from t2ikit.diffusion import sample
from t2ikit.evaluation.settings import Sampling
from t2ikit.run.cost import Inputs, empty_prompt, imagined_model, stored_batch
from t2ikit.run.counting import flops, imagined
from t2ikit.run.experiment import Plan


def count_sample(plan: Plan, sampling: Sampling, inputs: Inputs) -> int:
    """FLOPs of one image: the encoding of its text, and every evaluation of the network that the sampler makes.

    The sampler runs with a network that counts its calls; then each kind of call is counted once. A search makes these
    calls for every candidate, and encodes the text once; what its verifier costs is not counted.

    Raises:
        ConfigError: it cannot be counted, as where a weaker network is named whose checkpoint is missing.
    """
    model = imagined_model(plan)
    denoiser, device = model.denoiser, torch.device("cpu")
    counted, candidates = _CountsCalls(denoiser), 1 if sampling.search is None else sampling.search.candidates
    text, empty = empty_prompt(denoiser, device), empty_prompt(denoiser, device)
    noise = torch.zeros(1, denoiser.input_shape[0], 2, 2)  # how many calls there are does not depend on the size
    try:
        sample(
            counted,
            model.process,
            noise,
            text,
            empty,
            steps=sampling.steps,
            guidance=sampling.guidance,
            method=sampling.method,
            threshold="none",
        )
        with imagined(), torch.no_grad():
            denoiser.eval()
            batch = model.ready(stored_batch(model, replace(inputs, rows=1), device))
            total = flops(lambda: denoiser.encode_text(batch.text))
            if counted.texts > 1:
                total += flops(lambda: denoiser.encode_text(empty_prompt(denoiser, device)))
            for rows, calls in counted.calls.items():
                batch = model.ready(stored_batch(model, replace(inputs, rows=rows), device))
                context = denoiser.encode_text(batch.text)
                call = flops(lambda: denoiser(batch.latents, batch.t, context))  # noqa: B023
                total += candidates * calls * call
    except (RuntimeError, ValueError, FileNotFoundError, NotImplementedError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"a sample cannot be counted: {line}") from error
    return total


class _CountsCalls(Denoiser):
    """Stands for a network of the same shapes: counts texts and calls, and predicts nothing.

    Args:
        like: the network.
    """

    def __init__(self, like: Denoiser) -> None:
        super().__init__()
        self.level_kind, self.text_dim, self.pooled_dim = like.level_kind, like.text_dim, like.pooled_dim
        self._shape = like.input_shape
        self.texts, self.calls = 0, dict[int, int]()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self._shape

    def encode_text(self, text: Texts, coherence: Any = None, window: Any = None) -> TextContext:
        self.texts += 1
        (first, *_) = each_text(text)
        return TextContext((first.embeddings[:, :, :1],), first.mask)

    def forward(self, x: Tensor, level: Tensor, context: Any, state: Any = None) -> Prediction:
        self.calls[len(x)] = self.calls.get(len(x), 0) + 1
        return Prediction(torch.zeros_like(x))
