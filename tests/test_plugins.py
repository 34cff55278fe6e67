"""Parts of one's own, in files outside the repository: each is one file and one line of an experiment."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
PARTS = """
import os, signal
from dataclasses import dataclass
import torch
from lightning import Callback
from lightning.pytorch.loggers import Logger
from t2ikit.diffusion.weightings import Weighting
from t2ikit.diffusion.time_laws import TimeLaw
from t2ikit.optim import LearningRate
from t2ikit.prompts import Prompt, PromptSource

class Flat(Weighting):
    def __call__(self, process, t):
        return 2 * torch.ones_like(t)

class Square(TimeLaw):
    def t(self, u):
        return u.square()
    def quantile(self, t):
        return t.sqrt()

class Halving(LearningRate):
    def factor(self, step, total_steps):
        return 0.5 ** step

@dataclass
class Two(PromptSource):
    def prompts(self):
        return [Prompt("a red circle"), Prompt("a blue square")]

class Lines(Logger):
    name, version = "lines", ""
    def __init__(self, save_dir: str):
        super().__init__()
        self.file = open(f"{save_dir}/lines.txt", "a")
    def log_hyperparams(self, params, *args):
        self.file.write(f"max_steps {params['trainer.max_steps']}\\n")
    def log_metrics(self, metrics, step=None):
        self.file.write(f"{step} {sorted(metrics)}\\n")
        self.file.flush()

class Kill(Callback):
    def on_train_batch_end(self, trainer, *args):
        if os.environ.get("KILL") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def block(name: str) -> str:
    """The Python block of docs/extend.md that defines a class."""
    return next(text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S) if f"class {name}" in text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {"parts.py": PARTS, "color.py": block("Color"), "features.py": block("Features")}
    files["restless.py"] = block("Restless")
    for module in ("parts", "color", "features", "restless"):
        sys.modules.pop(module, None)
    return tiny.enter(tmp_path, monkeypatch, files)


def experiment(folder: Path, name: str, changes: dict[str, object]) -> str:
    plain: dict[str, object] = {"extends": ["tiny.yaml"], "trainer": {"max_steps": 4}}
    callbacks = {"val": None, "geneval": None, "table": None, "checkpoint": {"init_args": {"every_n_steps": 2}}}
    plain["callbacks"] = callbacks | changes.pop("callbacks", {})  # type: ignore[operator]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain | changes))
    return f"{name}.yaml"


def losses(folder: Path, run: str, name: str = "train/loss") -> list[tuple[int, float]]:
    return read_metrics(folder / "runs" / run / "version_0" / "metrics.csv")[name]


@pytest.mark.long
def test_an_objective_with_a_parameter_a_tap_and_an_array_is_compiled_killed_and_goes_on_bit_for_bit(
    folder: Path,
) -> None:
    process = {"class_path": "t2ikit.diffusion.RectifiedFlow"}
    objective = {"class_path": "color.Color", "init_args": {"process": process, "width": 16}}
    denoiser = {"init_args": {"level_kind": "t"}}
    model = {"init_args": {"objective": objective, "denoiser": denoiser, "compile": {"backend": "eager"}}}
    kill = {"kill": {"class_path": "parts.Kill"}}
    for name in ("straight", "broken"):
        experiment(folder, name, {"model": model, "callbacks": kill})
    torch._dynamo.reset()
    assert cli.main(["run", "straight.yaml"]) == 0
    tiny.killed("3", "run", "broken.yaml")
    assert cli.main(["run", "broken.yaml", "--resume", "last"]) == 0
    for name in ("train/loss", "train/loss/error", "train/loss/color"):
        assert losses(folder, "straight", name) == losses(folder, "broken", name)
        assert len(losses(folder, "straight", name)) == 4
    ends = [
        torch.load(folder / f"runs/{run}/version_0/checkpoints/step-00000004.ckpt", weights_only=True)
        for run in ("straight", "broken")
    ]
    assert {"objective.head.weight", "objective.head.bias"} <= ends[0]["state_dict"].keys()
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name])
    [averages] = ends[0]["callbacks"]["EMA"]["profiles"].values()
    assert not any(name.startswith(("head", "objective")) for name in averages)


def test_a_need_that_nothing_gives_is_refused_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = {"class_path": "t2ikit.diffusion.GaussianDiffusion"}
    objective = {"class_path": "color.Color", "init_args": {"process": process, "block": 9, "width": 16}}
    experiment(folder, "deep", {"model": {"init_args": {"objective": objective}}})
    assert cli.main(["run", "deep.yaml"]) == 2
    assert "taps are blocks, 1 to 1 of CADI; got 9" in capsys.readouterr().err


def test_term_sampler_weighting_law_schedule_prompts_logger_and_a_callback_that_stops(folder: Path) -> None:
    term = {"class_path": "features.Features", "init_args": {"weight": 0.01, "until": 2}}
    process = {
        "class_path": "t2ikit.diffusion.GaussianDiffusion",
        "init_args": {"t_distribution": {"class_path": "parts.Square"}},
    }
    arguments = {"process": process, "weighting": {"class_path": "parts.Flat"}, "terms": {"small": term}}
    model = {"init_args": {"objective": {"init_args": arguments}, "learning_rate": {"class_path": "parts.Halving"}}}
    sampler = {"class_path": "restless.Restless", "init_args": {"share": 0.2}}
    snapshot = {"prompts": {"class_path": "parts.Two"}, "method": sampler, "steps": 2, "every_n_steps": 1, "grid": 2}
    snapshot |= {"validation_loss": True, "at_start": False, "metrics": [], "reference": None}
    stop = {"monitor": "val/loss_fixed_t", "patience": 1, "min_delta": 1e9, "check_on_train_epoch_end": False}
    callbacks = {
        "val": {"class_path": "t2ikit.callbacks.Snapshot", "init_args": snapshot},
        "stop": {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop},
    }
    loggers = {"lines": {"class_path": "parts.Lines"}}
    experiment(folder, "all", {"model": model, "callbacks": callbacks, "loggers": loggers, "trainer": {"max_steps": 9}})
    assert cli.main(["run", "all.yaml"]) == 0
    run = folder / "runs" / "all" / "version_0"
    series = read_metrics(run / "metrics.csv")
    assert [step for step, _ in series["train/loss/small"]] == [1, 2]  # until 2
    assert [step for step, _ in series["val/loss_fixed_t"]] == [1, 2]  # the second is no better: it stops
    assert [rate for _, rate in series["train/learning_rate"]][0] == pytest.approx(0.002 * 0.5)
    scores = (run / "samples" / "val" / "scores" / "step-00000002").glob("*.json")
    lines = (run / "lines.txt").read_text()
    assert "max_steps 9" in lines and "val/loss_fixed_t" in lines and list(scores)
    assert (
        cli.main(["sample", str(run), "--prompt", "a red circle", "--steps", "2", "--method", "restless.Restless"]) == 0
    )


def test_another_model_class_keeps_the_arguments_that_it_takes(folder: Path) -> None:
    (folder / "other.py").write_text("from t2ikit.module import TextToImage\nclass Other(TextToImage):\n    pass\n")
    sys.modules.pop("other", None)
    experiment(folder, "other", {"model": {"class_path": "other.Other", "init_args": {"noise_bins": 3}}})
    assert cli.main(["run", "other.yaml", "--trainer.max_steps", "1"]) == 0
    config = yaml.safe_load((folder / "runs/other/version_0/config.yaml").read_text())
    assert config["model"]["class_path"] == "other.Other" and config["model"]["init_args"]["noise_bins"] == 3
    assert config["model"]["init_args"]["denoiser"]["init_args"]["num_latents"] == 4
    assert "inherited" not in config["model"]
