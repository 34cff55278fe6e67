"""Denoisers whose answers are known: the exact one of a normal distribution, and one that only keeps books."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2ikit.batch import Prediction, Text
from t2ikit.denoisers.base import Denoiser
from t2ikit.diffusion import GaussianDiffusion, Process, RectifiedFlow


@dataclass
class Rows:
    """A context: one number a text row."""

    values: Tensor

    def rows(self, index: Tensor) -> Rows:
        return Rows(self.values[index])

    def cat(self, other: Rows) -> Rows:
        return Rows(torch.cat([self.values, other.values]))


class NormalDenoiser(Denoiser):
    """The best prediction when x_0 ~ N(mean, std^2) for every pixel, worked out from the log-SNR it is told."""

    level_kind = "log_snr"

    def __init__(self, process: Process, mean: float, std: float) -> None:
        super().__init__()
        self.process, self.mean, self.std = process, mean, std

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (1, 1, 1)

    def encode_text(self, text: Text, coherence: Any = None, window: Any = None) -> Rows:
        return Rows(text.embeddings[:, 0, 0])

    def forward(self, x: Tensor, level: Tensor, context: Any, state: Any = None) -> Prediction:
        log_snr = level.double().reshape(-1, 1, 1, 1)
        if isinstance(self.process, RectifiedFlow):
            alpha, sigma = torch.sigmoid(0.5 * log_snr), torch.sigmoid(-0.5 * log_snr)
        else:
            alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        variance = (alpha * self.std) ** 2 + sigma**2
        x0 = self.mean + alpha * self.std**2 * (x - alpha * self.mean) / variance
        noise = sigma * (x - alpha * self.mean) / variance
        if isinstance(self.process, RectifiedFlow):
            return Prediction((noise - x0).to(x.dtype))
        assert isinstance(self.process, GaussianDiffusion)
        output = noise if self.process.prediction == "epsilon" else alpha * noise - sigma * x0
        return Prediction(output.to(x.dtype))


@dataclass
class Call:
    level: float
    texts: list[float]
    states: list[float] | None


@dataclass
class Books:
    encoded: int = 0
    calls: list[Call] = field(default_factory=list)
    keeps: list[Tensor] = field(default_factory=list)


class BookkeepingDenoiser(Denoiser):
    """Predicts from x, text and state; its state counts the calls that it went through, weighed by the text."""

    level_kind = "gamma"

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.gain = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (2, 2, 2)

    def encode_text(self, text: Text, coherence: Any = None, window: Any = None) -> Rows:
        self.books.encoded += 1
        values = text.embeddings[:, 0, 0]
        return Rows(values if window is None else values + window[:, 0])

    def forward(self, x: Tensor, level: Tensor, context: Rows, state: Tensor | None = None) -> Prediction:
        states = None if state is None else state.flatten().tolist()
        self.books.calls.append(Call(float(level[0]), context.values.tolist(), states))
        previous = torch.zeros_like(context.values) if state is None else state.flatten()
        shift = (context.values + 0.1 * previous).reshape(-1, 1, 1, 1).to(x.dtype)
        output = self.dropout(self.gain.to(x.dtype) * x) + shift * torch.tanh(x)
        return Prediction(output, (previous + 1.0 + context.values).reshape(-1, 1))

    def self_condition(self, x: Tensor, level: Tensor, context: Rows, keep: Tensor) -> Tensor:
        self.books.keeps.append(keep)
        return keep.to(x.dtype).reshape(-1, 1) * 3.0


class Denoisers:
    """Makers of the above, and of texts."""

    @staticmethod
    def normal(process: Process | None = None, mean: float = 0.7, std: float = 0.5) -> NormalDenoiser:
        return NormalDenoiser(process if process is not None else GaussianDiffusion(), mean, std)

    @staticmethod
    def bookkeeping() -> BookkeepingDenoiser:
        return BookkeepingDenoiser()

    @staticmethod
    def text(*values: float) -> Text:
        embeddings = torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)
        return Text(embeddings, torch.ones(len(values), 1, dtype=torch.bool))


@pytest.fixture(scope="session")
def make() -> type[Denoisers]:
    return Denoisers
