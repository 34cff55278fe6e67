"""``t2ikit plan`` as a user calls it: no data, no weights, no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from t2ikit import cli
from t2ikit.records.manifest import Manifest, StoredArray, TextSource
from t2ikit.records.record import Record, text_arrays
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set
from t2ikit.run.cost import count_step
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


CROPPED = """
extends: [tiny.yaml]
trainer: {max_steps: 10}
callbacks: {val: null, geneval: null}
sweep:
  grids:
    all:
      seeds: [0, 1]
      axes: {kind: {plain: null, crop: {callbacks: {crop: {class_path: t2ikit.callbacks.Crop}}}}}
"""
FEATURES = """
extends: [tiny.yaml]
model: {init_args: {objective: {init_args: {terms: {features: {class_path: features.Features}}}}}}
data: {class_path: t2ikit.data.DataModule, init_args: {root: data, batch_size: 8}}
callbacks: {cutmix: null}
"""
TERM = """
from torch import nn

from t2ikit.diffusion.terms import Needs, Term


class Features(Term):
    needs = Needs(arrays=("features",), taps=(1,))

    def __init__(self, width: int = 16, weight: float = 1.0, until: int | None = None):
        super().__init__(weight, until)
        self.head = nn.Linear(width, 6)

    def forward(self, main):
        return (self.head(main.features[1].float().mean(1)) - main.arrays["features"].float()).square().mean(1)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))  # no data of another test
    files = {"stages.yaml": STAGES, "sweep.yaml": SWEEP, "cropped.yaml": CROPPED, "features.yaml": FEATURES}
    files["features.py"] = TERM
    return enter(tmp_path, monkeypatch, files)


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


def test_crop_costs_the_mean_of_its_windows_whatever_the_seed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr("t2ikit.run.plan.count_step", lambda *args, **kw: calls.append(args) or count_step(*args, **kw))
    words = ["--model.denoiser.window_tokens", "true", "--model.denoiser.patch_size", "2"]
    assert cli.main(["plan", "cropped.yaml", *words, "--json", "plan.json", "--tokens", "30"]) == 0
    cells = {plan["name"]: plan for plan in json.loads(Path("plan.json").read_text())}
    assert len(cells) == 4 and len(calls) == 4, "two seeds of a row are counted once, plain and checkpointed"
    flops = {name: plan["step_flops"] for name, plan in cells.items()}
    assert flops["all-crop-seed0"] == flops["all-crop-seed1"]
    assert 0.6 * flops["all-plain-seed0"] < flops["all-crop-seed0"] < 0.97 * flops["all-plain-seed0"]
    peaks = [cells[name]["memory"]["plain"]["peak"] for name in ("all-plain-seed0", "all-crop-seed0")]
    assert 0.8 * peaks[0] < peaks[1] <= peaks[0]


def test_prepared_data_say_shapes_and_the_number_of_records(capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    manifest = Manifest(
        "pixels", (3, 16, 16), texts={"t5": TextSource(64)}, further={"features": StoredArray("float16", (6,))}
    )

    def record(index: int) -> Record:
        states = States(quantise_tokens(random.standard_normal((1 + index % 30, 64))))
        arrays = {"image": np.zeros((3, 16, 16), np.uint8), "features": np.ones(6, np.float16)}
        return Record({**arrays, **text_arrays("t5", [states, states])}, ("a", "b"), {"key": str(index)})

    empty = {"t5": States(quantise_tokens(np.ones((1, 64))))}
    for name, count in (("train", 43), ("val", 8)):
        write_set(Path("data") / name, map(record, range(count)), manifest, empty)
    words = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "3", "--callbacks.geneval", "null"]
    assert cli.main(["plan", "features.yaml", *words, "--measure", "1", "--json", "plan.json"]) == 0
    (plan,) = json.loads(Path("plan.json").read_text())
    assert plan["disk_is_read"] and plan["steps"] == 3 * (43 // 8) and plan["tokens"] == [32]
    assert plan["sample_flops"]["val"] > 0 and plan["measured"]["images_a_second"] > 0
    words[1] = "7"
    assert cli.main(["plan", "features.yaml", *words, "--json", "plan.json"]) == 0
    assert json.loads(Path("plan.json").read_text())[0]["steps"] == 7, "whichever ends first"


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
