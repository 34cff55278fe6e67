"""``t2ikit plan`` as a user calls it: no data, no weights, no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2ikit import cli
from t2ikit.run.gpus import GPUS
from tiny import enter

STAGES = """
extends: [tiny.yaml]
trainer: {max_steps: 10, accumulate_grad_batches: 2}
callbacks: {val: null}
stages:
  first: {}
  longer: {trainer: {max_steps: 30}}
"""
SWEEP = """
extends: [tiny.yaml]
trainer: {max_steps: 10}
sweep:
  grids:
    sizes:
      seeds: [0, 1]
      axes: {batch: {small: {data: {init_args: {batch_size: 4}}}, large: null}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))  # no data of another test
    return enter(tmp_path, monkeypatch, {"stages.yaml": STAGES, "sweep.yaml": SWEEP})


def test_a_plan_needs_neither_data_nor_weights(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.max_steps", "100", "--tokens", "30", "--gpu", "l4", "--json", "plan.json"]
    assert cli.main(["plan", "tiny.yaml", *words]) == 0
    printed = capsys.readouterr().out
    (plan,) = json.loads(Path("plan.json").read_text())
    assert "parameters, trained" in printed and "L4 " in printed and "(arithmetic)" in printed
    assert plan["tokens"] == [32] and plan["steps"] == 100 and plan["batch"] == 8
    assert plan["total_flops"] == 100 * plan["step_flops"]
    trained = sum(plan["parameters"]["trained"].values())
    for memory in plan["memory"].values():
        kept = [memory[part] for part in ("weights", "gradients", "averages", "optimizer")]
        assert kept == pytest.approx([4 * trained, 4 * trained, 4 * trained, 8 * trained], rel=0.02)
        assert memory["peak"] == sum(count for part, count in memory.items() if part != "peak")
    assert plan["memory"].keys() == {"plain", "checkpointed"}
    assert plan["sample_flops"].keys() == {"val", "geneval"} and min(plan["sample_flops"].values()) > 0
    assert plan["disk"].keys() >= {"train", "val"} and not plan["disk_is_read"]
    entry = plan["gpus"]["L4"]
    assert entry["hours"] == pytest.approx(100 * 8 / entry["images_a_second"] / 3600)
    assert entry["kilowatt_hours"] == pytest.approx(entry["hours"] * GPUS["l4"].watts / 1000)
    assert entry["micro_batch"] == 8
    assert not (Path.cwd() / "runs").exists()


@pytest.mark.long
def test_every_stage_and_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "stages.yaml", "--json", "stages.json", "--gpu", "h100"]) == 0
    first, longer = json.loads(Path("stages.json").read_text())
    assert (first["name"], longer["name"]) == ("first", "longer") and first["micro_batch"] == 4
    assert longer["total_flops"] == 3 * first["total_flops"]
    assert "all 2 runs" in capsys.readouterr().out
    assert cli.main(["plan", "sweep.yaml", "--json", "sweep.json", "--gpu", "h100"]) == 0
    cells = {cell["name"]: cell["step_flops"] for cell in json.loads(Path("sweep.json").read_text())}
    assert len(cells) == 4
    assert cells["sizes-large-seed0"] == pytest.approx(2 * cells["sizes-small-seed1"], rel=0.02)


def test_an_update_counts_once_a_step_however_many_micro_batches(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model.optimizer", "t2ikit.optim.Muon", "--model.optimizer.lr", "0.001", "--json", "plan.json"]
    costs = []
    for count in (1, 2, 4):
        assert cli.main(["plan", "tiny.yaml", *words, "--trainer.accumulate_grad_batches", str(count)]) == 0
        costs.append(json.loads(Path("plan.json").read_text())[0]["step_flops"])
    assert costs[1:] == pytest.approx([costs[0]] * 2, rel=1e-3)
    assert cli.main(["plan", "tiny.yaml", "--json", "plan.json"]) == 0
    assert json.loads(Path("plan.json").read_text())[0]["step_flops"] < 0.99 * costs[0]


def test_measured_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--trainer.max_steps", "100", "--callbacks.val", "null", "--callbacks.geneval", "null"]
    assert cli.main(["plan", "tiny.yaml", *words, "--measure", "1", "--json", "plan.json"]) == 0
    measured = json.loads(Path("plan.json").read_text())[0]["measured"]
    assert measured["images_a_second"] == pytest.approx(measured["steps"] * measured["rows"] / measured["seconds"])
    assert measured["rows"] <= 8 and "measured here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h1000"], "--gpu h1000: not in the table; nearest known: 'h100'"),
        (["--utilisation", "2"], "--utilisation: a share in (0, 1]"),
        (["--tokens", "3", "4"], "--tokens: 2 numbers, but the denoiser has 1 text encoders"),
        (["--model.denoiser.data_dim", "wide"], "data_dim"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "tiny.yaml", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_a_search_costs_its_candidates_and_one_encoding_of_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    flops = []
    for candidates in (1, 3, 5):
        search = f"{{class_path: t2ikit.evaluation.Search, init_args: {{candidates: {candidates}, verifier: NAME}}}}"
        search = search.replace("NAME", "{class_path: t2ikit.shapes.AskedProbability}")
        given = [] if candidates == 1 else ["--callbacks.val.search", search]
        assert cli.main(["plan", "tiny.yaml", *given, "--gpu", "l4", "--json", "plan.json"]) == 0
        (plan,) = json.loads(Path("plan.json").read_text())
        flops.append(plan["sample_flops"]["val"])
    assert flops[2] - flops[1] == flops[1] - flops[0] > 0 and flops[1] < 3 * flops[0]


def test_a_place_that_takes_no_numbers_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("counted")

    Path("samples").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("t2ikit.run.plan.Estimator.estimate", never)
        for place, message in (("samples", "--json samples is a folder"), ("tiny.yaml/x.json", "is a file, no folder")):
            assert cli.main(["plan", "tiny.yaml", "--json", place]) == 2
            assert message in capsys.readouterr().err
    # Of a run that only a clock ends no hours are known, and JSON knows no NaN.
    clock = ["--trainer.max_steps", "-1", "--trainer.max_time", "00:00:01:00"]
    assert cli.main(["plan", "tiny.yaml", *clock, "--gpu", "l4", "--json", "new/plan.json"]) == 0
    (plan,) = json.loads(Path("new/plan.json").read_text(), parse_constant=pytest.fail)
    assert plan["steps"] is None and plan["gpus"]["L4"]["hours"] is None
