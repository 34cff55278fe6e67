"""The experiments of SynthReal: each is read, built, and makes one step in a shrunken form, with every network."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from class_pictures import WNIDS, fill, tiny_depth_anything

import tiny
from t2ikit import cli
from t2ikit.classify.conditions import _shipped
from t2ikit.classify.results import read_results
from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import shipped_experiments
from t2ikit.config.merging import Override
from t2ikit.run.experiment import check

FOLDER = shipped_experiments() / "synthreal"
VIEWS = ("rgb", "depth", "texture", "low", "high")
CASES = [
    *(("rgb", network, 32) for network in ("resnet50", "vit_tiny")),
    ("texture", "bagnet9", 40),
    *(
        pytest.param(*case, marks=pytest.mark.long)
        for case in (
            ("rgb", "convnext_tiny", 32),
            ("rgb", "swin_tiny", 32),
            ("texture", "bagnet17", 40),
            ("texture", "bagnet33", 40),
        )
    ),
    *((view, "test_resnet", 32) for view in ("depth", "low", "high")),
]


def test_all_views_have_an_experiment() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} >= set(VIEWS)


@pytest.mark.parametrize("view", VIEWS)
def test_an_experiment_is_the_paper_s(view: str) -> None:
    with pytest.raises(ConfigError, match=r"--data\.init_args\.train VALUE"):
        compose(FOLDER / f"{view}.yaml")
    plan = check(compose(FOLDER / f"{view}.yaml", [Override("data.train", "DIR"), Override("data.tests.real", "DIR")]))
    data, model = plan.config["data"]["init_args"], plan.config["model"]["init_args"]
    assert data["view"] == plan.name == view and data["classes"] == model["classes"] == "tiny200"
    assert (data["batch_size"], data["cutoff"], data["filter_size"]) == (1024, 0.2, 256)
    assert (data["size"], model["network"]) == ((128, "bagnet9") if view == "texture" else (224, "resnet50"))
    assert plan.trainer["max_epochs"] == model["learning_rate"]["init_args"]["epochs"] == 80
    assert (plan.trainer["gradient_clip_val"], plan.trainer["precision"]) == (1.0, "32-true")
    adam = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "scale": {}}
    assert model["optimizer"]["init_args"] == adam
    assert model["cutmix"] is True and model["select"] == "lowest" and model["compat"] == data["compat"] == "meant"
    shipped = _shipped(view)  # beside which the page puts the paper's numbers without a note
    assert shipped["recipe"]["optimizer"] == ["AdamW", adam]
    assert shipped["recipe"]["learning_rate"] == ["EpochCosine", model["learning_rate"]["init_args"]]
    known = {name: value for name, value in shipped["view"].items() if name in data}
    assert known == {name: data[name] for name in known} and shipped["view"]["name"] == view
    assert all(shipped[name] == data[name] for name in ("held_out", "batch_size"))
    lines = (FOLDER / f"{view}.yaml").read_text().splitlines()
    card = "\n".join(line for line in lines if line.startswith("#"))
    assert card.startswith("# Paper: ") and f"Run:  lightning run experiments/synthreal/{view}.yaml" in card
    assert "not comparable" in card


@pytest.mark.parametrize(("view", "network", "size"), CASES)
def test_an_experiment_makes_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str, network: str, size: int
) -> None:
    tiny.current(tmp_path, monkeypatch)
    fill(tmp_path / "train", 3, 0)
    fill(tmp_path / "test", 1, 1)
    (tmp_path / "classes.tsv").write_text("".join(f"{wnid}\tclass {label}\n" for label, wnid in enumerate(WNIDS)))
    words = ["--data.train", "train", "--data.tests.real", "test", "--data.classes", "classes.tsv"]
    words += ["--data.size", str(size), "--data.filter_size", "32", "--data.batch_size", "6", "--data.num_workers", "0"]
    words += ["--model.network", network, "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    words += ["--trainer.max_epochs", "-1", "--trainer.max_steps", "1"]
    if view == "depth":
        words += ["--data.depth_model", str(tiny_depth_anything(tmp_path / "depth"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(["run", str(FOLDER / f"{view}.yaml"), *words]) == 0
    results = read_results(tmp_path / "runs" / view / "version_0")
    assert results.tests["real"].images == 3 and results.fingerprint["network"] == network
    assert results.selected["step"] == 1 and results.fingerprint["view"]["name"] == view
