"""Loggers of other projects: grids and values reach each in its own way; one that is not there is named."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

from t2ikit.callbacks.logged_grids import log_grid
from t2ikit.config.errors import ConfigError
from t2ikit.run.experiment import loggers_of
from t2ikit.run.trainer_options import refuse_loggers

PICTURE = torch.arange(3 * 2 * 4, dtype=torch.uint8).reshape(3, 2, 4)
PIXELS = PICTURE.permute(1, 2, 0).numpy()
TEXTS = ["a red circle", "a blue square"]


class Calls:
    """Keeps what is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def test_a_grid_reaches_every_kind_of_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    board = TensorBoardLogger.__new__(TensorBoardLogger)
    board._experiment = seen = Calls()
    log_grid(board, "val", PICTURE, TEXTS, 5)
    assert [name for name, *_ in seen.calls] == ["add_image", "add_text"]

    flow = MLFlowLogger.__new__(MLFlowLogger)
    kept = Calls()
    monkeypatch.setattr(MLFlowLogger, "experiment", kept)
    monkeypatch.setattr(MLFlowLogger, "run_id", "one")
    log_grid(flow, "val", PICTURE, TEXTS, 5)
    name, (run, pixels), options = kept.calls[0]
    assert (name, run, options) == ("log_image", "one", {"artifact_file": "val/grid/step-00000005.png"})
    assert np.array_equal(pixels, PIXELS)

    weights = Calls()  # as W&B: log_image(key, images, step, caption)
    log_grid(weights, "val", PICTURE, TEXTS, 5)
    name, (key, (pixels,)), options = weights.calls[0]
    assert (name, key, options) == ("log_image", "val/grid", {"step": 5, "caption": ["a red circle\na blue square"]})
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, PIXELS)

    aim = ModuleType("aim")
    monkeypatch.setattr(aim, "Image", lambda image, caption: (np.asarray(image), caption), raising=False)
    monkeypatch.setitem(sys.modules, "aim", aim)
    tracked = Calls()
    kind = type("AimLogger", (), {"__module__": "aim.pytorch_lightning", "experiment": tracked})
    log_grid(kind(), "val", PICTURE, TEXTS, 5)
    name, ((pixels, caption),), options = tracked.calls[0]
    assert (name, options, caption) == ("track", {"name": "val/grid", "step": 5}, "a red circle\na blue square")
    assert np.array_equal(pixels, PIXELS)

    log_grid(SimpleNamespace(), "val", PICTURE, TEXTS, 5)  # one that knows no pictures


@pytest.mark.parametrize(("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_package_that_is_missing_is_named(
    logger: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = f"lightning.pytorch.loggers.{logger[:-6].lower()}._{package.upper()}_AVAILABLE"

    class Missing:
        def __bool__(self) -> bool:
            return False

        def __str__(self) -> str:
            return f"Module not found: '{package}'. HINT: Try running `pip install -U '{package}'`"

    monkeypatch.setattr(flag, Missing())
    nodes = loggers_of({"mine": f"lightning.pytorch.loggers.{logger}"}, tmp_path, 0)
    with pytest.raises(ConfigError, match=rf"loggers.mine.*pip install -U '{package}'"):
        nodes["mine"].build()


def test_the_store_of_files_is_refused() -> None:
    flow = MLFlowLogger.__new__(MLFlowLogger)
    flow._tracking_uri = "file:./mlruns"
    with pytest.raises(ConfigError, match="loggers.flow.*sqlite"):
        refuse_loggers({"flow": flow})
    flow._tracking_uri = "sqlite:///mlflow.db"
    refuse_loggers({"flow": flow})
