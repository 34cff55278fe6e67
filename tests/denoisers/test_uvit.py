"""UViT: counts and cost of every size, a fresh network, several texts, and a core that grows into another shell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import tiny
from benchmarks.counting import kept_bytes
from t2ikit.batch import Text, Texts, each_text
from t2ikit.checkpoints.start import train_only
from t2ikit.denoisers import Levels, Shallow, UViT
from t2ikit.denoisers.shells import ResidualBlock
from t2ikit.denoisers.uvit import SIZES, Core, CoreBlock
from t2ikit.run.counting import flops

T5_AND_CLIP = (4096, 1024)
WITH_BYT5 = (4096, 1024, 1472)
TOKENS = (128, 77, 256)
TIME = 1_312_768
# core, text, Shallow, its total, Levels, its total
COUNTS = {
    "Base": (587_763_712, 6_566_400, 66_990_851, 662_633_731, 217_390_147, 813_033_027),
    "Large": (1_678_837_760, 10_500_096, 148_201_475, 1_838_852_099, 327_500_611, 2_018_151_235),
    "Huge": (4_699_566_080, 18_367_488, 406_174_211, 5_125_420_547, 540_912_963, 5_260_159_299),
    "XHuge": (7_250_423_808, 20_989_952, 520_476_675, 7_793_203_203, 543_010_627, 7_815_737_155),
    "Vermeer": (7_519_305_728, 23_649_664, 408_681_987, 7_952_950_147, 540_912_963, 8_085_181_123),
}
# GFLOP a sample: keys and values of the text; shallow; encoder, core and decoder of the grown one
COSTS = {
    "Base": (23, 233, 390 + 198 + 429),
    "Large": (71, 697, 498 + 621 + 537),
    "Huge": (215, 2_081, 703 + 1_877 + 742),
    "XHuge": (335, 3_196, 704 + 2_934 + 743),
    "Vermeer": (765, 13_380, 2_813 + 12_485 + 2_969),
}


def both(name: str) -> tuple[UViT, UViT]:
    """The shallow network of a size and the grown one, on the meta device."""
    low, high, factor = (256, 1024, 8) if name == "Vermeer" else (64, 512, 4)
    text_dim = WITH_BYT5 if name == "Vermeer" else T5_AND_CLIP
    with torch.device("meta"):
        return (
            UViT(low, name, Shallow(factor), text_dim=text_dim),
            UViT(high, name, Levels(4), text_dim=text_dim),
        )


def counts(denoiser: UViT) -> dict[str, int]:
    """Parameters of each part."""
    return {part: sum(p.numel() for p in getattr(denoiser, part).parameters()) for part in denoiser.parts}


@pytest.mark.parametrize("name", SIZES)
def test_counts_of_every_part_and_cost_of_a_forward(name: str) -> None:
    core, text, shallow_shell, shallow_total, levels_shell, levels_total = COUNTS[name]
    keys, shallow_cost, levels_cost = COSTS[name]
    for denoiser, shell, total, cost in zip(
        both(name),
        (shallow_shell, levels_shell),
        (shallow_total, levels_total),
        (shallow_cost, levels_cost),
        strict=True,
    ):
        assert counts(denoiser) == {"time": TIME, "text": text, "core": core, "shell": shell}
        assert sum(p.numel() for p in denoiser.parameters()) == total
        with torch.device("meta"):
            widths = denoiser.text_dim if isinstance(denoiser.text_dim, tuple) else (denoiser.text_dim,)
            texts = tuple(
                Text(torch.empty(1, length, width), torch.empty(1, length).bool())
                for length, width in zip(TOKENS, widths, strict=False)
            )
            x, level = torch.empty(1, *denoiser.input_shape), torch.empty(1)
        with FlopCounterMode(display=False) as once:
            context = denoiser.encode_text(texts)
        with FlopCounterMode(display=False) as each:
            denoiser(x, level, context)
        assert once.get_total_flops() / 1e9 == pytest.approx(keys, rel=0.01)
        assert each.get_total_flops() / 1e9 == pytest.approx(cost, rel=0.01)


def test_counts_and_cost_on_imagenet() -> None:
    with torch.device("meta"):
        shallow, grown = UViT(64, text_dim=2048), UViT(256, shell=Levels(2), text_dim=2048)
        text = Text(torch.empty(1, 256, 2048), torch.empty(1, 256).bool())
        x, level = torch.empty(1, 3, 256, 256), torch.empty(1)
    assert sum(counts(shallow).values()) == 658_694_147
    assert sum(counts(grown).values()) == 808_936_515
    context = grown.encode_text(text)
    assert flops(lambda: grown(x, level, context)) / 1e9 == pytest.approx(997, rel=0.01)


@pytest.mark.parametrize(("width", "noise"), [(64, 1024), (96, 32)])
def test_formulas_of_a_block(width: int, noise: int) -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    attention = 4 * width**2 + 6 * width + 2 * 32  # with its norms
    mlp = 8 * width**2 + 7 * width + 8 * width * (noise + 1)
    assert count(CoreBlock(width, width // 32, noise)) == 2 * attention + mlp
    assert count(ResidualBlock(width, width, noise)) == 18 * width**2 + 2 * width * (noise + 4)


# ------------------------------------------------------------------ behaviour


def inputs(denoiser: UViT, rows: int = 3) -> tuple[Tensor, Tensor, Texts]:
    """x, log-SNR, and a text of each encoder, of 1 to 3 of 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    widths = denoiser.text_dim if isinstance(denoiser.text_dim, tuple) else (denoiser.text_dim,)
    mask = torch.arange(4) < torch.arange(1, rows + 1)[:, None]
    texts = tuple(Text(torch.randn(rows, 4, width, generator=generator), mask) for width in widths)
    x = torch.randn(rows, *denoiser.input_shape, generator=generator)
    return x, torch.linspace(-8.0, 8.0, rows), texts if len(texts) > 1 else texts[0]


@pytest.mark.parametrize("build", [tiny.uvit, tiny.grown_uvit])
def test_a_fresh_network_predicts_zero_also_after_a_reset(build: Callable[..., UViT]) -> None:
    denoiser = build()
    x, level, text = inputs(denoiser)
    assert not denoiser(x, level, denoiser.encode_text(text)).output.any()
    assert tiny.awake(denoiser)(x, level, denoiser.encode_text(text)).output.any()
    denoiser.reset_parameters()
    assert not denoiser(x, level, denoiser.encode_text(text)).output.any()
    zero = {name for name, parameter in denoiser.named_parameters() if name.endswith("weight") and not parameter.any()}
    assert zero == {
        name
        for name, _ in denoiser.named_parameters()
        if name.endswith((".out.weight", ".modulation.weight", ".mlp_out.weight", ".second.weight", ".last.weight"))
        and not name.startswith("time.")
    }


@pytest.mark.parametrize("value", [1e4, float("nan"), float("inf")])
def test_what_either_mask_hides_changes_no_digit(value: float) -> None:
    denoiser = tiny.awake(tiny.grown_uvit(text_dim=[24, 10])).eval()
    x, level, texts = inputs(denoiser)
    expected = denoiser(x, level, denoiser.encode_text(texts)).output
    for index, text in enumerate(each_text(texts)):
        for mask, equal in ((text.mask, True), (~text.mask, False)):
            garbage = torch.where(mask[..., None], text.embeddings, value if equal else 7.0)
            changed = [*each_text(texts)]
            changed[index] = replace(text, embeddings=garbage)
            denoiser.zero_grad()
            output = denoiser(x, level, denoiser.encode_text(tuple(changed))).output
            assert torch.equal(output, expected) == equal
            output.sum().backward()
            assert all(bool(p.grad.isfinite().all()) for p in denoiser.parameters() if p.grad is not None)


def test_any_grid_has_its_own_positions() -> None:
    denoiser = tiny.awake(tiny.uvit(input_size=(8, 12), other_sizes=[(12, 8)]))
    assert denoiser.shapes == ((3, 8, 12), (3, 12, 8))
    text = inputs(denoiser)[2]
    for shape in denoiser.shapes:
        x = torch.randn(3, *shape)
        assert denoiser(x, torch.zeros(3), denoiser.encode_text(text)).output.shape == x.shape
    tables = [table.clone() for table in denoiser._positions.values()]
    assert not torch.equal(*tables)
    assert all(map(torch.equal, tables, denoiser.bfloat16()._positions.values()))
    assert not [name for name in denoiser.state_dict() if "position" in name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 9}, "input_size 9 must be a multiple of 2, the pixels a token"),
        ({"core": "Tiny"}, "core must be one of Base, Large, Huge, XHuge, Vermeer, or .*'Tiny'"),
        ({"shell": Levels(2), "input_size": 64}, "needs the channels and blocks of the levels"),
        ({"text_dim": []}, "text_dim must be a positive width"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.uvit(**options)


def test_sizes_of_core_and_shell_that_do_not_fit_are_refused() -> None:
    for build, message in (
        (lambda: Core(30, 1, 3), "core.width.*multiple of 4"),
        (lambda: Core(32, 1, 3), "core.width.*multiple of core.heads"),
        (lambda: Core(32, 0, 2), "blocks, heads and noise_width"),
        (lambda: Core(0, 1, 1), "width, blocks"),
        (lambda: Core(32, 1, -2), "width, blocks, heads"),
        (lambda: Shallow(3), "power of 2"),
        (lambda: Shallow(2, 0), "channels must be at least 1"),
        (lambda: Levels(1), "power of 2"),
        (lambda: Levels(2, (8, 8), (1,)), "must name the same levels"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


# ------------------------------------------------------------------ growing


def grown_from(source: UViT) -> UViT:
    """A fresh network with the time, text and core of another in another shell."""
    grown = tiny.grown_uvit()
    assert "tensors stay fresh" in grown.adopt(source.state_dict(), "grow", ["time", "text", "core"])
    return grown


def test_the_core_gives_the_same_bits_in_its_new_shell() -> None:
    source = tiny.awake(tiny.uvit())
    grown, before = grown_from(source), source.state_dict()
    taken = {name: tensor for name, tensor in grown.state_dict().items() if not name.startswith("shell.")}
    assert all(torch.equal(tensor, before[name]) for name, tensor in taken.items())
    text = inputs(source)[2]
    tokens, log_snr = torch.randn(3, 16, 32), torch.linspace(-3.0, 3.0, 3)

    def result(network: UViT) -> Tensor:
        return network.through_core(tokens, network.time(log_snr), network.encode_text(text), (4, 4))[0]

    assert torch.equal(result(grown), result(source)) and not torch.equal(result(grown), tokens)


def test_what_does_not_fit_is_refused_by_name() -> None:
    source = tiny.uvit()
    wider = tiny.grown_uvit(core=Core(64, 2, 2, 16))
    with pytest.raises(ValueError, match=r"of another shape \(time|text\.norms|text\.projections.*given.*wanted"):
        wider.adopt(source.state_dict(), "grow", ["text", "core"])
    deeper = tiny.grown_uvit(core=Core(32, 3, 2, 16))
    with pytest.raises(ValueError, match=r"missing \(core\.2\."):
        deeper.adopt(source.state_dict(), "grow", ["core"])
    with pytest.raises(ValueError, match=r"has no part body; it has time, text, core, shell"):
        deeper.adopt(source.state_dict(), "grow", ["body"])
    with pytest.raises(ValueError, match=r"unknown \(shell"):
        tiny.grown_uvit().adopt(source.state_dict(), "strict")


def loss(denoiser: UViT) -> Tensor:
    """A sum over one prediction."""
    x, level, text = inputs(denoiser)
    return denoiser(x, level, denoiser.encode_text(text)).output.square().sum()


def test_a_frozen_step_changes_time_and_shell_alone_and_keeps_less() -> None:
    trained, frozen = (tiny.awake(tiny.grown_uvit()) for _ in range(2))
    train_only(frozen, ["time", "shell"])
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    held = {}
    for denoiser in (trained, frozen):
        optimizer = torch.optim.Adam([p for p in denoiser.parameters() if p.requires_grad], lr=0.01)
        activations = kept_bytes(partial(loss, denoiser), denoiser)
        loss(denoiser).backward()
        optimizer.step()
        held[denoiser] = (
            activations,
            sum(p.grad.nbytes for p in denoiser.parameters() if p.grad is not None),
            sum(value.nbytes for state in optimizer.state.values() for value in state.values()),
        )
    assert all(less < more for less, more in zip(held[frozen], held[trained], strict=True))
    for name, parameter in frozen.named_parameters():
        moves = name.startswith(("time.", "shell."))
        assert (parameter.grad is not None) == moves
        assert moves or torch.equal(parameter, before[name])
    assert not torch.equal(frozen.time.first.weight, before["time.first.weight"])
    assert not torch.equal(frozen.shell.entry.weight, before["shell.entry.weight"])


@pytest.mark.parametrize(("trainable", "forwards"), [(["time", "text", "core", "shell"], 3), (["time", "shell"], 2)])
def test_products_with_the_weights_of_a_frozen_core_cost_two_forwards(trainable: list[str], forwards: int) -> None:
    with torch.device("meta"):
        denoiser = tiny.grown_uvit()
        text = Text(torch.empty(2, 4, 24), torch.empty(2, 4).bool())
        tokens, e = torch.empty(2, 16, 32, requires_grad=True), torch.empty(2, 16, requires_grad=True)
    train_only(denoiser, trainable)
    with FlopCounterMode(display=False) as encoding:
        context = denoiser.encode_text(text)
    context = context.detach()

    def products(work: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        counted = counter.get_flop_counts()["Global"]
        return sum(count for operation, count in counted.items() if str(operation) in ("aten.mm", "aten.addmm"))

    once = products(lambda: denoiser.through_core(tokens, e, context, denoiser.grids[0]))
    both_ways = products(lambda: denoiser.through_core(tokens, e, context, denoiser.grids[0])[0].sum().backward())
    assert once > 0 and both_ways == forwards * once
    assert encoding.get_total_flops() > 0 and denoiser.encode_text(text).keys_values[0].requires_grad == (forwards == 3)


@pytest.mark.parametrize("build", [tiny.uvit, tiny.grown_uvit])
def test_the_residual_stream_of_the_core_stays_in_fp32_under_autocast(build: Callable[..., UViT]) -> None:
    denoiser = tiny.awake(build()).eval()
    x, level, text = inputs(denoiser)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = denoiser(x, level, denoiser.encode_text(text), taps=(1, 2))
    assert [feature.dtype for feature in prediction.features] == [torch.float32] * 2
    assert prediction.output.dtype == x.dtype
