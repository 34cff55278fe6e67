"""An experiment file as a run, as ``lightning run`` would make it."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, seed_everything

from benchmarks.base import Settings
from benchmarks.data import WIDTH, synthetic_record
from t2ikit.config.compose import compose
from t2ikit.config.merging import Override
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set
from t2ikit.run.experiment import Experiment, Plan, build, check

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
_AUTOENCODER = EncoderReference("stabilityai/sd-vae-ft-ema", None, "00" * 32)
_TEXT_ENCODER = EncoderReference("google/flan-t5-xl", None, "00" * 32)

SMALL = {
    "DiTI": {"hidden_size": 32, "depth": 2, "num_heads": 2, "num_registers": 2},
    "CADI": {
        "data_dim": 32,
        "num_latents": 8,
        "latent_dim": 32,
        "num_blocks": 1,
        "num_layers": 1,
        "num_registers": 2,
        "read_write_heads": 2,
        "compute_heads": 2,
        "refine_heads": 2,
    },
}
"""Options of the networks for a dry run."""


def options(values: dict[str, Any]) -> list[Override]:
    """Options of the command line, by key."""
    return [Override(key, json.dumps(value)) for key, value in values.items()]


def plan(name: str, values: dict[str, Any]) -> Plan:
    """The checked experiment ``name`` with options."""
    return check(compose(EXPERIMENTS / f"{name}.yaml", options(values)))


def start(plan: Plan, folder: Path, watch: Callback) -> Experiment:
    """Builds and trains an experiment; ``watch`` is called after every other callback."""
    warnings.filterwarnings("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(plan.config["seed_everything"], workers=True, verbose=False)
    with quiet(folder.parent / f"{folder.name}.log"):
        return _fit(plan, folder, watch)


def _fit(plan: Plan, folder: Path, watch: Callback) -> Experiment:
    experiment = build(plan, folder)
    experiment.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
    experiment.trainer.fit(experiment.model, datamodule=experiment.data)
    return experiment


@contextmanager
def quiet(path: Path) -> Iterator[None]:
    """What is printed inside goes to a file, whose end is printed where an exception comes out."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    except BaseException:
        os.write(kept[1], path.read_bytes()[-1500:] + b"\n")
        raise
    finally:
        sys.stdout.flush()
        for copy, descriptor in zip(kept, (1, 2), strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


def on_device(settings: Settings) -> dict[str, Any]:
    """Options that put a run on the one device, without what is written to the terminal."""
    return {
        "trainer.accelerator": "gpu" if settings.device == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.enable_model_summary": False,
        "trainer.enable_progress_bar": False,
        "callbacks.progress": None,
        "callbacks.checkpoint": None,
    }


def latents(settings: Settings, side: int, count: int) -> Path:
    """A prepared root of ``count`` encoded images, as many of CutMix, and captions of 180 tokens; written once."""
    root = settings.work / f"latents-{side}-{count}"
    if (root / "val").exists():
        return root
    manifest = Manifest(
        "latents", (2, 4, side, side), autoencoder=_AUTOENCODER, texts={"t5": TextSource(WIDTH, _TEXT_ENCODER)}
    )
    empty = {"t5": States(quantise_tokens(np.ones((1, WIDTH), np.float32)))}
    records = [synthetic_record(index, side=side) for index in range(min(count, 64))]
    for split, count_of_split in (("train", count), ("train_cmall", count // 2), ("val", 2)):
        rows = (records[index % len(records)] for index in range(count_of_split))
        write_set(root / split, rows, replace(manifest, setting="cmall" if split == "train_cmall" else None), empty)
    return root
