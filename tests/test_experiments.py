"""Every shipped experiment is read, typed, and opens with its run card; its network is built without memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.run.experiment import check

FOLDER = Path(__file__).parent.parent / "experiments"
EXPERIMENTS = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_is_complete(path: Path) -> None:
    plan = check(compose(path))
    assert plan.name == path.stem
    assert plan.trainer["max_steps"] > 0
    assert {"ema", "guard", "checkpoint", "training_log", "progress"} <= set(plan.callbacks)
    names = list(plan.callbacks)
    snapshots = [name for name, part in plan.callbacks.items() if part.class_path.endswith("Snapshot")]
    # The checkpoint of a step must hold what snapshots found at that step; the averages are updated before both.
    assert all(names.index("ema") < names.index(name) < names.index("checkpoint") for name in snapshots)
    with torch.device("meta"):
        module = plan.model.build()
    assert module.denoiser.input_shape[0] == module.space.channels


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_opens_with_its_run_card(path: Path) -> None:
    card = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert card[0].startswith(("# Paper: ", "# Not a paper's row: ", "# As "))
    command = "t2ikit sweep" if "sweep" in yaml.safe_load(path.read_text()) else "lightning run"
    assert any(f"Run:  {command} experiments/{path.name}" in line for line in card)
    assert any("Ours: " in line or "not comparable" in line for line in card)


def test_the_paper_s_run_has_the_paper_s_numbers() -> None:
    plan = check(compose(FOLDER / "cad_i_cmall.yaml"))
    with torch.device("meta"):
        module = plan.model.build()
    assert sum(p.numel() for p in module.denoiser.parameters() if p.requires_grad) == 330_235_152
    data, trainer = plan.config["data"]["init_args"], plan.trainer
    assert (data["batch_size"], trainer["max_steps"], trainer["precision"]) == (1024, 250_000, "bf16-mixed")
    cutmix = plan.config["callbacks"]["cutmix"]["init_args"]
    assert (cutmix["setting"], cutmix["tau"], cutmix["p"]) == ("cmall", 0.4, 0.5)
    model = plan.config["model"]["init_args"]
    assert model["space"]["init_args"]["normalisation"] == "scalar"
    assert model["optimizer"]["class_path"] == "t2ikit.optim.Lamb" and model["optimizer"]["init_args"]["lr"] == 1e-3
    channelwise = check(compose(FOLDER / "cad_i_cmall_channelwise.yaml")).config["model"]["init_args"]["space"]
    assert channelwise["init_args"]["normalisation"] == "channelwise"


@pytest.mark.parametrize("row", ["ta", "cmall"])
def test_a_flow_diffuses_latents_of_unit_variance(row: str) -> None:
    plan = check(compose(FOLDER / f"cad_i_flow_{row}.yaml"))
    with torch.device("meta"):
        module = plan.model.build()
    assert (module.space.normalisation, module.space.std) == ("channelwise", 1.0)
    assert module.denoiser.level_kind == "t" and module.process.default_threshold(4) == "none"


GROWN = [path for path in EXPERIMENTS if path.stem.startswith("uvit_")]


def test_greedy_growing_has_its_rows_and_each_trains_what_its_name_says() -> None:
    assert len(GROWN) == 14 and not {"uvit_xhuge_scratch", "uvit_xhuge_finetuned"} & {path.stem for path in GROWN}
    for path in GROWN:
        _, size, kind = path.stem.split("_")
        plan = check(compose(path))
        with torch.device("meta"):
            module = plan.model.build()
        name = {"xhuge": "XHuge"}.get(size, size.title())
        trained = {key.partition(".")[0] for key, p in module.denoiser.named_parameters() if p.requires_grad}
        assert plan.config["model"]["init_args"]["denoiser"]["init_args"]["core"] == name
        assert trained == ({"time", "shell"} if kind == "frozen" else {"time", "text", "core", "shell"})
        assert plan.trainer["max_steps"] == (1_500_000 if kind == "thawed" else 2_000_000)
        assert plan.config["data"]["init_args"]["batch_size"] == 256
        assert module.process.schedule.log_snr_shift == pytest.approx(2 * math.log(64 / 512))
        start = module.start
        if kind == "scratch":
            assert start is None
        elif kind == "thawed":
            assert start.checkpoint == f"runs/uvit_{size}_frozen/version_0/checkpoints/step-00500000.ckpt"
            assert start.fit == "strict" and start.weights == "ema"
        else:
            assert start.checkpoint == f"runs/shallow_uvit_{size}/version_0" and start.fit == "grow"
            assert start.take == ("time", "text", "core") and start.weights == "ema"
        frozen = check(compose(FOLDER / f"uvit_{size}_frozen.yaml"))
        kept = frozen.config["callbacks"]["checkpoint"]["init_args"]["keep_every_n_steps"]
        assert 500_000 % kept == 0  # the thawed rows start from it


def test_the_papers_evaluations_can_be_built() -> None:
    plan = check(compose(FOLDER / "base" / "evaluation.yaml"))
    snapshots = {name: part for name, part in plan.callbacks.items() if part.class_path.endswith("Snapshot")}
    assert set(snapshots) == {"imagenet_val", "coco", "geneval", "geneval_extended", "dpg", "parti", "parti_search"}
    with pytest.raises(ConfigError, match=r"no file of questions data/benchmarks/dpg/dpg_bench.csv.*questions"):
        snapshots.pop("dpg").build()  # opens its file of questions, which its authors publish
    for name, part in snapshots.items():
        snapshot = part.build()  # networks are loaded at their first use, so nothing is downloaded here
        assert snapshot.evaluation.metrics and not snapshot.at_start and not snapshot.at_end, name
