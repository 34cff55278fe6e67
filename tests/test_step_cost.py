"""What a whole training step and a sampler step cost: operations, host syncs, FLOPs, text encodings.

Counted, not timed. A step is everything that happens from the start of one batch to the start of the next: the move to
the device, both passes, the backward pass, clipping, LAMB, EMA, the guard and the log. Where a count must not depend on
the machine, the meta device stands in for a GPU: it has no numbers, so whatever waits for one fails.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

import tiny
from benchmarks.counting import Operations
from t2ikit.batch import StoredBatch, StoredText, Text
from t2ikit.callbacks import EMA, NonFiniteGuard, TrainingLog
from t2ikit.denoisers import CADI, Denoiser, DiTI
from t2ikit.denoisers.autocast import CACHE_IS_SAFE
from t2ikit.encoders import PixelSpace
from t2ikit.module import TextToImage
from t2ikit.records.manifest import Manifest, TextSource

TEXT_DIM = 8
LIMIT_OPERATIONS, LIMIT_SYNCS = 1500, 3


def deep(width: int = 16) -> CADI:
    """CAD-I with the depth and the options of L, but narrow."""
    depth = {"num_blocks": 4, "num_layers": 4, "num_registers": 16}
    return tiny.shallow_cad_i(in_channels=3, data_dim=width, latent_dim=2 * width, **depth)


def shallow(**options: Any) -> CADI:
    return tiny.shallow_cad_i(in_channels=3, num_blocks=2, num_registers=16, **options)


def shallow_dit(**options: Any) -> DiTI:
    return tiny.shallow_dit_i(in_channels=3, depth=2, num_registers=16, **options)


class Copies(TorchFunctionMode):
    """Counts calls that take a whole tensor to the host, which on the CPU the dispatcher does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in ("cpu", "tolist")  # numpy() refuses a GPU
        return func(*args, **(kwargs or {}))


class Window(L.Callback):
    """Counts between the starts of batch ``number`` and the next."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.operations, self.copies = Operations(), Copies()

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.number:
            self.operations.__enter__()
            self.copies.__enter__()
        elif batch_idx == self.number + 1:
            self.copies.__exit__(None, None, None)
            self.operations.__exit__(None, None, None)


class Records(L.LightningDataModule):
    """Ten rows a batch."""

    source_names = ("raw", "cmall")

    def __init__(self, batches: int, tokens: int = 12) -> None:
        super().__init__()
        self.batches, self.tokens = batches, tokens
        self.manifest = Manifest("pixels", (3, 4, 4), texts={"t5": TextSource(TEXT_DIM)})
        self.manifests = (self.manifest,)

    def unconditional(self) -> Text:
        return Text(torch.ones(1, 1, TEXT_DIM), torch.ones(1, 1, dtype=torch.bool))

    def train_dataloader(self) -> DataLoader[Any]:
        batches = [records(10 * number, self.tokens) for number in range(self.batches)]
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


def records(slot: int, tokens: int, rows: int = 10) -> StoredBatch:
    generator = torch.Generator().manual_seed(slot)
    text = StoredText(
        tokens=torch.randint(-127, 128, (rows * tokens, TEXT_DIM), generator=generator, dtype=torch.int8),
        scales=torch.full((rows * tokens, 1), 0.01, dtype=torch.float16),
        positions=torch.arange(rows * tokens),
        rows=rows,
        max_length=tokens,
    )
    return StoredBatch(
        image=torch.randint(0, 256, (rows, 3, 4, 4), generator=generator, dtype=torch.uint8),
        texts={"t5": text},
        u=torch.rand(rows, generator=generator),
        source=torch.arange(rows) % 2,
        index=torch.arange(rows),
        slot=slot,
    )


def count_step(
    denoiser: Denoiser, precision: Any = "32-true", number: int = 2, every: int = 50, batches: int = 5
) -> Window:
    """Counts batch ``number`` of a real run; log and guard look at the numbers every ``every`` steps."""
    window = Window(number)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=batches,
        precision=precision,
        gradient_clip_val=2.0,
        log_every_n_steps=every,
        callbacks=[TrainingLog(), NonFiniteGuard(every), EMA(), window],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(TextToImage(denoiser, space=PixelSpace()), datamodule=Records(batches))
    assert trainer.global_step == batches and window.operations.total > 0
    return window


@pytest.fixture(scope="module")
def step() -> Window:
    return count_step(deep())


def test_a_step_of_the_large_model_has_few_operations(step: Window) -> None:
    assert step.operations.total <= LIMIT_OPERATIONS, step.operations.names.most_common()
    # What the step is made of is in there: both passes, the backward pass, clipping, LAMB and EMA.
    for name in ("native_layer_norm", "native_layer_norm_backward", "_foreach_norm", "_foreach_addcmul_"):
        assert step.operations.names[name] > 0
    assert step.operations.names["_foreach_lerp_"] == 3  # two groups of LAMB, one profile of EMA


def test_the_count_does_not_depend_on_width(step: Window) -> None:
    assert count_step(deep(32)).operations.names == step.operations.names


def test_a_step_waits_for_nothing(step: Window) -> None:
    assert step.copies.count == 0
    # Which rows are self-conditioned is drawn on the CPU, and looked up there.
    assert step.operations.syncs == step.operations.names["nonzero"] <= 1


def test_a_step_that_logs_and_looks_waits_at_most_three_times() -> None:
    window = count_step(shallow(), number=1, every=2, batches=3)
    assert 2 <= window.copies.count + window.operations.syncs <= LIMIT_SYNCS


@pytest.fixture(scope="module", params=["bf16-mixed", "bf16-true"])
def low(request: pytest.FixtureRequest) -> tuple[str, Operations]:
    return request.param, count_step(deep(), request.param).operations


def test_bf16_adds_casts_and_little_else(step: Window, low: tuple[str, Operations]) -> None:
    precision, operations = low
    names = operations.names.copy()
    names.subtract(step.operations.names)
    added = {name: count for name, count in names.items() if count > 0}
    # 16-bit weights: LAMB casts the gradients of its two groups and the weights back in blocks, EMA its average.
    assert added.pop("_foreach_copy_", 0) == (0 if precision == "bf16-mixed" else 5), added
    assert sum(count for name, count in added.items() if name != "_to_copy") <= 5, added


def test_bf16_casts_each_weight_once_or_not_at_all(low: tuple[str, Operations]) -> None:
    precision, operations = low
    if precision == "bf16-true":
        assert operations.total <= LIMIT_OPERATIONS, operations.names.most_common()
        assert operations.names["_to_copy"] <= 15
    elif CACHE_IS_SAFE:  # 275 weights in matrix products, there and back, and 300 activations around norms
        assert operations.names["_to_copy"] <= 850
