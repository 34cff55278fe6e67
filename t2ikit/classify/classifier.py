"""ImageClassifier: a LightningModule that learns classes of pictures, and is tested at the end of its run.

    ClassBatch --CutMix--> pictures, soft labels --network--> loss_B --> StepOutput

The rest of a run (averages, checkpoints, guard, logs, resume) is the same as of any other module. The validation of an
epoch follows its last step, and the tests follow the last epoch; a run that was killed before them catches up on them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torchvision.transforms import v2

from t2ikit import ranks, rng
from t2ikit.batch import StepOutput
from t2ikit.classify.class_folders import ClassFolders
from t2ikit.classify.classes import read_classes
from t2ikit.classify.networks import build_network
from t2ikit.classify.protocol import Judged, Select, Selection, judge, training_losses
from t2ikit.classify.results import ClassificationResults, write_results
from t2ikit.classify.streams import ClassBatch
from t2ikit.classify.views import Compat
from t2ikit.learner import Learner
from t2ikit.optim import AdamW, EpochCosine, LearningRate, OptimizerFactory


class ImageClassifier(Learner, L.LightningModule):
    """Trains one network on one view of pictures, selects its weights, and tests them.

    Args:
        network: its name, one of ``t2ikit.classify.networks.NETWORKS``.
        classes: those of the data: "tiny200", "imagenet", or a file.
        size: pixels a side of what it is shown.
        optimizer: default Adam with a rate of 0.001.
        learning_rate: default the rule of the paper.
        cutmix: on every batch.
        select: which weights are tested: "lowest" validation loss of all epochs, or the "last" ones.
        compat: "meant", or "released": the learning rate counts too few steps an epoch, as the released program does.
        seed: key of the random numbers of a step.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(
        self,
        network: str = "resnet50",
        classes: str = "tiny200",
        size: int = 224,
        optimizer: OptimizerFactory | None = None,
        learning_rate: LearningRate | None = None,
        cutmix: bool = True,
        select: Select = "lowest",
        compat: Compat = "meant",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if compat not in ("meant", "released"):
            raise ValueError(f"model.compat must be meant or released, not {compat!r}")
        self.class_list = read_classes(classes)
        self.network_name, self.compat, self.seed = network, compat, seed
        self.classifier = build_network(network, len(self.class_list), size)
        self.optimizer_factory = optimizer if optimizer is not None else AdamW(1e-3, (0.9, 0.999), 1e-8, 0.0)
        self.learning_rate = learning_rate if learning_rate is not None else EpochCosine()
        self.mix = v2.CutMix(num_classes=len(self.class_list)) if cutmix else None
        self.selection = Selection(select)
        self.judged: dict[int, Judged] = {}

    @property
    def network(self) -> nn.Module:
        """The network that is trained, averaged and tested."""
        return self.classifier

    @property
    def data(self) -> ClassFolders:
        """The data module of the run."""
        data: ClassFolders = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    # ------------------------------------------------------------------ before the first step

    def validate_experiment(self, experiment: Any) -> None:
        """Refuses data that cannot select weights, or has other classes.

        Raises:
            ValueError: names the options.
        """
        data = experiment.data
        if not isinstance(data, ClassFolders):
            raise ValueError(f"ImageClassifier needs t2ikit.classify.ClassFolders as data, not {type(data).__name__}")
        if data.class_list.classes != self.class_list.classes:
            raise ValueError(f"classes are {self.class_list.source}, those of the data are {data.classes}")
        if self.selection.rule == "lowest" and data.val is None and data.held_out == 0:
            raise ValueError(
                "select: lowest needs a validation set: set data.val or data.held_out, or --model.select last"
            )
        if experiment.trainer.max_steps == -1 and experiment.trainer.max_epochs == -1:
            self.learning_rate.factor(1, math.inf)

    def logged_names(self, experiment: Any) -> Collection[str]:
        """What :meth:`on_train_batch_end` logs at the end of an epoch."""
        data = experiment.data
        return ("val/loss", "val/accuracy") if data.val is not None or data.held_out > 0 else ()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self.trainer.estimated_stepping_batches
        if self.compat == "released":
            total = self._epochs(total) * (len(self.data.sets.train) // self.data.batch_size)
        return self.scheduled(total)  # type: ignore[return-value]

    def _epochs(self, steps: float) -> float:
        return steps / self.data.training_stream().steps

    def on_train_start(self) -> None:
        self.renew_rates()
        step = self.trainer.global_step
        if self._ends_epoch(step) and step not in self.selection.losses:
            self._validate(step)  # the run was killed between the checkpoint of an epoch and its validation

    # ------------------------------------------------------------------ a step

    def training_step(self, batch: ClassBatch, batch_idx: int) -> dict[str, Any]:
        seed = rng.derived_seed(self.seed, "classifier step", batch.position)  # a resumed run takes the same numbers
        loss_B = training_losses(self.classifier, self.mix, batch.images, batch.labels, seed)
        return self.step_result(loss_B.mean(), StepOutput(loss_B.detach(), {"loss": loss_B.detach()}, (batch,)))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = self.trainer.global_step
        if self._ends_epoch(step) and step not in self.selection.losses and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._validate(step)

    def _ends_epoch(self, step: int) -> bool:
        """Whether this many finished steps are whole epochs: none are, in the micro-batches of the first step."""
        return step > 0 and step % self.data.training_stream().steps == 0

    # ------------------------------------------------------------------ validation and tests

    def _judge(self, pictures: Any) -> Judged:
        """The present weights of the network on a set, on all ranks."""
        self._share_buffers()
        return judge(self.classifier, self.data.test_loader(pictures), len(self.class_list), self.device)

    def _validate(self, step: int) -> None:
        """Judges the averaged weights on the validation set, logs that, and keeps them if they are the best."""
        val = self.data.sets.val
        if val is None:
            return
        with self.averaged():
            judged = self._judge(val)
            self.selection.add(step, judged.loss, self.classifier)
        self.judged[step] = judged
        self.run_log.log(self.trainer, {"val/loss": judged.loss, "val/accuracy": judged.accuracy}, step)

    def _share_buffers(self) -> None:
        """Every rank takes the running means of the first one: under DDP each keeps those of its own pictures."""
        if ranks.count() > 1:
            for buffer in self.classifier.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_train_end(self) -> None:
        """Tests the selected weights, and writes the results; the present weights stay as they are.

        Raises:
            FloatingPointError: no validation loss is finite.
        """
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        step = self.trainer.global_step
        if step not in self.selection.losses:  # a run that ends inside an epoch
            self._validate(step)
        self.selection.refuse_none()
        selected = step if self.selection.step is None else self.selection.step
        with self._selected():
            tests = {name: self._judge(pictures) for name, pictures in self.data.sets.tests.items()}
            val = self.data.sets.val
            judged = self.judged.get(selected) or (None if val is None else self._judge(val))
        scores = {name: judged.score(self.class_list) for name, judged in tests.items()}
        if scores:
            values = {f"test/{name}/accuracy": score.accuracy for name, score in scores.items()}
            self.run_log.log(self.trainer, values, step)
        rule = {"rule": self.selection.rule, "step": selected, "epoch": int(self._epochs(selected))}
        validation = (
            {} if judged is None else {"loss": judged.loss, "accuracy": judged.accuracy, "images": sum(judged.counts)}
        )
        results = ClassificationResults(self.fingerprint(), rule, scores, validation)
        ranks.from_first(lambda: write_results(self.trainer.default_root_dir, results))

    @contextmanager
    def _selected(self) -> Iterator[None]:
        """The network carries the selected weights inside the block, and its own again after it, bit for bit."""
        if self.selection.weights is None:
            with self.averaged():
                yield
            return
        present = {name: value.detach().clone() for name, value in self.classifier.state_dict().items()}
        self.classifier.load_state_dict(self.selection.weights)
        try:
            yield
        finally:
            self.classifier.load_state_dict(present)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the scores, JSON-able."""
        trainer = self.trainer
        averages = None if self.averages is None else self.averages.decays[0]
        recipe = {
            "optimizer": [type(self.optimizer_factory).__name__, vars(self.optimizer_factory)],
            "learning_rate": [type(self.learning_rate).__name__, vars(self.learning_rate)],
            "epochs": self._epochs(float(trainer.estimated_stepping_batches)),
            "clip": trainer.gradient_clip_val,
            "precision": str(trainer.precision),
            "cutmix": self.mix is not None,
            "ema": averages,
        }
        described = {
            "network": self.network_name,
            "recipe": recipe,
            "select": self.selection.rule,
            "seed": self.seed,
            "compat": self.compat,
            **self.data.description(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(described))
        return plain

    # ------------------------------------------------------------------ checkpoint

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["selection"] = self.selection.state()
        checkpoint["judged"] = {step: asdict(judged) for step, judged in self.judged.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, ClassFolders):  # its own state comes too early: Lightning's counters are restored after it
            data.restore_counters(checkpoint)
        if "selection" in checkpoint:
            self.selection.restore(checkpoint["selection"])
            self.judged = {int(step): Judged(**judged) for step, judged in checkpoint["judged"].items()}
