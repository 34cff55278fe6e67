"""The compiled training loss: one graph a shape, the same numbers. The quick backends stand in for inductor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch._dynamo.utils import counters

import tiny
from t2ikit.batch import Batch, Text
from t2ikit.denoisers import CADI, Denoiser, DiTI
from t2ikit.diffusion import Denoising, GaussianDiffusion, Process, RectifiedFlow
from t2ikit.diffusion.compiled import CompiledObjective
from t2ikit.diffusion.objectives import Draws


def cad_i() -> CADI:
    torch.manual_seed(0)
    denoiser = tiny.shallow_cad_i()
    torch.nn.init.normal_(denoiser.ln_previous.weight)  # self-conditioning on, so that a wrong state shows
    return denoiser


def dit_i() -> DiTI:
    torch.manual_seed(0)
    denoiser = tiny.shallow_dit_i()
    torch.nn.init.normal_(denoiser.final.weight)
    return denoiser


def inputs(rows: int, tokens: int, kept: int) -> tuple[Batch, Draws]:
    generator = torch.Generator().manual_seed(rows + tokens + kept)
    x0, noise = torch.randn(2, rows, 4, 4, 4, generator=generator)
    text = Text(torch.randn(rows, tokens, 8, generator=generator), torch.ones(rows, tokens, dtype=torch.bool))
    text.mask[0, 1:] = False
    keep = torch.randperm(rows, generator=generator) < kept
    t, zeros = torch.rand(rows, generator=generator), torch.zeros(rows, dtype=torch.int64)
    return Batch(x0, text, t, zeros, zeros, slot=rows + kept), Draws(noise, text, keep)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("build", "process", "backend", "lengths"),
    [
        pytest.param(cad_i, GaussianDiffusion(), "aot_eager", (4,), id="cad_i-epsilon", marks=pytest.mark.slow),
        pytest.param(cad_i, RectifiedFlow(), "eager", (4, 8, 4), id="cad_i-flow", marks=pytest.mark.long),
        pytest.param(dit_i, GaussianDiffusion(), "aot_eager", (4,), id="dit_i-epsilon", marks=pytest.mark.long),
        pytest.param(dit_i, RectifiedFlow(), "eager", (4, 8, 4), id="dit_i-flow", marks=pytest.mark.slow),
    ],
)
def test_one_graph_a_text_length_and_the_same_losses_and_gradients(
    build: Callable[[], Denoiser], process: Process, backend: str, lengths: tuple[int, ...]
) -> None:
    denoiser, objective = build(), Denoising(process)
    compiled = CompiledObjective(objective, {"backend": backend})
    for tokens in lengths:
        results = []
        for loss in (objective, compiled):
            denoiser.zero_grad()
            loss_B = loss(denoiser, *inputs(10, tokens, 9)).loss_B
            loss_B.mean().backward()
            results.append((loss_B.detach(), [p.grad for p in denoiser.parameters()]))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-6)
        for found, expected in zip(results[1][1], results[0][1], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == len(set(lengths))
    assert not counters["graph_break"]


@pytest.mark.long
def test_below_ten_rows_any_number_is_kept_by_one_graph_under_autocast() -> None:
    denoiser, objective = cad_i(), Denoising(GaussianDiffusion())
    compiled = CompiledObjective(objective, {"backend": "eager"})
    torch._dynamo.config.recompile_limit = 1  # as if more text lengths came than dynamo takes by itself
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for tokens, kept in ((4, 4), (4, 3), (4, 0), (8, 2)):
            given = inputs(4, tokens, kept)
            found = compiled(denoiser, *given).loss_B
            torch.testing.assert_close(found, objective(denoiser, *given).loss_B, rtol=1e-2, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.long
@pytest.mark.parametrize(("build", "blocks"), [(cad_i, False), (cad_i, True), (dit_i, False), (dit_i, True)])
def test_code_compiled_under_autocast_is_not_used_outside_it_nor_the_reverse(
    build: Callable[[], Denoiser], blocks: bool
) -> None:
    """PyTorch 2.11's Dynamo could not trace whether autocast is there (2.14's can): this failed with it."""
    denoiser, objective = build(), Denoising(GaussianDiffusion())
    options: dict[str, object] = {"backend": "aot_eager", "blocks": blocks}
    compiled, graphs = CompiledObjective(objective, options), []
    for autocast in (True, False, True, False):
        results = []
        for loss in (objective, compiled):
            denoiser.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss_B = loss(denoiser, *inputs(10, 4, 9)).loss_B
            loss_B.mean().backward()
            results.append((loss_B.detach(), [p.grad for p in denoiser.parameters()]))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3 if autocast else 1e-5, atol=1e-6)
        if not autocast:
            for found, expected in zip(results[1][1], results[0][1], strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == 2 * graphs[0] == graphs[3]
    assert not counters["graph_break"]


def test_equal_blocks_are_compiled_once_and_only_for_the_loss() -> None:
    torch.manual_seed(0)
    denoiser = tiny.shallow_dit_i(depth=6)
    compiled = CompiledObjective(Denoising(GaussianDiffusion()), {"backend": "eager", "blocks": True})
    compiled(denoiser, *inputs(10, 4, 9)).loss_B.mean().backward()
    assert counters["stats"]["unique_graphs"] == 3  # refine block, keys and values, block; not 2 + 6 + 6
    assert denoiser._caller is None
    denoiser.checkpoint_blocks = True  # the blocks are called again in the backward pass, outside of the loss
    found = [p.grad.clone() for p in denoiser.parameters() if p.grad is not None]
    denoiser.zero_grad()
    compiled(denoiser, *inputs(10, 4, 9)).loss_B.mean().backward()
    for again, first in zip([p.grad for p in denoiser.parameters() if p.grad is not None], found, strict=True):
        torch.testing.assert_close(again, first, rtol=1e-4, atol=1e-6)


def test_it_copies_without_its_code() -> None:
    compiled = CompiledObjective(Denoising(GaussianDiffusion()), {"backend": "eager"})
    compiled._function = torch.neg
    twin = copy.deepcopy(compiled)
    assert twin._function is None and twin.options == compiled.options


@pytest.mark.parametrize(
    ("option", "message"),
    [("fast", "max-autotune"), ({"fullgraph": False}, "fullgraph"), ({"dynamic": True}, "dynamic")],
)
def test_wrong_options_are_refused(option: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompiledObjective(Denoising(GaussianDiffusion()), option)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "blocks"])
def test_modes_reach_torch_compile(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: (seen.update(options), function)[1])
    objective = Denoising(GaussianDiffusion())
    CompiledObjective(objective, mode)(dit_i(), *inputs(4, 3, 4))
    assert seen == {"fullgraph": True, "dynamic": False, "mode": "default" if mode == "blocks" else mode}
