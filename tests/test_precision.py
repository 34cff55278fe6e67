"""fp32, bf16-mixed and bf16-true train alike, and what decides the noise level stays in fp32."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import tiny
from t2ikit.batch import StoredBatch, StoredText, Text
from t2ikit.callbacks import EMA
from t2ikit.encoders import PixelSpace
from t2ikit.module import TextToImage
from t2ikit.optim import AdamW
from t2ikit.records.manifest import Manifest, TextSource

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
ROWS, STEPS = 8, 80


def stored(slot: int) -> StoredBatch:
    """Eight images of two kinds, told by their captions: easy to learn."""
    generator = torch.Generator().manual_seed(slot)
    kind = torch.randint(0, 2, (ROWS,), generator=generator)
    stripes = torch.arange(4) % 2 * 255
    image = torch.where(kind[:, None, None, None] == 1, stripes[:, None], stripes).expand(-1, 3, 4, 4)
    tokens = torch.zeros(ROWS, 8, dtype=torch.int8)
    tokens[torch.arange(ROWS), kind] = 100
    text = StoredText(
        tokens=tokens,
        scales=torch.full((ROWS, 1), 0.01, dtype=torch.float16),
        positions=torch.arange(ROWS) * 2,
        rows=ROWS,
        max_length=2,
    )
    return StoredBatch(
        image=image.to(torch.uint8),
        texts={"t5": text},
        u=torch.rand(ROWS, generator=generator),
        source=torch.zeros(ROWS, dtype=torch.long),
        index=kind,
        slot=slot,
    )


class Stripes(L.LightningDataModule):
    source_names = ("raw",)
    manifest = Manifest("pixels", (3, 4, 4), texts={"t5": TextSource(8)})
    manifests = (manifest,)

    def unconditional(self) -> Text:
        return Text(torch.ones(1, 1, 8), torch.ones(1, 1, dtype=torch.bool))

    def train_dataloader(self) -> DataLoader[Any]:
        batches = [stored(ROWS * number) for number in range(STEPS)]
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


class Curve(L.Callback):
    """Keeps the loss of every step, and the noise levels of the first."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.t: Tensor | None = None

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["step"].loss.mean()))
        self.t = outputs["step"].t if self.t is None else self.t


def train(kind: str, precision: Any, steps: int = STEPS) -> tuple[Curve, TextToImage]:
    torch.manual_seed(0)
    if kind == "cad_i":
        denoiser: Any = tiny.shallow_cad_i(in_channels=3)
    else:
        denoiser = tiny.shallow_dit_i(in_channels=3, depth=2)
    # CAD-I with LAMB, whose moments and master weights are its own; DiT-I with torch's AdamW.
    options: dict[str, Any] = {} if kind == "cad_i" else {"optimizer": AdamW(lr=5e-3)}
    curve = Curve()
    module = TextToImage(denoiser, space=PixelSpace(), **options)
    if kind == "cad_i":
        module.optimizer_factory.lr = 1e-2  # type: ignore[attr-defined]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        precision=precision,
        gradient_clip_val=2.0,
        callbacks=[EMA(), curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Stripes())
    return curve, module


@pytest.mark.parametrize("kind", ["cad_i", pytest.param("dit_i", marks=pytest.mark.long)])
def test_all_precisions_learn_alike(kind: str) -> None:
    curves = {precision: torch.tensor(train(kind, precision)[0].losses) for precision in PRECISIONS}
    full = curves["32-true"]
    first, last = full[:10].mean(), full[-20:].mean()
    assert last < 0.6 * first, "the task must be learnt, or the comparison says nothing"
    for precision, curve in curves.items():
        assert curve.isfinite().all(), precision
        # Every run draws the same, so the curves lie on each other step by step until the rounding of bf16 (2^-8) has
        # grown; from then on they need to be as good, to a tenth.
        assert (curve - full)[:20].abs().max() < 0.03 * first, precision
        assert abs(curve[-20:].mean() - last) < 0.1 * last, precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_noise_levels_are_those_that_were_drawn(precision: str) -> None:
    curve, module = train("cad_i", precision, steps=1)
    assert curve.t is not None and curve.t.dtype == torch.float32
    assert torch.equal(curve.t, stored(0).u)
    weights = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert module.denoiser.latents.dtype == weights  # type: ignore[union-attr]
