"""The benchmarks measure what they say: counts, the plain paths' equality with ours, table and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from benchmarks import plain
from benchmarks.__main__ import main, table
from benchmarks.base import Measurement, cpu_seconds, reached
from benchmarks.counting import kept_bytes, operations
from benchmarks.training import PlainStep, Step, count_operations, narrow_l
from t2ikit.batch import Text
from t2ikit.denoisers import CADI
from t2ikit.diffusion import GaussianDiffusion, sample
from t2ikit.run.counting import flops

ROOT = Path(__file__).parents[1]


def small() -> CADI:
    torch.manual_seed(0)
    network = tiny.shallow_cad_i(input_size=8, data_dim=32, num_latents=8, num_blocks=2, text_dim=16)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def test_counts() -> None:
    weight = torch.randn(3, 4)
    assert operations(lambda: (weight @ weight.T + 1).view(9).transpose(0, 0)).total == 2
    assert operations(lambda: weight.sum().item()).syncs == 1
    assert flops(lambda: weight @ weight.T) == 2 * 3 * 4 * 3
    layer, x = nn.Linear(4, 5), torch.randn(3, 4, requires_grad=True)
    assert kept_bytes(lambda: layer(x).relu(), layer) == x.nbytes + 3 * 5 * 4


def test_a_training_step_of_l_stays_below_1500_operations_and_3_syncs() -> None:
    counted = count_operations(narrow_l)
    assert counted.total <= 1500 and counted.syncs <= 3


def test_operations_do_not_depend_on_the_width() -> None:
    wide = count_operations(lambda: CADI(data_dim=64, num_latents=32, latent_dim=128, text_dim=64))
    assert wide.names == count_operations(narrow_l).names


def test_the_plain_training_step_computes_the_same() -> None:
    network = small()
    ours, theirs = Step(network, 10, 5), PlainStep(network, 10, 5)
    ours.backward()
    gradients = [p.grad.clone() for p in ours.parameters if p.grad is not None]
    network.zero_grad()
    theirs.backward()
    for one, other in zip(gradients, [p.grad for p in theirs.parameters if p.grad is not None], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    before = [p.detach().clone() for p in ours.parameters]
    ours.update()
    moved = [p.detach().clone() for p in ours.parameters]
    with torch.no_grad():
        for parameter, value, gradient in zip(theirs.parameters, before, gradients, strict=True):
            parameter.copy_(value)
            parameter.grad = gradient
    theirs.update()
    for one, parameter in zip(moved, theirs.parameters, strict=True):
        torch.testing.assert_close(one, parameter.detach(), rtol=1e-4, atol=1e-5)


def test_the_plain_sampler_draws_the_same() -> None:
    network, process = small().eval(), GaussianDiffusion()
    noise, embeddings = torch.randn(2, 4, 8, 8), torch.randn(3, 6, 16)
    text = Text(embeddings[:2], torch.ones(2, 6, dtype=torch.bool))
    uncond = Text(embeddings[2:, :1], torch.ones(1, 1, dtype=torch.bool))
    ours = sample(network, process, noise, text, uncond, steps=5, guidance=2.0, threshold=("clamp", 4.0))
    theirs = plain.ddim(network, process, noise, text, uncond, 5, 2.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_both_are_timed_in_turns() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    work = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = cpu_seconds(work, repeats=2, warm_up=1, clock=lambda: float(next(ticks)))
    assert calls == ["a", "b", "a", "b", "a", "b"] and seconds == {"a": 1.0, "b": 1.0}


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Measurement("x", 2.0, "s", "y", 4.0, "at most 0.6 x", reached(0.5, 0.6, "at most"))]
    assert table(rows).splitlines()[-1] == "| x | 2 s | y | 4 s | 0.5 | at most 0.6 x | yes |"
    assert main(["no_such"]) == 2
    assert "no benchmark no_such" in capsys.readouterr().err
    assert main(["operations", "--out", str(tmp_path / "b.json")]) == 0
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["results"]["operations"][0]["reached"] is True
    assert written["commit"] and written["date"] and written["machine"]["cores"]
