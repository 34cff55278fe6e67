"""Counts without data against those of real steps: FLOPs, and the peak of the bytes that the allocator hands out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.counting import Operations
from t2ikit.batch import Text
from t2ikit.denoisers import Denoiser
from t2ikit.diffusion import Denoising, GaussianDiffusion, sample
from t2ikit.evaluation.settings import Sampling
from t2ikit.module import TextToImage
from t2ikit.optim import AdamW, Lamb, Muon
from t2ikit.run.cost import Inputs, Step
from t2ikit.run.counting import LiveBytes, flops, imagined, without_weights
from t2ikit.run.sample_cost import count_sample
from tiny import cad_i, dit_i, grown_uvit, uvit

CPU = torch.device("cpu")
ROWS, TOKENS = 16, 24
# Inside of these a CPU copies images into blocks of 8 or 16 channels, which no GPU does: 3 channels become 16.
CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")
UNFOLDS = pytest.mark.skipif(
    not torch.cpu._is_avx512_supported(),
    reason="without AVX-512 torch unfolds what a convolution in bf16 reads into a copy that no GPU makes",
)


def wide_cad_i(**options: Any) -> Denoiser:
    """With activations that are more than the weights, as those of the real ones are."""
    return cad_i(**{"num_registers": 2, **options})


NETWORKS: dict[str, Callable[..., Denoiser]] = {
    "cad_i": wide_cad_i,
    "cad": lambda **options: wide_cad_i(**{"coherence": True, "num_latents": 12, **options}),
    "dit_i": dit_i,
    "uvit": uvit,
    "grown_uvit": grown_uvit,
}
OPTIMIZERS = {"cad_i": Lamb, "cad": Lamb, "dit_i": AdamW, "uvit": AdamW, "grown_uvit": AdamW}


def model_of(name: str, **options: Any) -> TextToImage:
    """Pixels where the network has three channels; ``NETWORK by Muon`` has that optimizer."""
    name, _, muon = name.partition(" by ")
    denoiser = NETWORKS[name](in_channels=3, **options)
    objective = Denoising(GaussianDiffusion(), self_condition_rate=0.9)
    return TextToImage(denoiser, objective, optimizer=Muon() if muon else OPTIMIZERS[name]())


def step_of(model: TextToImage, decays: list[float], trainer: dict[str, Any], rows: int = ROWS) -> Step:
    return Step(model, trainer, decays, Inputs(rows, (TOKENS,), {}), CPU)


def imagined_step(name: str, decays: list[float], trainer: dict[str, Any], **options: Any) -> tuple[int, int, int]:
    """FLOPs, peak above the start, and the peak of twice the rows, counted without data."""
    with torch.device("meta"):
        model = model_of(name, **options)
    without_weights(model)
    live = LiveBytes()
    with imagined(), live:
        for tensor in (*model.parameters(), *model.buffers()):
            live.hold(tensor)
        step = step_of(model, decays, trainer)
        for parameter in step.trained:
            parameter.grad = torch.empty_like(parameter)
            parameter.register_post_accumulate_grad_hook(lambda p: live.hold(p.grad))
        step.optimizer.step()
        start = live.fixed + live.rows
        live.restart()
        total = flops(step)
    return total, live.peak() - start, live.peak(2.0) - start


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that the allocator of the CPU has handed out above those at the start, by its own events.

    The profiler does not see what is freed of before, such as the gradients of the last step: so this one is seen, too.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
        with record_function("counted"):
            work()
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    (counted,) = (event for event in events if event.name() == "counted")
    spans = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() in CONVOLUTIONS]
    begin, end = counted.start_ns(), counted.start_ns() + counted.duration_ns()
    live = start = peak = 0
    for event in events:
        time = event.start_ns()
        if event.name() != "[memory]" or time > end:
            continue
        if time >= begin and not any(first <= time <= last for first, last in spans):
            peak = max(peak, live - start, live + event.nbytes() - start)
        live += event.nbytes()
        if time < begin:
            start = live
    return peak


@pytest.mark.parametrize(
    ("name", "decays", "trainer"),
    [
        ("cad_i", [0.999], {"gradient_clip_val": 1.0}),
        ("cad_i", [], {"accumulate_grad_batches": 2}),
        ("cad", [0.9, 0.99], {}),
        ("dit_i", [], {"gradient_clip_val": 1.0}),
        ("dit_i", [0.999], {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}),
        ("uvit", [0.999], {}),
        ("grown_uvit", [], {}),
        ("cad_i by Muon", [0.999], {"gradient_clip_val": 1.0}),
        ("dit_i by Muon", [], {}),
        pytest.param("grown_uvit", [], {"precision": "bf16-mixed"}, marks=UNFOLDS),
    ],
)
def test_a_step_without_data_costs_what_a_real_one_does(
    name: str, decays: list[float], trainer: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    counted, peak, double = imagined_step(name, decays, trainer)
    step = step_of(model_of(name), decays, trainer)
    step()
    assert flops(step) == pytest.approx(counted, rel=0.1)
    assert allocated(step) == pytest.approx(peak, rel=0.1)
    twice = step_of(step.model, decays, trainer, 2 * ROWS)
    twice()
    assert allocated(twice) == pytest.approx(double, rel=0.1)


@pytest.mark.parametrize("name", ["cad_i", "dit_i", "uvit"])
def test_checkpointed_blocks_keep_less_and_compute_more(name: str) -> None:
    plain, checkpointed = imagined_step(name, [], {}), imagined_step(name, [], {}, checkpoint_blocks=True)
    assert checkpointed[0] > plain[0]
    step = step_of(model_of(name, checkpoint_blocks=True), [], {})
    step()
    assert flops(step) == pytest.approx(checkpointed[0], rel=0.1)
    assert allocated(step) == pytest.approx(checkpointed[1], rel=0.1)


def test_attention_of_the_cpu_is_counted() -> None:
    query = torch.zeros(2, 4, 16, 8, requires_grad=True)
    products = 2 * 2 * 4 * 16 * 16 * 8

    def attend() -> Tensor:
        return F.scaled_dot_product_attention(query, query, query)

    with Operations() as operations:
        assert flops(attend) == 2 * products
    assert operations.names["_scaled_dot_product_flash_attention_for_cpu"] == 1
    assert flops(lambda: attend().sum().backward()) == 2 * products + 5 * products


def test_values_are_not_there() -> None:
    with imagined():
        tensor = torch.ones(3, 4)
        assert (tensor @ tensor.T).shape == (3, 3)
        assert int(torch.tensor(3) + 1) == 4, "what depends on real numbers alone is computed"
        with pytest.raises(RuntimeError):
            tensor.sum().item()


def test_living_bytes_know_what_grows_with_the_rows() -> None:
    weight, rows = torch.zeros(8), torch.zeros(8)
    with LiveBytes() as live:
        live.hold(weight)
        live.restart()
        scaled = 2 * weight
        product = rows * scaled
        del product
        kept = rows + 1.0
    assert (live.fixed, live.rows) == (64, 32)
    assert live.peak() == 96 and live.peak(3.0) == 64 + 3 * 32
    assert len(kept) == 8


def test_a_sample_costs_its_evaluations() -> None:
    class Plan:
        trainer: dict[str, Any] = {}

        class model:
            @staticmethod
            def build(errors: Any) -> TextToImage:
                return model_of("dit_i")

    plain, longer, guided, heun = (
        count_sample(Plan, Sampling(steps, method, guidance), Inputs(1, (TOKENS,), {}))  # type: ignore[arg-type]
        for steps, method, guidance in ((4, "ddim", 0.0), (8, "ddim", 0.0), (8, "ddim", 2.0), (8, "heun", 0.0))
    )
    call = (longer - plain) / 4
    assert guided > longer + 6.5 * call, "every step but the first evaluates two texts"
    assert heun == pytest.approx(longer + 7 * call, rel=1e-6)
    real = model_of("dit_i")
    noise = torch.randn(1, *real.denoiser.input_shape)
    text = Text(torch.randn(1, TOKENS, 24), torch.ones(1, TOKENS).bool())
    counted = flops(lambda: sample(real.denoiser, real.process, noise, text, text, steps=8))
    assert counted == pytest.approx(longer, rel=0.1)
