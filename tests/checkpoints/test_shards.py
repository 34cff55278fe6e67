"""Shards of a stranger: what torch would read by pickle is looked at first."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from t2ikit.checkpoints.runs import find_checkpoint, good_checkpoint
from t2ikit.checkpoints.saving import fault_of
from t2ikit.config.compose import ConfigError


class Strange:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def save(folder: Path, **more: Any) -> Path:
    state = {"model": {"weight": torch.ones(3, dtype=torch.bfloat16)}, "lr": 1e-3, "name": "adam", **more}
    dcp.save(state, checkpoint_id=folder)
    return folder


def test_good_shards_are_left_alone(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints" / "step-00000002.ckpt", betas=(0.9, 0.95), none=None)
    assert fault_of(folder) is None and good_checkpoint(tmp_path) == folder


@pytest.mark.parametrize("where", ["value", "plan"])
def test_code_in_shards_does_not_run(where: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = tmp_path / "checkpoints" / "step-00000002.ckpt"
    if where == "value":
        save(folder, strange=Strange(mark))
    else:
        save(folder)
        (folder / ".metadata").write_bytes(pickle.dumps({"strange": Strange(mark)}))
    with pytest.raises(ConfigError, match=r"shards cannot be read: it holds objects \((posix|os).system\)"):
        find_checkpoint(folder, "--resume")
    with pytest.warns(UserWarning, match="shards cannot be read"):
        assert good_checkpoint(tmp_path) is None
    assert not mark.exists()
