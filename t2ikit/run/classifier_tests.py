"""Further tests of a classifier whose run has ended: the weights that it selected, on a set that came later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from t2ikit.checkpoints import read_weights
from t2ikit.checkpoints.denoiser import stored_experiment
from t2ikit.checkpoints.runs import find_checkpoint
from t2ikit.classify import ClassFolders, ImageClassifier
from t2ikit.classify.protocol import judge
from t2ikit.classify.results import TestScore, read_results
from t2ikit.config.class_nodes import check_component
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import merge
from t2ikit.config.origins import Origins

_PREFIX = "classifier."


def test_of_run(run_folder: Path, name: str, images: Path, train: str, val: str | None, origins: Origins) -> TestScore:
    """The score of a finished run on a further test set.

    Args:
        run_folder: of the run, with its last checkpoint.
        name: of the test set.
        images: its folder.
        train, val: folders of the pictures that the run was trained on, and selected by, as they are called now.
        origins: which modules the experiment may name.

    Raises:
        ConfigError: the run's checkpoint is gone, or is not that of the weights that were tested.
        ValueError: images that cannot be read, or that were trained on.
    """
    path = find_checkpoint(run_folder, "the run of a cell")
    content = read_weights(path, mmap=True)
    config = stored_experiment(content, path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    node = merge(config["data"], {"init_args": {"tests": None, "train": train, "val": val}})
    node["init_args"]["tests"] = {name: str(images)}
    data = check_component("data", node, LightningDataModule, origins=origins).build()
    module = check_component("model", config["model"], LightningModule, origins=origins).build()
    assert isinstance(module, ImageClassifier) and isinstance(data, ClassFolders)
    data.find_data()
    data.prepare_data()
    module.to(device)
    module.selection.restore(content["selection"])
    step = int(content["global_step"])
    _load(module, _present(content))
    if step not in module.selection.losses and data.sets.val is not None:  # the checkpoint precedes the last validation
        judged = judge(module.classifier, data.test_loader(data.sets.val), len(module.class_list), device)
        module.selection.add(step, judged.loss, module.classifier)
    selected = module.selection.step or step
    if selected != read_results(run_folder).selected["step"]:
        raise ConfigError(f"{path} does not hold the weights of {run_folder} that were tested: train this cell again")
    if module.selection.weights is not None:
        _load(module, module.selection.weights)
    tested = judge(module.classifier, data.test_loader(data.sets.tests[name]), len(module.class_list), device)
    return tested.score(module.class_list)


test_of_run.__test__ = False  # type: ignore[attr-defined]  # pytest takes functions of this name for tests


def _present(content: dict[str, Any]) -> dict[str, Tensor]:
    """The weights at the end of the run, averaged where it kept averages."""
    state: dict[str, Tensor] = {
        name.removeprefix(_PREFIX): value for name, value in content["state_dict"].items() if name.startswith(_PREFIX)
    }
    profiles = content.get("callbacks", {}).get("EMA", {}).get("profiles") or {}
    return state | profiles[next(iter(profiles))] if profiles else state


def _load(module: ImageClassifier, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        module.classifier.load_state_dict(weights)
