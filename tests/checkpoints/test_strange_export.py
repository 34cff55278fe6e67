"""Exported files and stages of runs whose content comes from a stranger."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from t2ikit.checkpoints.exported import read_exported
from t2ikit.config.origins import Forbidden
from t2ikit.pretrained import state_sha256
from t2ikit.run.experiment import origins_of


def exported(path: Path, name: str = "weight", **metadata: str) -> Path:
    tensors = {name: torch.zeros(3)}
    save_file(tensors, path, {"t2ikit": "1", "sha256": state_sha256(tensors), **metadata})
    return path


def test_damaged_facts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        read_exported(exported(tmp_path / "nested.safetensors", experiment="[" * 100_000))
    with pytest.raises(ValueError, match="a space in its name"):
        read_exported(exported(tmp_path / "space.safetensors", "files/a torch.uint8 (3,)"))
    save_file({"weight": torch.zeros(3)}, tmp_path / "none.safetensors", {"t2ikit": "1"})
    with pytest.raises(ValueError, match="is damaged"):
        read_exported(tmp_path / "none.safetensors")


def test_facts_take_no_place_of_the_weights(tmp_path: Path) -> None:
    content = read_exported(exported(tmp_path / "facts.safetensors", state_dict="{}", callbacks="[1]"))
    assert content is not None and list(content["state_dict"]) == ["denoiser.weight"] and content["callbacks"] == {}


def test_nothing_in_the_run_folder_of_a_stage_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "version_0"
    (run / "first/checkpoints").mkdir(parents=True)
    (run / "strange_of_stage.py").write_text("class Strange:\n    pass\n")
    monkeypatch.chdir(run)
    monkeypatch.setattr(sys, "path", [*sys.path, str(run)])
    for checkpoint in (Path("first/checkpoints/step-00000001.ckpt"), run / "first/checkpoints/step-00000001.ckpt"):
        with pytest.raises(Forbidden, match="--trust strange_of_stage"):
            origins_of(checkpoint=checkpoint).refuse_strange("strange_of_stage", "model")
