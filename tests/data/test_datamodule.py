"""The data modules under a real Lightning trainer: exact resume, refusals, evaluation batches."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from t2ikit.batch import StoredBatch
from t2ikit.data.datamodule import DataModule
from t2ikit.evaluation.reference_images import real_images
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set
from t2ikit.shapes.module import ShapesData

PIXELS = Manifest("pixels", (3, 4, 4), texts={"t5": TextSource(8, EncoderReference("tiny-t5", None, "ab" * 32))})
COUNTS = {"train": 53, "val": 11, "train_cm4": 40}
EMPTY = quantise_tokens(np.linspace(-1, 1, 8, dtype=np.float32)[None])


def make_record(split: str, index: int) -> Record:
    random = np.random.default_rng([len(split), index])
    tokens = quantise_tokens(random.standard_normal((1 + index % 5, 8)))
    image = random.integers(0, 256, (3, 4, 4)).astype(np.uint8)
    return Record({"image": image, "text.t5.0": tokens}, ("a",), {"key": f"{split}/{index}"})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count in COUNTS.items():
        write_set(
            folder / split, (make_record(split, index) for index in range(count)), PIXELS, {"t5": States(EMPTY)}, 2000
        )
    return folder


class Gated(Callback):
    """Adds a stream where callbacks do: in setup, which comes after the one of the data module."""

    def __init__(self, probability: float = 0.5, folder: str = "train_cm4") -> None:
        self.probability = probability
        self.folder = folder

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.datamodule.add_stream("cm4", self.folder, 0.4, self.probability)  # type: ignore[attr-defined]


class Tiny(pl.LightningModule):
    """Fits u from the image, and remembers what it was served: (slot, sources, indices, sum of u)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(48, 1)
        self.served: list[tuple[int, list[int], list[int], float]] = []
        self.validated: list[int] = []

    def training_step(self, batch: StoredBatch, number: int) -> Tensor:
        self.served.append((batch.slot, batch.source.tolist(), batch.index.tolist(), float(batch.u.sum())))
        return ((self.layer(batch.image.flatten(1) / 255)[:, 0] - batch.u) ** 2).mean()

    def validation_step(self, batch: StoredBatch, number: int) -> None:
        self.validated.extend(batch.index.tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(
    root: Path,
    folder: Path,
    checkpoint: Path | None = None,
    workers: int = 0,
    epochs: int = 4,
    gate: Callback | None = None,
    data: dict[str, Any] | None = None,
    allow: tuple[str, ...] = (),
    **options: Any,
) -> tuple[Tiny, pl.Trainer]:
    """An epoch has 3 steps of 16 samples."""
    saver = ModelCheckpoint(
        dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=True
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[saver, gate or Gated()],
        **options,
    )
    module = Tiny()
    values = {"batch_size": 16, "num_workers": workers, "seed": 3, "eval_batch_size": 4, **(data or {})}
    data_module = DataModule(str(root), **values)
    data_module.allowed = frozenset(allow)
    trainer.fit(module, datamodule=data_module, ckpt_path=checkpoint)
    return module, trainer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("workers", "options", "micro_batches", "cuts"),
    [
        (0, {}, 1, (1, 2, 3, 4, 6, 8)),
        (2, {}, 1, (2, 3)),
        (0, {"accumulate_grad_batches": 2}, 2, (1, 3, 5)),
        (0, {"limit_train_batches": 2}, 1, (1, 2, 3)),
        (0, {"limit_train_batches": 4, "accumulate_grad_batches": 2}, 2, (1, 2, 3)),
        (0, {"limit_train_batches": 0.9, "accumulate_grad_batches": 2}, 2, (1, 2, 3)),
        (0, {"val_check_interval": 2, "check_val_every_n_epoch": None}, 1, (1, 2, 3, 5)),
    ],
    ids=["plain", "workers", "accumulate", "limited", "limited steps", "share of steps", "validation within epochs"],
)
def test_a_resumed_fit_is_the_undisturbed_one(
    root: Path, tmp_path: Path, workers: int, options: dict[str, Any], micro_batches: int, cuts: tuple[int, ...]
) -> None:
    whole, trainer = fit(root, tmp_path / "whole", workers=workers, **options)
    steps = trainer.global_step
    micro = 16 // micro_batches
    assert [slot for slot, *_ in whole.served] == list(range(0, 16 * steps, micro))
    assert steps == (8 if "limit_train_batches" in options else 12)
    for cut in cuts:
        resumed, trainer = fit(
            root, tmp_path / f"from {cut}", tmp_path / "whole" / f"step={cut}.ckpt", workers, **options
        )
        assert resumed.served == whole.served[cut * micro_batches :]
        assert trainer.global_step == steps and trainer.current_epoch == 4
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.filterwarnings("ignore")
def test_a_fit_goes_on_after_its_last_epoch(root: Path, tmp_path: Path) -> None:
    """The checkpoint of a finished run, resumed for more epochs."""
    whole, _ = fit(root, tmp_path / "whole", epochs=4)
    fit(root, tmp_path / "short", epochs=2)
    resumed, _ = fit(root, tmp_path / "long", tmp_path / "short" / "step=6.ckpt", epochs=4)
    assert resumed.served == whole.served[6:]
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_with_the_stream_it_began_with(root: Path, tmp_path: Path) -> None:
    """Whatever would give the rest of the run other records is refused, also what no manifest of train/ tells."""
    fit(root, tmp_path / "whole", epochs=2)
    checkpoint = tmp_path / "whole" / "step=4.ckpt"
    shutil.copytree(root, tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "train_cm4")
    records = (make_record("other", index) for index in range(COUNTS["train_cm4"]))
    write_set(tmp_path / "other" / "train_cm4", records, PIXELS, {"t5": States(EMPTY)}, 2000)
    for changes, named, key in [
        ({"data": {"batch_size": 8}}, r"data\.batch_size was 16 .* is 8", "data.batch_size"),
        ({"data": {"seed": 4}}, r"data\.seed was 3", "data.seed"),
        ({"gate": Gated(0.25)}, "stream cm4 had the probability 0.5", "gates"),
        ({"root": tmp_path / "other"}, "stream cm4 holds other records", "data.records"),
    ]:
        changes = {"root": root, **changes}
        with pytest.raises(ValueError, match=f"{named}[^$]*--allow {key}$"):
            fit(folder=tmp_path / "refused", checkpoint=checkpoint, epochs=2, **changes)
        resumed, _ = fit(folder=tmp_path / "any", checkpoint=checkpoint, epochs=2, allow=(key,), **changes)
        assert resumed.served[0][0] == 64  # the position is one of slots


@pytest.mark.filterwarnings("ignore")
def test_every_epoch_is_validated_on_the_whole_set(root: Path, tmp_path: Path) -> None:
    module, _ = fit(root, tmp_path, epochs=2)
    # Two batches of the sanity check (3 and 4 records), then both epochs.
    assert module.validated == [*range(7), *range(11), *range(11)]
    assert {source for _, sources, *_ in module.served for source in sources} == {0, 1}


def attach(data: DataModule, world_size: int = 1, accumulate: int = 1, rank: int = 0, **values: Any) -> DataModule:
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=world_size,
        global_rank=rank,
        accumulate_grad_batches=accumulate,
        **{"limit_train_batches": 1.0, "overfit_batches": 0, **values},
    )
    return data


def test_two_ranks_serve_what_one_does(root: Path) -> None:
    alone = attach(DataModule(str(root), 16))
    pair = [attach(DataModule(str(root), 16, num_workers=0), 2, 2, rank) for rank in range(2)]
    for data in (alone, *pair):
        data.num_workers = 0
        data.setup("fit")
        data.add_stream("cm4", "train_cm4", 0.4, 0.5)
    whole = [batch.index.tolist() for batch in alone.train_dataloader()]
    parts = [[batch.index.tolist() for batch in data.train_dataloader()] for data in pair]
    assert len(parts[0]) == 2 * len(whole)
    joined = [parts[rank][2 * step + part] for step in range(len(whole)) for part in range(2) for rank in range(2)]
    assert sum(whole, []) == sum(joined, [])
    seen = [batch.index.tolist() for data in pair for batch in data.val_dataloader()]
    assert sorted(sum(seen, [])) == list(range(11))


def test_a_batch_that_cannot_be_divided_names_the_options(root: Path) -> None:
    with pytest.raises(ValueError) as caught:
        attach(DataModule(str(root), 16), 3, 2).train_dataloader()
    for option in ("data.batch_size 16", "trainer.devices", "trainer.accumulate_grad_batches"):
        assert option in str(caught.value)
    with pytest.raises(ValueError, match="overfit_batches"):
        attach(DataModule(str(root), 16), overfit_batches=1).train_dataloader()


@pytest.mark.parametrize(("limit", "steps"), [(6, 3), (5, None), (3, None), (0.9, 2), (0.4, 1), (0.2, 1), (7, 3)])
def test_an_epoch_is_whole_steps(root: Path, limit: float, steps: int | None) -> None:
    """Three steps of two micro-batches: a limit may not cut one in two."""
    data = attach(DataModule(str(root), 16, num_workers=0), accumulate=2, limit_train_batches=limit)
    data.setup("fit")
    if steps is None:
        with pytest.raises(ValueError, match=rf"limit_train_batches {limit} .*accumulate_grad_batches 2"):
            data.train_dataloader()
        return
    assert len(list(data.train_dataloader())) == 2 * steps
    given = data.trainer.limit_train_batches  # type: ignore[union-attr]
    assert (min(given, 6) if isinstance(given, int) else int(given * 6)) == 2 * steps


@pytest.mark.parametrize("option", ["batch_size", "num_workers", "length_bucket", "eval_batch_size", "shuffle_window"])
def test_bad_numbers_name_the_option(option: str) -> None:
    with pytest.raises(ValueError, match=f"data.{option}"):
        DataModule("anywhere", **{option: -1})


def test_a_missing_root_names_the_option_and_the_commands(tmp_path: Path) -> None:
    data = DataModule(str(tmp_path / "nowhere"))  # refused when it is used, not when it is described
    with pytest.raises(FileNotFoundError, match=r"--data.root[\s\S]*t2ikit prepare images[\s\S]*t2ikit prepare encode"):
        data.setup("fit")


def test_val_must_fit_train(root: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(root / "train")
    record = Record({"image": np.zeros((3, 8, 8), np.uint8), "text.t5.0": EMPTY}, ("a",))
    write_set(tmp_path / "val", [record], replace(PIXELS, image_shape=(3, 8, 8)))
    with pytest.raises(ValueError, match="validation.*image_shape is .*8, 8.*4, 4"):
        DataModule(str(tmp_path)).setup("fit")


def test_streams_are_checked_when_they_are_added(root: Path) -> None:
    data = DataModule(str(root), 16, num_workers=0)
    data.setup("fit")
    with pytest.raises(ValueError, match="cm4: the threshold tau"):
        data.add_stream("cm4", "train_cm4", 1.5, 0.5)
    with pytest.raises(FileNotFoundError, match=r"stream cm9: .*train_cm9.*write_set.*its callback"):
        data.add_stream("cm9", "train_cm9", 0.4, 0.5)
    data.add_stream("cm4", "train_cm4", 0.4, 0.5)
    data.add_stream("cm4", "train_cm4", 0.4, 0.5)  # the setup of a second stage
    assert data.source_names == ["raw", "cm4"]
    with pytest.raises(ValueError, match="two streams named cm4"):
        data.add_stream("cm4", "train_cm4", 0.5, 0.5)
    with pytest.raises(ValueError, match="two streams named raw"):
        data.add_stream("raw", "train_cm4", 0.5, 0.5)
    with pytest.raises(ValueError, match=re.escape("cm4, other sum to 1.2")):
        data.add_stream("other", "train_cm4", 0.4, 0.7)
    data.train_dataloader()
    with pytest.raises(ValueError, match="too late"):
        data.add_stream("other", "train_cm4", 0.4, 0.2)
    assert data.source_names == ["raw", "cm4"]


def test_the_empty_prompt_and_reference_images(root: Path, tmp_path: Path) -> None:
    data = DataModule(str(root))
    text = data.unconditional()
    assert text.embeddings.shape == (1, 1, 8) and text.mask.tolist() == [[True]]
    assert np.array_equal(text.embeddings[0].numpy(), EMPTY.dequantise())
    images = real_images(data, "val")
    assert images.shape == (11, 3, 4, 4) and images.dtype == torch.uint8
    assert np.array_equal(images[4].numpy(), make_record("val", 4).image)
    some = real_images(data, "train", 5)
    assert np.array_equal(some[:].numpy(), [make_record("train", i * 53 // 5).image for i in range(5)])
    assert data.manifest.count == 53
    latents = replace(PIXELS, kind="latents", image_shape=(2, 4, 2, 2))
    record = Record({"image": np.zeros((2, 4, 2, 2), np.float16), "text.t5.0": EMPTY}, ("a",))
    write_set(tmp_path / "val", [record], latents)
    with pytest.raises(FileNotFoundError, match="prepare images"):
        real_images(DataModule(str(tmp_path)))
    write_set(tmp_path / "images" / "val", [make_record("val", i) for i in range(2)], PIXELS)
    images = real_images(DataModule(str(tmp_path)))
    assert np.array_equal(images[:].numpy(), [make_record("val", i).image for i in range(2)])


def test_a_missing_root_is_refused_before_anything_is_built(root: Path, tmp_path: Path) -> None:
    DataModule(str(root)).find_data()
    with pytest.raises(FileNotFoundError, match=r"--data\.root(.|\n)*t2ikit prepare encode"):
        DataModule(str(tmp_path / "none")).find_data()
    ShapesData(root=str(tmp_path / "none")).find_data()


def test_shapes_take_and_show_the_options_of_the_data_module(root: Path) -> None:
    data = ShapesData(root=str(root), seed=4, shuffle_window=7, verify="always")
    assert (data.seed, data.shuffle_window, data.verify, data.batch_size) == (4, 7, "always", 64)
    parser = ArgumentParser()
    parser.add_class_arguments(ShapesData, "data")
    shown = parser.format_help()
    for option in ("size", "root", "seed", "pin_memory", "length_bucket", "eval_batch_size", "shuffle_window"):
        assert f"--data.{option} " in shown
    assert "records that are shuffled together" in shown  # what they do, too
    with pytest.raises(TypeError, match="windows"):
        ShapesData(root=str(root), windows=7)


def test_shapes_options_choose_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path))
    first, same, other = ShapesData(), ShapesData(batch_size=8, seed=4), ShapesData(count=50)
    assert first.folder == same.folder != other.folder and first.folder.is_relative_to(tmp_path)
    assert ShapesData(root="~/shapes").folder == Path.home() / "shapes"
    for option, value in [("size", 8), ("difficulty", "hard"), ("captions", "x")]:
        with pytest.raises(ValueError, match=f"data.{option}"):
            ShapesData(**{option: value})
    assert not any(tmp_path.iterdir())
