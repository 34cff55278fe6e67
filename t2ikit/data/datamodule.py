"""The data module: stored sets as Lightning sees them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from t2ikit.batch import Text
from t2ikit.data.captions import check_weights
from t2ikit.data.gate import Gate, shares
from t2ikit.data.loaders import EvaluationLoader, EvaluationStream, PositionLoader, batches_per_pass, count_anew
from t2ikit.data.order import SHUFFLE_WINDOW
from t2ikit.data.resume import TRAIN, Continuation
from t2ikit.data.streams import TrainingStream
from t2ikit.records.checked import VERIFY, Verify, open_set
from t2ikit.records.fits import (
    OWN_TEXT_ENCODER,
    check_buckets,
    check_fits,
    check_same_arrays,
    check_text_encoder,
    own_encoder_fits,
)
from t2ikit.records.manifest import MANIFEST_NAME, Manifest, set_names
from t2ikit.records.record_set import RecordSet
from t2ikit.records.remote import RemoteFolder, is_remote, open_remote_set, read_manifest
from t2ikit.records.states import as_text

_LEAST = {"batch_size": 1, "num_workers": 0, "length_bucket": 1, "eval_batch_size": 1, "shuffle_window": 1}


@dataclass(eq=False)
class DataModule(LightningDataModule):
    """Streams a prepared data root: ``train/``, ``val/`` and the sets of the augmentations, such as ``train_cmall/``.

    Attributes:
        root: prepared folder (``t2ikit prepare``), with ``train/`` and ``val/``; or the address of one, such as
            ``s3://bucket/imagenet256``, ``gs://``, ``hf://datasets/user/name`` or ``https://``.
        batch_size: samples of one optimizer step, over all devices and accumulated batches.
        num_workers: reading processes of each device; 0 reads in the training process.
        seed: seed of order, sources, noise levels and captions.
        pin_memory: copy batches to page-locked memory; by default where there is a GPU.
        length_bucket: captions are padded to a multiple of this many tokens.
        eval_batch_size: validation samples of one device and forward pass.
        shuffle_window: records that are shuffled together, at least; 1 keeps to one chunk at a time.
        caption_weights: how often each of several captions of a record is used: one weight a caption, or by kind, such
            as ``{long: 0.9, aio: 0.1}``; by default all alike.
        text_encoder: the text encoder that the experiment is about, a repository of the Hub or a local folder; sets of
            other weights are refused. By default any whose states have the width that the denoiser takes.
        verify: "once" compares a chunk with its SHA-256 before it is first used (and again when the file has changed),
            "always" whenever it is mapped, "never" not at all.
        cache_dir: where chunks of a remote root are kept; by default ``data`` below ``$T2IKIT_CACHE`` (or
            ``~/.cache/t2ikit``).
        cache_gb: gigabytes (10^9 bytes) that these chunks may take; the least recently used are deleted first. By
            default they may fill the disk except for the last 2^30 bytes.
        storage_options: of the file system of a remote root, as fsspec takes them, such as ``{anon: true}``.
        buckets: names of aspect buckets: every set of the root is then several, ``train/NAME`` and ``val/NAME``, each
            of images of one shape, and a step takes one of them. Snapshots sample and compare images of the first. By
            default those below ``train/`` of a local root that has no set there, ``1.00`` first; [] for none.
    """

    size_options: ClassVar[Mapping[str, str]] = {}  # which option says how large a set is, where there is one

    root: str
    batch_size: int = 1024
    num_workers: int = 2
    seed: int = 0
    pin_memory: bool | None = None
    length_bucket: int = 16
    eval_batch_size: int = 64
    shuffle_window: int = SHUFFLE_WINDOW
    caption_weights: list[float] | dict[str, float] | None = None
    text_encoder: str | None = None
    verify: Verify = "once"
    cache_dir: str | None = None
    cache_gb: float | None = None
    storage_options: dict[str, Any] | None = None
    buckets: list[str] | None = None

    def __post_init__(self) -> None:
        super().__init__()
        for option, least in _LEAST.items():
            if getattr(self, option) < least:
                raise ValueError(f"data.{option} must be at least {least}, not {getattr(self, option)}")
        if self.verify not in VERIFY:
            raise ValueError(f"data.verify must be one of {', '.join(VERIFY)}, not {self.verify!r}")
        if self.cache_gb is not None and not 0 < self.cache_gb < math.inf:
            raise ValueError(f"data.cache_gb must be more than 0, and finite, not {self.cache_gb}")
        if self.caption_weights is not None:
            check_weights(self.caption_weights)
        self.folder: Path | RemoteFolder = (
            RemoteFolder.at(self.root, self.cache_dir, self.storage_options)
            if is_remote(self.root)
            else Path(self.root).expanduser()
        )
        self.cache_limit = None if self.cache_gb is None else int(self.cache_gb * 1e9)
        self.gates: list[Gate] = []
        self.arrays: tuple[str, ...] = ("image",)
        # Names by the index in ``StoredBatch.source``; a plain list, since a step asks for it.
        self.source_names = ["raw"]
        self.allowed: frozenset[str] = frozenset()  # what ``--allow`` lets differ from the checkpoint of a resume
        self._sets: dict[tuple[str, int], RecordSet] = {}
        self._train_loader: PositionLoader | None = None
        self._slot: int | None = None  # where the next training loader begins

    def find_data(self) -> None:
        """Refuses a root without prepared sets, or with those of another text encoder, before anything else is built.

        Raises:
            FileNotFoundError: names ``--data.root`` and the commands that prepare it.
            ValueError: the text encoder is another than ``data.text_encoder``.
        """
        for split in ("train", "val"):
            for bucket in range(self.bucket_count):
                folder = self._set_folder(split, bucket)
                manifest = read_manifest(folder) if isinstance(folder, RemoteFolder) else Manifest.read(folder)
                check_text_encoder(manifest, self.text_encoder, str(folder))

    def setup(self, stage: str | None = None) -> None:
        """Opens the sets, so that a missing or unfit one is refused at once.

        Raises:
            FileNotFoundError: names ``--data.root`` and the commands that prepare it.
            ValueError: train and val, or the buckets, do not fit each other, or come from another text encoder than
                the wanted one.
        """
        train = self.record_set("train")
        for bucket, records in enumerate(self.record_sets("train")):
            check_text_encoder(records.manifest, self.text_encoder, str(records.folder))
            check_buckets(train, records)
            check_fits(records, self.record_set("val", bucket), "validation")
        names = [reference.name for reference in train.manifest.text_encoders]
        if isinstance(self.folder, RemoteFolder) and OWN_TEXT_ENCODER in names:
            try:
                self.folder.bring_folder(OWN_TEXT_ENCODER, partial(own_encoder_fits, manifest=train.manifest))
            except FileNotFoundError as error:
                warnings.warn(f"{error}: training can do without, prompts of snapshots cannot", stacklevel=2)

    @property
    def train_loader(self) -> PositionLoader | None:
        """The loader of the present fit, which knows the position; None before there is one."""
        return self._train_loader

    @cached_property
    def bucket_names(self) -> tuple[str, ...]:
        """Names of the aspect buckets, in their order; none where every set of the root has one shape."""
        if self.buckets is not None or isinstance(self.folder, RemoteFolder):
            return tuple(self.buckets or ())
        train = self.folder / "train"
        if (train / MANIFEST_NAME).is_file():
            return ()
        return tuple(sorted(set_names(train), key=lambda name: (name != "1.00", name)))

    @property
    def bucket_count(self) -> int:
        """Sets of a split: the buckets, or 1."""
        return max(len(self.bucket_names), 1)

    def record_set(self, split: str, bucket: int = 0) -> RecordSet:
        """The set in ``<root>/<split>``: "train", "val", or the folder of an augmentation; of buckets, one of them."""
        key = (str(split), bucket)
        if key not in self._sets:
            folder = self._set_folder(split, bucket)
            if isinstance(folder, RemoteFolder):
                assert isinstance(self.folder, RemoteFolder)
                cache = self.folder.copy.parent
                self._sets[key] = open_remote_set(folder, self.verify, cache, self.cache_limit)
            else:
                self._sets[key] = open_set(folder, self.verify)
        return self._sets[key]

    def record_sets(self, split: str) -> list[RecordSet]:
        """The sets of a split, one a bucket."""
        return [self.record_set(split, bucket) for bucket in range(self.bucket_count)]

    def _set_folder(self, split: str, bucket: int) -> Path | RemoteFolder:
        folder = self.folder / split
        return folder / self.bucket_names[bucket] if self.bucket_names else folder

    @property
    def manifest(self) -> Manifest:
        """What the training set holds; of buckets, the first."""
        return self.record_set("train").manifest

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """What the training set holds, one a bucket."""
        return tuple(records.manifest for records in self.record_sets("train"))

    def read_arrays(self, names: Collection[str]) -> None:
        """Lets every batch hold these arrays of its records, too; the module asks for those that its objective needs.

        Raises:
            ValueError: one is new, and the training loader exists already.
        """
        arrays = tuple(dict.fromkeys([*self.arrays, *names]))
        if arrays != self.arrays and self._train_loader is not None:
            raise ValueError(f"the arrays {', '.join(names)} come too late: the training loader exists; ask in setup")
        self.arrays = arrays

    def unconditional(self) -> Text | tuple[Text, ...]:
        """The empty prompt, one row: embeddings [1, L, D] float32, L = 1 for T5; of several text encoders a tuple."""
        return as_text(self.record_set("train").empty_prompt.values())

    def add_stream(self, name: str, folder: str, quantile: float, probability: float) -> None:
        """Adds an augmented stream behind a :class:`Gate`; callbacks call it in their ``setup``.

        Raises:
            ValueError: numbers outside [0, 1] or probabilities that sum to more than 1, a set that does not fit, a name
                that is taken, or the training loader exists already.
            FileNotFoundError: the set does not exist.
        """
        gate = Gate(name, folder, float(quantile), float(probability))
        if gate in self.gates:
            return  # setup runs once for fit and again for validate
        if self._train_loader is not None:
            raise ValueError(f"stream {name} comes too late: the training loader exists; add it in a callback's setup")
        if name in self.source_names:
            raise ValueError(f"there are two streams named {name}: give one of the callbacks another name or setting")
        shares([*self.gates, gate])
        try:
            sets = self.record_sets(folder)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"stream {name}: there is no prepared set {self.folder / folder}: write it there "
                "(t2ikit.records.write_set; `t2ikit prepare encode` for a set of images/), or name another folder in "
                "its callback"
            ) from error
        for train, records in zip(self.record_sets("train"), sets, strict=True):
            check_fits(train, records, name)
        self.gates.append(gate)
        self.source_names.append(name)

    def continuation(self) -> Continuation:
        """What decides the rest of the run, and the position that it has reached."""
        slot = 0 if self._train_loader is None else self._train_loader.slot
        sets = {TRAIN: "train", **{gate.name: str(gate.folder) for gate in self.gates}}
        manifests = {
            name if bucket == 0 else f"{name}/{self.bucket_names[bucket]}": records.manifest
            for name, folder in sets.items()
            for bucket, records in enumerate(self.record_sets(folder))
        }
        return Continuation(
            slot,
            self.batch_size,
            self.seed,
            self.shuffle_window,
            self.caption_weights,
            tuple(self.gates),
            manifests,
            self.bucket_names,
        )

    def state_dict(self) -> dict[str, Any]:
        return self.continuation().to_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position; refuses data and options under which the rest of the run would be another.

        Lightning restores the loader too, but not one that was built before it restored its loops, as a run with
        ``trainer.max_epochs`` builds it to know the length of its learning-rate schedule.

        Raises:
            ValueError: lists what changed, and the ``--allow`` that lets it.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return  # only a fit goes on
        before = Continuation.from_state(state)
        before.check(self.continuation(), self.allowed)
        self._slot = before.slot
        if self._train_loader is not None:
            self._train_loader.load_state_dict({"slot": self._slot})

    def restore_counters(self, checkpoint: dict[str, Any]) -> None:
        """Counts the micro-batches of a whole checkpoint again, before Lightning reads them; see :func:`count_anew`."""
        if self.trainer is not None and "loops" in checkpoint:
            count_anew(checkpoint["loops"]["fit_loop"], self.batch_size // self.trainer.accumulate_grad_batches)

    def train_dataloader(self) -> PositionLoader:
        """Batches of this rank, from the position that a checkpoint restores."""
        world_size, rank = self._ranks()
        stream = TrainingStream(
            self.record_sets("train"),
            self.gates,
            seed=self.seed,
            global_batch=self.batch_size,
            accumulate=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
            world_size=world_size,
            rank=rank,
            length_bucket=self.length_bucket,
            shuffle_window=self.shuffle_window,
            caption_weights=self.caption_weights,
            open_set=self.record_set,
            cache_limit=self.cache_limit,
            arrays=self.arrays,
        )
        limit = batches_per_pass(self.trainer, len(stream))
        self._train_loader = PositionLoader(stream, self.num_workers, self._pins(), limit, self._slot)
        self._slot = None  # the next fit begins at slot 0
        return self._train_loader

    def val_dataloader(self) -> EvaluationLoader:
        """The validation set in its stored order, dealt out evenly over the ranks."""
        return self.evaluation_dataloader("val")

    def evaluation_dataloader(self, split: str, limit: int | None = None) -> EvaluationLoader:
        """The first ``limit`` records of a set in its stored order, dealt out evenly over the ranks."""
        world_size, rank = self._ranks()
        for records in self.record_sets(split):
            check_same_arrays(self.record_set("train"), records, self.arrays, one_batch=False)
        stream = EvaluationStream(
            self.record_sets(split), self.eval_batch_size, world_size, rank, self.length_bucket, limit, self.arrays
        )
        return EvaluationLoader(stream, self.num_workers, self._pins())

    def _ranks(self) -> tuple[int, int]:
        """Number of ranks, and this one."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _pins(self) -> bool:
        return torch.cuda.is_available() if self.pin_memory is None else self.pin_memory
