"""A resumed fit of the real module makes the optimizer steps that were left, whatever ends it, however it is split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import tiny
from t2ikit.data.datamodule import DataModule
from t2ikit.data.loaders import count_anew
from t2ikit.module import TextToImage
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set

PIXELS = Manifest("pixels", (3, 4, 4), texts={"t5": TextSource(8)})
EMPTY = quantise_tokens(np.ones((1, 8), np.float32))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """53 records: three steps of 16 an epoch."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 53), ("val", 4)):
        images = random.integers(0, 256, (count, 3, 4, 4)).astype(np.uint8)
        records = (Record({"image": image, "text.t5.0": EMPTY}, ("a",)) for image in images)
        write_set(folder / split, records, PIXELS, {"t5": States(EMPTY)}, 2000)
    return folder


class Steps(Callback):
    """Records of every optimizer step."""

    def __init__(self) -> None:
        self.done: list[list[int]] = []
        self._open: list[int] = []
        self._step: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._open += args[2][0].index.tolist()
        if trainer.global_step != self._step:
            self.done.append(self._open)
            self._open, self._step = [], trainer.global_step


def fit(
    root: Path, folder: Path, accumulate: int = 1, checkpoint: Path | None = None, **options: Any
) -> tuple[list[list[int]], torch.Tensor, pl.Trainer]:
    torch.manual_seed(0)
    module = TextToImage(tiny.shallow_dit_i(in_channels=3, num_registers=1))
    steps = Steps()
    saver = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[saver, steps],
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        **options,
    )
    trainer.fit(module, datamodule=DataModule(str(root), 16, 0, seed=3), ckpt_path=checkpoint)
    return steps.done, torch.cat([weight.detach().flatten() for weight in module.parameters()]), trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("end", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 9}], ids=["epochs", "steps"])
def test_the_steps_that_are_left_are_made(root: Path, tmp_path: Path, end: dict[str, int]) -> None:
    """Where epochs end a run, its loader is built before Lightning restores its position."""
    for before, splits in [(1, [(2, 1), (3, 1), (3, 2)]), (4, [(4, 1)])]:
        whole, weights, trainer = fit(root, tmp_path / f"{before}", before, **end)
        assert [len(step) for step in whole] == [16] * 9 and trainer.current_epoch == 3
        for cut, after in splits:  # within an epoch, at its end, within the next one
            checkpoint = tmp_path / f"{before}" / f"step={cut}.ckpt"
            rest, resumed, trainer = fit(root, tmp_path / "rest", after, checkpoint, **end)
            assert rest == whole[cut:]
            assert trainer.global_step == 9 and trainer.current_epoch == 3
            if before == after:
                assert torch.equal(resumed, weights)
            else:  # sums in another order
                torch.testing.assert_close(resumed, weights, rtol=1e-4, atol=1e-5)


def progress(total: int, current: int, late: int = 1) -> dict[str, dict[str, int]]:
    """Counts at the end of a micro-batch, which is completed after its hooks."""
    return {
        name: {"ready": count, "started": count, "processed": count, "completed": count - late}
        for name, count in (("total", total), ("current", current))
    }


def test_micro_batches_are_counted_anew() -> None:
    state = {"state_dict": {"combined_loader": [{"slot": 64}]}, "epoch_loop.batch_progress": progress(4, 1)}
    count_anew(state, 16)
    assert state["epoch_loop.batch_progress"] == progress(4, 1)
    count_anew(state, 4)
    assert state["epoch_loop.batch_progress"] == progress(16, 4)
    count_anew(state, 8)
    assert state["epoch_loop.batch_progress"] == progress(8, 2)
    with pytest.raises(ValueError, match=r"data\.batch_size and trainer\.accumulate_grad_batches"):
        count_anew({**state, "epoch_loop.batch_progress": progress(8, 3)}, 16)
    for other in ({}, {"combined_loader": []}, {"combined_loader": [{"position": 5}]}):
        state = {"state_dict": other, "epoch_loop.batch_progress": progress(4, 1)}
        count_anew(state, 4)
        assert state["epoch_loop.batch_progress"] == progress(4, 1)


def test_reloading_would_begin_the_data_anew(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.reload_dataloaders_every_n_epochs"):
        fit(root, tmp_path, max_epochs=2, reload_dataloaders_every_n_epochs=1)
