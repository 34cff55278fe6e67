"""The same records after any cut, for any workers and ranks, across epoch ends: bit for bit."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from t2ikit.batch import StoredBatch
from t2ikit.data.gate import Gate
from t2ikit.data.loaders import PositionLoader
from t2ikit.data.streams import TrainingStream
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set

COUNTS = {"train": 53, "val": 8, "train_cm4": 31}
STEPS = 3  # of an epoch: 53 records, 16 a batch
MANIFEST = Manifest("latents", (2, 4, 2, 2), texts={"t5": TextSource(8, EncoderReference("tiny-t5", None, "ab" * 32))})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count in COUNTS.items():
        random = np.random.default_rng(len(split))
        records = (
            Record(
                {
                    "image": random.random((2, 4, 2, 2)).astype(np.float16),
                    "text.t5.0": quantise_tokens(random.standard_normal((1 + index % 5, 8))),
                    "text.t5.1": quantise_tokens(random.standard_normal((1, 8))),
                },
                ("long", "short"),
            )
            for index in range(count)
        )
        write_set(folder / split, records, MANIFEST, {"t5": States(quantise_tokens(np.ones((1, 8))))}, chunk_bytes=2000)
    return folder


def make_loader(root: Path, rank: int, workers: int, world_size: int = 2, accumulate: int = 1) -> PositionLoader:
    stream = TrainingStream(
        RecordSet(root / "train"),
        [Gate("cm4", root / "train_cm4", 0.4, 0.5)],
        seed=3,
        global_batch=16,
        accumulate=accumulate,
        world_size=world_size,
        rank=rank,
        shuffle_window=20,
        caption_weights=[0.7, 0.3],
    )
    return PositionLoader(stream, num_workers=workers)


def served(loader: PositionLoader, batches: int) -> list[StoredBatch]:
    """The next batches, over as many passes as it takes; what was read ahead is thrown away, as in a killed run."""
    found: list[StoredBatch] = []
    while len(found) < batches:
        for batch in loader:
            found.append(batch)
            if len(found) == batches:
                break
    return found


def assert_same(first: list[StoredBatch], second: list[StoredBatch]) -> None:
    assert len(first) == len(second) > 0
    for mine, theirs in zip(first, second, strict=True):
        tiny.assert_same(mine, theirs)


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> list[list[StoredBatch]]:
    """Of both ranks, four epochs."""
    return [served(make_loader(root, rank, 0), 4 * STEPS) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, pytest.param(4, marks=pytest.mark.long)])
@pytest.mark.parametrize("cut", [1, STEPS, STEPS + 2, 2 * STEPS], ids=lambda cut: f"after {cut}")
def test_two_ranks_go_on_where_they_were_cut(
    root: Path, undisturbed: list[list[StoredBatch]], workers: int, cut: int
) -> None:
    for rank in range(2):
        loader = make_loader(root, rank, workers)
        assert_same(served(loader, cut), undisturbed[rank][:cut])
        resumed = make_loader(root, rank, workers)
        resumed.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
        assert_same(served(resumed, 2 * STEPS), undisturbed[rank][cut : cut + 2 * STEPS])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_goes_on_with_other_workers_ranks_and_micro_batches(
    root: Path, undisturbed: list[list[StoredBatch]]
) -> None:
    """Rank 0's position, as Lightning saves it, is enough: cut after five steps of two ranks with one worker each."""
    loader = make_loader(root, 0, 1)
    served(loader, 5)
    whole = [torch.cat([rank[step].index for rank in undisturbed]).tolist() for step in range(4 * STEPS)]
    for world_size, accumulate, workers in [(1, 1, 0), (1, 2, 4), (4, 1, 1), (2, 4, 0)]:
        parts = []
        for rank in range(world_size):
            resumed = make_loader(root, rank, workers, world_size, accumulate)
            resumed.load_state_dict(loader.state_dict())
            parts.append([batch.index.tolist() for batch in served(resumed, 4 * accumulate)])
        steps = [
            sum((parts[rank][step * accumulate + part] for part in range(accumulate) for rank in range(world_size)), [])
            for step in range(4)
        ]
        assert steps == whole[5:9]


PROGRAM = """
import sys
from pathlib import Path
import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from t2ikit.data.datamodule import DataModule

class Gated(Callback):
    def setup(self, trainer, pl_module, stage):
        trainer.datamodule.add_stream("cm4", "train_cm4", 0.4, 0.5)

class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(32, 1)
        self.served = []

    def training_step(self, batch, number):
        image, text = batch.image.flatten(1).float(), batch.text()
        self.served.append((batch.slot, batch.source, batch.index, batch.u, image.sum(1), text.embeddings.sum((1, 2))))
        return ((self.layer(image)[:, 0] - batch.u) ** 2).mean()

    def validation_step(self, batch, number):
        pass

    def on_train_end(self):
        torch.save((self.served, self.layer.weight.data), out / f"rank {self.global_rank} from {cut}.pt")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

root, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for cut in (0, 4):
    saver = ModelCheckpoint(dirpath=out, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=3, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=out, callbacks=[saver, Gated()], num_sanity_val_steps=0,
    )
    checkpoint = out / f"step={cut}.ckpt" if cut else None
    trainer.fit(Tiny(), datamodule=DataModule(str(root), 16, workers, seed=3), ckpt_path=checkpoint)
"""


@pytest.mark.long
def test_a_run_of_two_processes_resumes_bit_for_bit(root: Path, tmp_path: Path) -> None:
    """Cut in the middle of the second epoch; the rest crosses an epoch end."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(root), str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = ([torch.load(tmp_path / f"rank {rank} from {cut}.pt") for rank in range(2)] for cut in (0, 4))
    for (before, weight), (after, again) in zip(whole, resumed, strict=True):
        assert len(before) == 9 and len(after) == 5 and torch.equal(weight, again)
        for mine, theirs in zip(before[4:], after, strict=True):
            assert mine[0] == theirs[0] and all(torch.equal(a, b) for a, b in zip(mine[1:], theirs[1:], strict=True))
    slots = [slot for step in zip(*(ranks for ranks, _ in whole), strict=True) for slot, *_ in step]
    assert slots == list(range(0, 9 * 16, 8))
