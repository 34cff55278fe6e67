"""Sampling by DDIM with guidance: eager as in snapshots, with compiled blocks, and replayed from CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.base import Measurement, Settings
from benchmarks.gpu.correct import break_symmetry, relative_error
from benchmarks.gpu.experiments import SMALL
from benchmarks.gpu.timing import seconds, synchronise
from t2ikit.batch import Prediction, Text
from t2ikit.denoisers import CADI, Denoiser, DiTI
from t2ikit.denoisers.context import TextContext
from t2ikit.diffusion import GaussianDiffusion, sample
from t2ikit.diffusion.compiled import compiled_blocks

TOKENS = 192


class Replayed:
    """Calls of a denoiser by CUDA graphs, one for each shape of a call, under one autocast and no gradients.

    Args:
        forward: of a denoiser in evaluation mode, on a GPU.
    """

    def __init__(self, forward: Callable[..., Prediction]) -> None:
        self.forward = forward
        self._graphs: dict[Any, Any] = {}
        self._shown: dict[Any, TextContext] = {}

    def __call__(self, x: Tensor, level: Tensor, context: TextContext, state: Tensor | None = None) -> Prediction:
        """As the denoiser's; the result is copied out of the graph's memory."""
        key = (x.shape, context.mask.shape, state is None)
        if key not in self._graphs:
            self._graphs[key] = self._capture(x, level, context, state)
        graph, inputs, captured, prediction = self._graphs[key]
        for held, value in zip(inputs, (x, level, state), strict=True):
            if held is not None:
                held.copy_(value)
        if self._shown.get(key) is not context:  # once a sample: a context serves all steps
            for held, value in zip(
                (*captured.keys_values, captured.mask), (*context.keys_values, context.mask), strict=True
            ):
                held.copy_(value)
            self._shown[key] = context
        graph.replay()
        return Prediction(prediction.output.clone(), None if prediction.state is None else prediction.state.clone())

    def _capture(self, x: Tensor, level: Tensor, context: TextContext, state: Tensor | None) -> Any:
        held = [None if value is None else value.clone() for value in (x, level, state)]
        context = context._map(torch.clone)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.forward(*held[:2], context, held[2])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            prediction = self.forward(*held[:2], context, held[2])
        return graph, held, context, prediction


def sampling(settings: Settings) -> Iterator[Measurement]:
    """Images a second of both networks under bf16 autocast, guidance 2, one row and many."""
    steps = 3 if settings.small else 20
    builds: dict[str, Any] = {"DiT-I": DiTI, "CAD-I L": CADI}
    for rows in (2,) if settings.small else (64, 1):
        for name, build in builds.items():
            if settings.left < 5:
                return
            options = SMALL[build.__name__] if settings.small else {}
            torch.manual_seed(0)
            with torch.device(settings.device):
                network = build(**options).eval()
            break_symmetry(network)
            yield from _draw(settings, f"{name}, DDIM, {steps} steps, guidance, B={rows}", network, rows, steps)
            del network


def _draw(settings: Settings, label: str, network: Denoiser, rows: int, steps: int) -> Iterator[Measurement]:
    generator = torch.Generator(settings.device).manual_seed(0)
    made: Any = {"generator": generator, "device": settings.device}
    noise = torch.randn(rows, *network.input_shape, **made)
    mask = torch.arange(TOKENS, device=settings.device).expand(rows, -1) < 180
    text = Text(torch.randn(rows, TOKENS, network.text_dim, **made), mask)
    uncond = Text(torch.randn(1, 1, network.text_dim, **made), mask[:1, :1])
    process = GaussianDiffusion()

    def eager() -> Tensor:
        with torch.autocast(settings.device, torch.bfloat16):
            return sample(network, process, noise, text, uncond, steps=steps, guidance=2.0, threshold=("clamp", 4.0))

    repeats = 1 if settings.small else 3
    spent = seconds(eager, settings.until - 4, repeats=repeats, warm_up=1)
    yield Measurement(f"{label}, eager", rows / spent, "images/s", note=f"{1e3 * spent / steps:.1f} ms a step")
    expected, fresh = eager(), time.perf_counter()
    with network.called_by(compiled_blocks({"backend": "aot_eager"} if settings.small else {})):
        images = eager()
        synchronise()
        fresh = time.perf_counter() - fresh
        spent = seconds(eager, settings.until - 3, repeats=repeats, warm_up=0)
    note = f"{1e3 * spent / steps:.1f} ms a step, {fresh:.0f} s for the first"
    yield Measurement(f"{label}, blocks compiled", rows / spent, "images/s", note=note)
    error = relative_error(images, expected)
    yield Measurement(f"{label}, blocks compiled against eager, largest difference", error, "", note="bf16")
    if settings.device != "cuda" or settings.left < 5 or rows > 1:  # many rows keep the GPU busy by themselves
        return
    with torch.no_grad(), torch.autocast(settings.device, torch.bfloat16):
        first = torch.zeros(rows, dtype=torch.int64)
        replayed = Replayed(network.forward)
        network.forward = replayed  # type: ignore[method-assign]

        def graphs() -> Tensor:
            contexts = network.encode_text(text), network.encode_text(uncond).rows(first)  # timed, as in eager()
            return sample(network, process, noise, *contexts, steps=steps, guidance=2.0, threshold=("clamp", 4.0))

        images = graphs()
        spent = seconds(graphs, settings.until - 2, repeats=repeats, warm_up=1)
    yield Measurement(f"{label}, CUDA graphs", rows / spent, "images/s", note=f"{1e3 * spent / steps:.1f} ms a step")
    yield Measurement(f"{label}, CUDA graphs against eager, largest difference", relative_error(images, expected), "")
