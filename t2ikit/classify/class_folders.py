"""The data module of a classifier: a training set, a validation set and named test sets."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from t2ikit import ranks
from t2ikit.classify.classes import ClassList, read_classes
from t2ikit.classify.depth import DepthMaps
from t2ikit.classify.pictures import (
    Pictures,
    check_counts,
    checked,
    find,
    first_per_class,
    held_out,
    refuse_shared,
)
from t2ikit.classify.streams import Reader, TestStream, TrainingStream
from t2ikit.classify.views import Augmentation, Compat, View, ViewName
from t2ikit.data.loaders import EvaluationLoader, PositionLoader, batches_per_pass, count_anew

_LEAST = {"batch_size": 1, "num_workers": 0, "eval_batch_size": 1, "per_class": 1, "filter_size": 1}


@dataclass(frozen=True)
class ClassSets:
    """The pictures of one training.

    Attributes:
        train: trained on.
        val: selects the weights; None for none.
        tests: by name.
    """

    train: Pictures
    val: Pictures | None
    tests: dict[str, Pictures]


@dataclass(eq=False)
class ClassFolders(LightningDataModule):
    """Labelled pictures in class folders, or prepared sets whose records hold ``class_id``.

    Labels go by the name of the class folder, never by its place in a listing. All pictures are decoded and hashed
    before anything is trained; pictures that are in the training set and in a test set are refused.

    Attributes:
        train: folder of the training set: of class folders, or a prepared set such as ``ROOT/images/train``.
        tests: folders of the test sets, by name.
        val: folder of the validation set; None holds a part of the training set out.
        classes: "tiny200" (the 200 of the paper), "imagenet", or a file with one ``folder<TAB>name`` a line, in which
            lines of one name are one class.
        view: what is seen of a picture: "rgb", "depth" (structure), "texture", "low" or "high" (frequencies).
        size: pixels a side of what the network sees.
        cutoff: of the frequencies, as a share of the Nyquist frequency.
        filter_size: pixels a side at which pictures are filtered; ``compat: released`` filters at their own size.
        clip: filtered pictures to [0, 1].
        depth_model: Depth Anything, a local folder or a repository of the Hub; for ``depth`` alone.
        depth_revision: commit or tag of that repository.
        augmentation: "paper", or "light": a shift by at most an eighth and a flip, for small pictures.
        per_class: train on so many pictures of each class, those held out among them; None takes all.
        held_out: share of every class of the training set that is held out where ``val`` is None; 0 holds none out.
        batch_size: pictures of one optimizer step, over all devices and accumulated batches.
        eval_batch_size: pictures of one device and forward pass in validation and tests.
        num_workers: reading processes of each device; 0 reads in the training process.
        seed: of order, augmentation, and what is held out.
        compat: "meant": what the paper's program meant to do; "released": what it does: filters at the pictures' own
            size, one random crop in a texture test.
        pin_memory: copy batches to page-locked memory; by default where there is a GPU.
    """

    train: str
    tests: dict[str, str] = field(default_factory=dict)
    val: str | None = None
    classes: str = "tiny200"
    view: ViewName = "rgb"
    size: int = 224
    cutoff: float = 0.2
    filter_size: int = 256
    clip: bool = True
    depth_model: str = "depth-anything/Depth-Anything-V2-Large-hf"
    depth_revision: str | None = None
    augmentation: Augmentation = "paper"
    per_class: int | None = None
    held_out: float = 0.1
    batch_size: int = 1024
    eval_batch_size: int = 256
    num_workers: int = 2
    seed: int = 0
    compat: Compat = "meant"
    pin_memory: bool | None = None

    def __post_init__(self) -> None:
        super().__init__()
        for option, least in _LEAST.items():
            value = getattr(self, option)
            if value is not None and value < least:
                raise ValueError(f"data.{option} must be at least {least}, not {value}")
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"data.held_out is a share of the training set, in [0, 1); got {self.held_out}")
        if self.compat not in ("meant", "released"):
            raise ValueError(f"data.compat must be meant or released, not {self.compat!r}")
        released = self.compat == "released"
        self.seen = View(
            self.view,
            self.size,
            self.cutoff,
            None if released else self.filter_size,
            self.clip,
            self.augmentation,
            1 if released else 9,
        )
        self.depth = DepthMaps(self.depth_model, self.depth_revision) if self.view == "depth" else None
        self.read = Reader(self.depth)
        self.class_list: ClassList = read_classes(self.classes)
        self.source_names = ["train"]
        self._sets: ClassSets | None = None
        self._train_loader: PositionLoader | None = None
        self._slot: int | None = None  # where the next training loader begins

    # ------------------------------------------------------------------ the pictures

    def find_data(self) -> None:
        """Finds and checks all pictures, before a network is built.

        Raises:
            FileNotFoundError: a missing folder; names its option.
            ValueError: a class without pictures, an unknown folder, a picture that cannot be read or is too small, or
                pictures that are in the training set and in a test set.
        """
        if self._sets is not None:
            return
        folders = {"data.train": self.train} | {f"data.tests.{name}": folder for name, folder in self.tests.items()}
        if self.val is not None:
            folders["data.val"] = self.val
        listed = {option: find(folder, self.class_list, option) for option, folder in folders.items()}
        check_counts(listed["data.train"], self.class_list, "data.train")
        if self.per_class is not None:  # before the rest is decoded for nothing
            listed["data.train"] = first_per_class(listed["data.train"], self.per_class, self.seed, self.class_list)
        if self.depth is not None:
            _ = self.depth.source
        sets = {
            option: checked(pictures, self.seen.check, option, self.num_workers + 1)
            for option, pictures in listed.items()
        }
        train, val = sets.pop("data.train"), sets.pop("data.val", None)
        for option, pictures in sets.items():
            refuse_shared(train, pictures, option)
        if val is not None:
            refuse_shared(train, val, "data.val")
        elif self.held_out > 0:
            if self.per_class == 1:
                raise ValueError("data.per_class must be at least 2 where a part of each class is held out")
            train, val = held_out(train, self.held_out, self.seed)
        self._sets = ClassSets(train, val, {name: sets[f"data.tests.{name}"] for name in self.tests})

    @property
    def sets(self) -> ClassSets:
        """The checked pictures."""
        self.find_data()
        assert self._sets is not None
        return self._sets

    def prepare_data(self) -> None:
        """Makes the depth maps that are missing."""
        if self.depth is not None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            named = {"data.train": self.sets.train, **{f"data.tests.{n}": p for n, p in self.sets.tests.items()}}
            if self.sets.val is not None:
                named["data.val"] = self.sets.val
            for option, pictures in named.items():
                self.depth.make(pictures, device, option)

    def setup(self, stage: str | None = None) -> None:
        """Checks the pictures, where nobody has yet; see :meth:`find_data`."""
        self.find_data()

    def validate_experiment(self, experiment: Any) -> None:
        """Refuses a last step of an epoch with fewer than two pictures in a micro-batch, which batch norm needs.

        Raises:
            ValueError: names the options.
        """
        trainer, count = experiment.trainer, len(self.sets.train)
        last, parts = count % self.batch_size or self.batch_size, trainer.world_size * trainer.accumulate_grad_batches
        if last < 2 * parts:
            raise ValueError(
                f"the last of the steps of an epoch has {last} of the {count} training pictures, and each of its "
                f"{parts} micro-batches needs at least 2: change batch_size"
            )

    def description(self) -> dict[str, Any]:
        """What of the data decides a score, for the fingerprint."""
        sets = self.sets
        named = {"train": sets.train, "val": sets.val}
        keys = [[entry.key, *entry.folders] for entry in self.class_list.classes]
        return {
            "classes": len(keys),
            "classes_sha256": hashlib.sha256(json.dumps(keys).encode()).hexdigest(),
            **{name: None if pictures is None else pictures.description for name, pictures in named.items()},
            "tests": {name: pictures.description for name, pictures in sets.tests.items()},
            "view": asdict(self.seen),
            "depth": None if self.depth is None else self.depth.source.reference.to_dict(),
            "per_class": self.per_class,
            "held_out": self.held_out if self.val is None else None,
            "batch_size": self.batch_size,
            "data_seed": self.seed,
            "data_compat": self.compat,
        }

    # ------------------------------------------------------------------ batches

    def training_stream(self) -> TrainingStream:
        """The micro-batches of this rank."""
        accumulate = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        world_size, rank = (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
        return TrainingStream(
            self.sets.train, self.seen, self.read, self.seed, self.batch_size, accumulate, world_size, rank
        )

    def train_dataloader(self) -> PositionLoader:
        """Micro-batches of this rank, from the position that a checkpoint restores."""
        stream = self.training_stream()
        limit = batches_per_pass(self.trainer, len(stream))
        self._train_loader = PositionLoader(stream, self.num_workers, self._pins(), limit, self._slot)
        self._slot = None  # the next fit begins at slot 0
        return self._train_loader

    def test_loader(self, pictures: Pictures) -> EvaluationLoader:
        """This rank's share of a validation or test set."""
        rows = ranks.share(len(pictures))
        stream = TestStream(pictures, self.seen, self.read, self.seed, self.eval_batch_size, rows)
        return EvaluationLoader(stream, self.num_workers, self._pins())

    def _pins(self) -> bool:
        return torch.cuda.is_available() if self.pin_memory is None else self.pin_memory

    # ------------------------------------------------------------------ going on

    def state_dict(self) -> dict[str, Any]:
        """The position, and hashes of the pictures that decide the rest of the run."""
        slot = 0 if self._train_loader is None else self._train_loader.slot
        return {"slot": slot, "pictures": self._hashes()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position; refuses other pictures.

        Raises:
            ValueError: names the set that has changed.
        """
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return  # only a fit goes on
        now = self._hashes()
        changed = sorted(name for name, digest in state["pictures"].items() if now.get(name) != digest)
        if changed:
            raise ValueError(
                f"the pictures of data.{' and data.'.join(changed)} are not those that the checkpoint was trained on: "
                "bring them back, or begin a new run"
            )
        self._slot = int(state["slot"])
        if self._train_loader is not None:  # a run with max_epochs has built it before
            self._train_loader.load_state_dict({"slot": self._slot})

    def restore_counters(self, checkpoint: dict[str, Any]) -> None:
        """Counts the micro-batches of a whole checkpoint again, before Lightning reads them; see :func:`count_anew`."""
        if self.trainer is not None and "loops" in checkpoint:
            count_anew(checkpoint["loops"]["fit_loop"], self.batch_size // self.trainer.accumulate_grad_batches)

    def _hashes(self) -> dict[str, str]:
        named = {"train": self.sets.train, **({} if self.sets.val is None else {"val": self.sets.val})}
        return {name: str(pictures.description["sha256"]) for name, pictures in named.items()}
