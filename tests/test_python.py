"""``t2ikit.load`` and ``t2ikit.train``: the pictures of ``t2ikit sample``, and the runs of ``t2ikit run``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import t2ikit
import tiny
from t2ikit import cli
from t2ikit.config.errors import ConfigError

EXPERIMENT = """
extends: [tiny.yaml]
data: {init_args: {root: data}}
trainer: {max_steps: 2}
callbacks: {val: null, geneval: null, table: null, cutmix: null}
"""
STAGES = """
extends: [small.yaml]
stages:
  first: {trainer: {max_steps: 1}}
  second: {trainer: {max_steps: 1}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with runs/small/version_0."""
    folder = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {"small.yaml": EXPERIMENT, "staged.yaml": STAGES})
        assert repr(t2ikit.train("small")).startswith("<CADI of step 2, ema 0.995")
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny.current(trained, monkeypatch)


def arrays(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


def test_import_is_light() -> None:
    check = (
        "import sys, t2ikit; 'load' in dir(t2ikit) or 1/0; sys.exit(bool({'torch', 'numpy', 'yaml'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        t2ikit.lod  # type: ignore[attr-defined]  # noqa: B018


def test_the_same_picture_as_the_command_draws(folder: Path, tmp_path: Path) -> None:
    words = ["--prompt", "a large red circle", "--count", "3", "--steps", "3", "--seed", "7", "--guidance", "3"]
    for weights in ("ema", "raw"):
        out = tmp_path / weights
        assert cli.main(["sample", "runs/small", *words, "--weights", weights, "--out", str(out)]) == 0
        model = t2ikit.load("runs/small", weights=weights, device="cpu")
        pictures = model.sample("a large red circle", count=3, steps=3, seed=7, guidance=3.0)
        saved = [Image.open(path) for path in sorted(out.glob("0*.png"))]
        assert np.array_equal(arrays(pictures), arrays(saved))
        assert np.array_equal(
            arrays(pictures), arrays(model.sample("a large red circle", count=3, steps=3, seed=7, guidance=3))
        )
    several = model.sample(["a blue square", "a red ring"], count=2, steps=2, negative="a circle")
    assert len(several) == 4 and several.grid().size == (194, 194)
    png = several._repr_png_()
    assert png is not None and png.startswith(b"\x89PNG") and type(several)([])._repr_png_() is None
    for source in ("runs/small/version_0", "runs/small/version_0/checkpoints/step-00000002.ckpt"):
        assert t2ikit.load(source).step == 2


def test_what_load_and_sample_refuse(folder: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        t2ikit.load("runs/smal")
    model = t2ikit.load("runs/small")
    for options, message in [
        ({"count": 0}, "at least 1"),
        ({"method": "dpmp"}, "the nearest is 'ddpm'"),
        ({"method": "DDIM"}, "the nearest is 'ddim'"),
        ({"negative": "a ring", "guidance": 0.0}, "acts through guidance"),
        ({"size": (5, 5)}, "the denoiser takes 16x16"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.sample("a red ring", **options)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="no text encoder nowhere"):
        t2ikit.load("runs/small", text_encoder="nowhere").sample("a red ring")


def test_train_is_the_run_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = {"run": {"name": "again"}, "trainer.max_steps": 2, "callbacks.progress": None}
    again = t2ikit.train("small", overrides)
    assert (
        again.checkpoint.parts[:3] == ("runs", "again", "version_0")
        and (Path("runs/again/version_0") / "finished").is_file()
    )
    assert cli.main(["run", "small.yaml", "--run.name", "third"]) == 0
    second = t2ikit.load("runs/third", weights="auto")
    for name, value in second.module.denoiser.state_dict().items():
        assert torch.equal(value, again.module.denoiser.state_dict()[name])
    assert "t2ikit run small --run.name" in (Path("runs/again/version_0") / "environment.yaml").read_text()
    assert t2ikit.train("small", {"run.name": "again", "trainer.max_steps": 3}, resume="last").step == 3
    capsys.readouterr()
    one = t2ikit.train("small", {"run.name": "one", "trainer": {"max_steps": 1}, "trainer.num_nodes": 1})
    assert one.step == 1


@pytest.mark.long
def test_stages(folder: Path) -> None:
    staged = t2ikit.train("staged")
    assert staged.checkpoint.parts[-3] == "second"
    assert t2ikit.load("runs/staged/version_0/first").step == 1
    with pytest.raises(ConfigError, match="has several stages: name one of runs/staged/version_0/first, "):
        t2ikit.load("runs/staged")


def test_one_process_trains(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wide.yaml").write_text("extends: [small.yaml]\ntrainer: {devices: 4, strategy: ddp, max_steps: 1}\n")
    model = t2ikit.train("wide")
    assert "one device, 4 micro-batches a step. On all 4 devices: t2ikit run wide" in capsys.readouterr().out
    assert model.config["trainer"]["accumulate_grad_batches"] == 4 and model.config["trainer"]["devices"] == 1
    for overrides, message in [
        ({"trainer.devices": 2}, "on one device; for more: t2ikit run small --trainer.devices 2"),
        ({"trainer.fast_dev_run": True}, "keeps no checkpoint"),
        ({"callbacks.checkpoint": None}, "nothing to load"),
        ({"trainer.max_step": 2}, "unknown key 'max_step'; nearest known: 'max_steps'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            t2ikit.train("small", overrides)
    with pytest.raises(ConfigError, match="returns a model that samples images"):
        t2ikit.train("synthreal/rgb", {"data.train": "a", "data.tests": {"real": "b"}})
