"""What a sampler step asks of a GPU, held on the meta device: it has no numbers, so whatever waits for one fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from t2ikit.batch import Text
from t2ikit.denoisers import CADI, Denoiser, DiTI
from t2ikit.diffusion import GaussianDiffusion, Guidance, Process, Projection, RectifiedFlow, sample

STEPS = 4


def cad_i() -> CADI:
    return tiny.shallow_cad_i(num_blocks=2, num_registers=16)


def dit_i() -> DiTI:
    return tiny.shallow_dit_i(depth=2, num_registers=16)


def text(rows: int, tokens: int, device: str = "meta") -> Text:
    return Text(torch.ones(rows, tokens, 8, device=device), torch.ones(rows, tokens, dtype=torch.bool, device=device))


class Trace(TorchDispatchMode):
    """Operations with their shapes, views left out, and copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [each for each in args if isinstance(each, Tensor)]
        if isinstance(result, Tensor) and any(each.device != result.device and each.dim() for each in tensors):
            self.copies += 1
        if not func.is_view and any(each.device.type == "meta" for each in tensors):
            self.operations.append((str(func), *(tuple(each.shape) for each in tensors)))
        return result


@pytest.mark.parametrize(
    ("build", "method"),
    [(cad_i, "ddim"), (cad_i, "ddpm"), (cad_i, "euler"), (cad_i, "heun"), (cad_i, "dpmpp_2m"), (dit_i, "ddim")],
)
@pytest.mark.parametrize("process", [GaussianDiffusion(), RectifiedFlow()], ids=["epsilon", "flow"])
def test_no_step_waits_for_the_device_or_copies_to_it(build: Any, process: Process, method: str) -> None:
    with torch.device("meta"):
        denoiser: Denoiser = build()
        noise = torch.randn(3, 4, 4, 4)
    copies = []
    with Trace() as trace:
        sample(
            denoiser, process, noise, text(3, 5), text(1, 1), steps=STEPS, guidance=2.0, method=method,
            progress=lambda done, steps: copies.append(trace.copies),
        )  # fmt: skip
    assert copies == [1] * STEPS, "only the levels of the whole grid are sent, once, before the first step"


@pytest.mark.parametrize("build", [cad_i, dit_i])
@pytest.mark.parametrize(
    "rule",
    [Guidance(0.0), Guidance(2.0, start_step=-1), Guidance(2.0, start_step=-1, projection=Projection(max_norm=5.0))],
    ids=["none", "plain", "projected"],
)
def test_every_step_is_the_same_work_on_the_same_shapes(build: Any, rule: Guidance) -> None:
    """So that one step can be captured once as a CUDA graph, or compiled once."""
    with torch.device("meta"):
        denoiser: Denoiser = build()
        noise = torch.randn(3, 4, 4, 4)
    ends: list[int] = []
    with Trace() as trace:
        sample(
            denoiser, GaussianDiffusion(), noise, text(3, 5), text(1, 1), steps=STEPS, guidance=rule,
            progress=lambda done, steps: ends.append(len(trace.operations)),
        )  # fmt: skip
    steps = [trace.operations[start:end] for start, end in zip(ends, ends[1:])]  # the first step has no state yet
    assert len(steps) == STEPS - 1 and len(steps[0]) > 20
    assert all(each == steps[0] for each in steps)


@pytest.mark.parametrize("build", [cad_i, dit_i])
@pytest.mark.parametrize("method", ["ddim", "heun"])
def test_each_text_is_encoded_once_whatever_the_steps(build: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser: Denoiser = build()
    rows: list[int] = []
    encode = denoiser.encode_text
    monkeypatch.setattr(denoiser, "encode_text", lambda given: (rows.append(len(given)), encode(given))[1])
    projections: list[int] = []
    layer = denoiser.map_text_tokens if isinstance(denoiser, CADI) else denoiser.text_proj
    layer.register_forward_hook(lambda module, args, out: projections.append(out.shape[0]))
    noise = torch.randn(3, 4, 4, 4)
    prompt, empty = text(3, 5, "cpu"), text(1, 1, "cpu")
    sample(denoiser, GaussianDiffusion(), noise, prompt, empty, steps=STEPS, guidance=2.0, method=method)
    assert rows == projections == [3, 1]
