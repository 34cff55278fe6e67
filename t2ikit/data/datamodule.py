"""The data modules: stored sets as Lightning sees them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from t2ikit.augment.gate import shares
from t2ikit.batch import StoredBatch, Text
from t2ikit.data.loaders import EvaluationLoader, PositionLoader
from t2ikit.data.records import Manifest, RecordSet
from t2ikit.data.streams import (
    SHUFFLE_WINDOW,
    EvaluationStream,
    GatedStream,
    TrainingStream,
    check_fits,
)


class DataModule(LightningDataModule):
    """Streams a prepared data root: ``train/``, ``val/`` and the sets of the augmentations, such as ``train_cmall/``.

    Args:
        root: prepared folder (``t2ikit prepare``), with ``train/`` and ``val/``.
        batch_size: samples of one optimizer step, over all devices and accumulated batches.
        num_workers: reading processes of each device; 0 reads in the training process.
        seed: seed of order, sources, noise levels and captions.
        pin_memory: copy batches to page-locked memory; by default where there is a GPU.
        length_bucket: captions are padded to a multiple of this many tokens.
        eval_batch_size: validation samples of one device and forward pass.
        shuffle_window: records that are shuffled together, at least; 1 keeps to one chunk at a time.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 1024,
        num_workers: int = 2,
        seed: int = 0,
        pin_memory: bool | None = None,
        length_bucket: int = 16,
        eval_batch_size: int = 64,
        shuffle_window: int = SHUFFLE_WINDOW,
    ) -> None:
        super().__init__()
        for option, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("length_bucket", length_bucket, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("shuffle_window", shuffle_window, 1),
        ):
            if value < least:
                raise ValueError(f"data.{option} must be at least {least}, not {value}")
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.pin_memory = pin_memory
        self.length_bucket = length_bucket
        self.eval_batch_size = eval_batch_size
        self.shuffle_window = shuffle_window
        self._sets: dict[str, RecordSet] = {}
        self._gated: list[GatedStream] = []
        self._train_loader_built = False

    def find_data(self) -> None:
        """Refuses a root without prepared sets, before anything else is built.

        Raises:
            FileNotFoundError: names ``--data.root`` and the commands that prepare it.
        """
        for split in ("train", "val"):
            Manifest.read(self.root / split)

    def setup(self, stage: str | None = None) -> None:
        """Opens the sets, so that a missing or unfit one is refused at once.

        Raises:
            FileNotFoundError: names ``--data.root`` and the commands that prepare it.
            ValueError: if train and val do not fit each other.
        """
        check_fits(self.record_set("train"), self.record_set("val"), "validation")

    def record_set(self, split: str) -> RecordSet:
        """The set in ``<root>/<split>``: "train", "val", or the folder of an augmentation."""
        if split not in self._sets:
            self._sets[split] = RecordSet(self.root / split)
        return self._sets[split]

    @property
    def manifest(self) -> Manifest:
        """What the training set holds."""
        return self.record_set("train").manifest

    @property
    def source_names(self) -> list[str]:
        """Names of the sources, by the number in ``StoredBatch.source``: "raw", then the gated streams."""
        return ["raw", *(stream.name for stream in self._gated)]

    def unconditional(self) -> Text:
        """The states of the empty prompt: embeddings [1, L, D] float32, L = 1 for T5."""
        return Text.from_rows([torch.from_numpy(self.record_set("train").empty_prompt.dequantise())])

    def reference_images(self, split: str = "val", limit: int | None = None) -> Tensor:
        """Real images to compare generated ones with.

        Args:
            split: the set.
            limit: how many at most, evenly spaced through the set.

        Returns:
            [M, 3, H, W] uint8.

        Raises:
            FileNotFoundError: the set holds latents, and the images it was made of are gone.
        """
        records = self.record_set(split)
        if records.manifest.kind != "pixels":
            # The images before encoding, at the same size: latents decode to something less sharp.
            folder = self.root / "images" / split
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"{records.folder} holds {records.manifest.kind}, and {folder} with their images is gone: keep it, "
                    f"or write it again: t2ikit prepare images --source IMAGE_FOLDER --out {self.root}"
                )
            records = RecordSet(folder)
        count = len(records) if limit is None else min(limit, len(records))
        index = [number * len(records) // count for number in range(count)]
        return torch.stack([torch.from_numpy(records.view(place).image().copy()) for place in index])

    def add_stream(self, name: str, folder: str, quantile: float, probability: float) -> None:
        """Adds an augmented stream behind a noise gate; callbacks call it in their ``setup``.

        Args:
            name: of the source, as it is logged.
            folder: the encoded set, relative to the root.
            quantile: noise quantile beyond which the stream may be drawn, in [0, 1].
            probability: with which it then is, in [0, 1].

        Raises:
            ValueError: for numbers outside [0, 1] or that sum to more than 1, a set that does not fit, a name that is
                taken, or when the training loader exists already.
            FileNotFoundError: if the set does not exist.
        """
        stream = GatedStream(name, self.root / folder, float(quantile), float(probability))
        if stream in self._gated:
            return  # setup runs once for fit and again for validate
        if self._train_loader_built:
            raise ValueError(f"stream {name} comes too late: the training loader exists; add it in a callback's setup")
        if name in self.source_names:
            raise ValueError(f"there are two streams named {name}: give one of the callbacks another name or setting")
        shares([*(other.gate for other in self._gated), stream.gate])
        check_fits(self.record_set("train"), self.record_set(folder), name)
        self._gated.append(stream)

    def train_dataloader(self) -> PositionLoader:
        """Batches of this rank, from the position that a checkpoint restores."""
        world_size, rank, accumulate = self._devices()
        share = world_size * accumulate
        if self.batch_size % share:
            raise ValueError(
                f"data.batch_size {self.batch_size} is not divisible by {share} = {world_size} devices "
                f"(trainer.devices, trainer.num_nodes) x {accumulate} (trainer.accumulate_grad_batches)"
            )
        stream = TrainingStream(
            self.record_set("train"),
            self._gated,
            seed=self.seed,
            global_batch=self.batch_size,
            micro_batch=self.batch_size // share,
            world_size=world_size,
            rank=rank,
            length_bucket=self.length_bucket,
            shuffle_window=self.shuffle_window,
        )
        self._train_loader_built = True
        return PositionLoader(stream, self.num_workers, self._pins(), self._batches_per_pass(len(stream)))

    def val_dataloader(self) -> EvaluationLoader:
        """The validation set in its stored order, dealt out evenly over the ranks."""
        world_size, rank, _ = self._devices()
        records = self.record_set("val")
        stream = EvaluationStream(records, self.eval_batch_size, world_size, rank, self.length_bucket)
        return EvaluationLoader(stream, self.num_workers, self._pins())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As Lightning does it, but without waiting for the copy of a batch in page-locked memory."""
        if isinstance(batch, StoredBatch):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _devices(self) -> tuple[int, int, int]:
        """Ranks, this rank, and micro-batches of a rank in an optimizer step."""
        if self.trainer is None:
            return 1, 0, 1
        return self.trainer.world_size, self.trainer.global_rank, self.trainer.accumulate_grad_batches

    def _pins(self) -> bool:
        return torch.cuda.is_available() if self.pin_memory is None else self.pin_memory

    def _batches_per_pass(self, epoch: int) -> int:
        """Micro-batches after which Lightning ends its epoch; the next one then goes on where this one stopped."""
        if self.trainer is None:
            return epoch
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]  # set by Lightning's connectors
            raise ValueError("trainer.overfit_batches would repeat batches: use a small data set instead")
        limit = self.trainer.limit_train_batches
        return max(1, min(limit, epoch) if isinstance(limit, int) else int(limit * epoch))


class ShapesData(DataModule):
    """The embedded data set: rendered scenes of coloured shapes, built at the first use and kept.

    Args:
        size: height and width of the images, at least 16.
        difficulty: "simple" (one plain object) or "full".
        count: training images.
        val_count: validation images.
        captions: "long" or "aio" (an image of <class>).
        settings: CutMix settings that are built beside the images.
        scene_seed: seed of the scenes.
        root: where the data is kept; by default in the cache folder of the user, by its options.
        batch_size: samples of one optimizer step, over all devices and accumulated batches.
        num_workers: reading processes of each device; 0 reads in the training process.
        seed: seed of order, sources, noise levels and captions.
        pin_memory: copy batches to page-locked memory; by default where there is a GPU.
        length_bucket: captions are padded to a multiple of this many tokens.
        eval_batch_size: validation samples of one device and forward pass.
        shuffle_window: records that are shuffled together, at least.
    """

    def __init__(
        self,
        size: int = 16,
        difficulty: Literal["simple", "full"] = "simple",
        count: int = 20_000,
        val_count: int = 1_000,
        captions: Literal["long", "aio"] = "long",
        settings: tuple[str, ...] = ("cmall",),
        scene_seed: int = 0,
        root: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        pin_memory: bool | None = None,
        length_bucket: int = 16,
        eval_batch_size: int = 64,
        shuffle_window: int = SHUFFLE_WINDOW,
    ) -> None:
        for option, value, choices in (
            ("difficulty", difficulty, ("simple", "full")),
            ("captions", captions, ("long", "aio")),
        ):
            if value not in choices:
                raise ValueError(f'data.{option} must be "{choices[0]}" or "{choices[1]}", not "{value}"')
        if size < 16:
            raise ValueError(f"data.size must be at least 16, not {size}")
        if root is None:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
            parts = [str(size), difficulty, captions, str(count), str(val_count), *settings, str(scene_seed)]
            root = str(cache / "t2ikit" / "-".join(["shapes", *parts]))
        super().__init__(
            root, batch_size, num_workers, seed, pin_memory, length_bucket, eval_batch_size, shuffle_window
        )
        self.size = size
        self.difficulty = difficulty
        self.count = count
        self.val_count = val_count
        self.captions = captions
        self.settings = tuple(settings)
        self.scene_seed = scene_seed

    def find_data(self) -> None:
        """Nothing to find: what is not there is rendered."""

    def prepare_data(self) -> None:
        """Renders, captions and encodes the data where it does not exist yet."""
        # Imported here: the renderer and the small text encoder are not needed to stream prepared data.
        from t2ikit.data.shapes_set import build_shapes

        build_shapes(
            self.root,
            self.size,
            self.difficulty,
            self.count,
            self.val_count,
            self.captions,
            self.settings,
            self.scene_seed,
        )
