"""Augmentations are callbacks: a stored stream behind a noise gate (CutMix), or a transform of every batch.

A further training set (MixedSet) is a stored stream at all noise levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch

from t2ikit.augment.cutmix import SETTINGS
from t2ikit.batch import Batch
from t2ikit.data.datamodule import DataModule
from t2ikit.diffusion import gamma_schedule
from t2ikit.module import TextToImage
from t2ikit.records.fits import check_cutmix


class AugmentationCallback(L.Callback):
    """Base of every augmentation. Override ``augment`` (online) or ``register`` (anything else).

    Attributes:
        stream: name of the stored stream that it adds, where it adds one: its losses are logged under it.

    Random numbers come from ``t2ikit.rng`` with ``batch.slot``, so that a resumed run takes the same.

    Example:
        >>> class MirrorText(AugmentationCallback):
        ...     def augment(self, batch):
        ...         return batch
    """

    stream: str | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, TextToImage):
            raise ValueError(f"{type(self).__name__} augments TextToImage, not {type(pl_module).__name__}")
        self.register(trainer.datamodule, pl_module)

    def register(self, data: DataModule, module: TextToImage) -> None:
        """Called once, before the loaders are built. By default registers ``augment`` as a batch transform.

        Args:
            data: ``data.add_stream(name, folder, quantile, probability)`` adds a stored stream behind a gate.
            module: ``module.add_batch_transform(function)`` adds an online transform.
        """
        if type(self).augment is AugmentationCallback.augment:
            raise ValueError(f"{type(self).__name__} must override `augment` or `register`")
        module.add_batch_transform(self.augment)

    def augment(self, batch: Batch) -> Batch | tuple[Batch, ...]:
        """A new batch (or several, each computed on its own) from a training batch on the device; never in place."""
        return batch

    def unlike_steps(self) -> Sequence[int]:
        """Numbers of steps that together cost what all steps do on average, the dearest among them.

        ``t2ikit plan`` counts them, after ``register``. One is enough where all steps have the same shapes.
        """
        return (0,)


class CutMix(AugmentationCallback):
    """Shows prepared CutMix images at noisy times only (Algorithm 1 of "How far can we go with ImageNet").

    A slot with t > tau takes a CutMix record with probability p. The gate is kept in log-SNR, so that it means the same
    noise under another schedule: ``tau`` is read on the schedule named by ``schedule``.

    Args:
        setting: which prepared set: cm2, cm4, cm9, cm16 or cmall.
        tau: threshold in t of ``schedule``, in [0, 1].
        p: probability of a CutMix record above the threshold, in [0, 1].
        schedule: gamma schedule on which ``tau`` is given.
        folder: the encoded set below the data root; default ``train_<setting>``.

    Raises:
        ValueError: an unknown setting, tau or p outside [0, 1].
    """

    def __init__(
        self,
        setting: str = "cmall",
        tau: float = 0.4,
        p: float = 0.5,
        schedule: str = "linear",
        folder: str | None = None,
    ) -> None:
        super().__init__()
        if setting not in SETTINGS:
            raise ValueError(f"callbacks.cutmix: setting must be one of {', '.join(SETTINGS)}, got {setting!r}")
        for name, value in (("tau", tau), ("p", p)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"callbacks.cutmix: {name} must lie in [0, 1], got {value}")
        self.setting = self.stream = setting
        self.folder = folder if folder is not None else f"train_{setting}"
        self.p = p
        gamma = gamma_schedule(schedule)(torch.tensor(tau, dtype=torch.float64))
        self.log_snr = float(torch.log(gamma) - torch.log1p(-gamma))

    def validate_experiment(self, experiment: Any) -> None:
        """Refuses a setting that the embedded data set does not build."""
        built = getattr(experiment.data, "settings", None)
        if built is not None and self.folder == f"train_{self.setting}" and self.setting not in built:
            raise ValueError(f"setting {self.setting} is not built; add it: --data.settings [{self.setting}]")

    def register(self, data: DataModule, module: TextToImage) -> None:
        if data.bucket_count > 1:
            raise ValueError(
                "callbacks.cutmix: the data has aspect buckets, and the settings of CutMix are defined on square "
                "images of one size: leave it out (--callbacks.cutmix null)"
            )
        try:
            mixed = data.record_set(self.folder)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"callbacks.cutmix: there is no prepared set {data.folder / self.folder}. Make it from the images of "
                f"the data set, with the encoders that train/ was encoded with:\n"
                f"  t2ikit prepare cutmix --setting {self.setting} --out {data.folder}\n"
                f"  t2ikit prepare encode --out {data.folder} --autoencoder ... --text-encoder ..."
            ) from error
        data.add_stream(self.setting, self.folder, module.process.quantile(self.log_snr), self.p)
        check_cutmix(data.record_set("train"), mixed, self.setting)


class MixedSet(AugmentationCallback):
    """Mixes a further prepared set with the training set, at all noise levels: ImageNet and COCO.

    Args:
        folder: the encoded set below the data root, such as ``train_coco`` of ``t2ikit prepare images --into``.
        share: of the samples that come from it, in [0, 1]; by default its share of all records, so that every image of
            both sets comes equally often.
        name: of the stream in the log; by default the folder without ``train_``.

    Raises:
        ValueError: a share outside [0, 1].
    """

    def __init__(self, folder: str, share: float | None = None, name: str | None = None) -> None:
        super().__init__()
        if share is not None and not 0.0 <= share <= 1.0:
            raise ValueError(f"share of {folder}: must lie in [0, 1], got {share}")
        self.folder = folder
        self.share = share
        self.name = self.stream = name if name is not None else folder.removeprefix("train_")

    def register(self, data: DataModule, module: TextToImage) -> None:
        try:
            count = sum(map(len, data.record_sets(self.folder)))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no prepared set {data.folder / self.folder} to mix with train. Make it with the size and "
                f"the encoders of train/:\n"
                f"  t2ikit prepare images --source FOLDER --into {self.folder} --out {data.folder}\n"
                f"  t2ikit prepare captions --sets {self.folder} --out {data.folder}\n"
                f"  t2ikit prepare encode --out {data.folder}"
            ) from error
        share = self.share
        if share is None:
            share = count / (count + sum(map(len, data.record_sets("train"))))
        data.add_stream(self.name, self.folder, 0.0, share)
