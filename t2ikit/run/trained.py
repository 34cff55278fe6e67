"""A trained model: checkpoint, resolved experiment and manifest of its training data in one object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from t2ikit.checkpoints import load_weights, read_weights
from t2ikit.checkpoints.runs import find_checkpoint, latest_config
from t2ikit.config.class_nodes import check_component
from t2ikit.config.compose import ConfigError, compose, merge
from t2ikit.data.resume import training_manifest
from t2ikit.encoders.text import TextEncoder, load_encoder
from t2ikit.module import TextToImage
from t2ikit.pretrained import sha256_of
from t2ikit.records.manifest import Manifest

Weights = Literal["ema", "raw", "auto"]
_DENOISER = "denoiser."


@dataclass(frozen=True)
class TrainedModel:
    """A model that is ready to sample, and where it comes from.

    Attributes:
        module: on the CPU, in evaluation mode, without gradients.
        manifest: of the data that it was trained on.
        config: the resolved experiment.
        sha256: of the checkpoint file.
        checkpoint: the file.
        step: optimizer steps of the checkpoint.
        weights: which ones the module holds: "ema 0.9999" or "raw".
    """

    module: TextToImage
    manifest: Manifest
    config: dict[str, Any]
    sha256: str
    checkpoint: Path
    step: int
    weights: str

    def text_encoder(self, name: str | None = None, device: str | torch.device = "cpu") -> TextEncoder:
        """The text encoder that the training data was encoded with; its weights are compared with those.

        Args:
            name: folder or repository; by default the recorded one, which may be in the experiment's data root.
            device: where it runs.

        Raises:
            FileNotFoundError: there is no such encoder; names ``--text-encoder``.
            ValueError: the data has none, or its weights are others.
        """
        reference = self.manifest.text_encoder
        if reference is None:
            raise ValueError(f"{self.checkpoint}: its training data had no text states")
        root = self._data_root() if name is None else None
        remedy = "give the one of the training data with --text-encoder"
        try:
            return load_encoder(reference, root, remedy, name, device)
        except FileNotFoundError as error:
            searched = f", nor in the data root {root}" if root else ""
            raise FileNotFoundError(
                f"no text encoder {name or reference.name}{searched}: give the folder or the repository of the one "
                f"that the training data was encoded with (SHA-256 {reference.sha256[:12]}...) with --text-encoder"
            ) from error

    def _data_root(self) -> Path | None:
        """The data root of the experiment. Its data module says it, since ShapesData derives one from its options."""
        try:
            data = check_component("data", self.config["data"], LightningDataModule).build()
        except ConfigError:  # a class of the user's own that cannot be imported: the encoder may be found by its name
            return None
        folder = getattr(data, "folder", None)
        return None if folder is None else Path(folder)


def load_trained(
    checkpoint: str | Path, weights: Weights = "ema", autoencoder: str | None = None, decay: float | None = None
) -> TrainedModel:
    """Rebuilds the module of a checkpoint; needs no data set.

    Args:
        checkpoint: a ``step-*.ckpt`` in its run folder, or the run folder, whose newest complete checkpoint is taken.
            The experiment is read from the run folder, the latest where a run was resumed.
        weights: "ema" for the averages of the EMA callback, "raw" for the weights themselves, "auto" for the averages
            where there are any, as a snapshot of the run takes them.
        autoencoder: folder or repository of the autoencoder, in place of the experiment's.
        decay: which profile of the averages; None takes the first.

    Raises:
        ConfigError: no checkpoint, no experiment beside it, or one that cannot be built.
        ValueError: the file is not a checkpoint of a text-to-image run, or holds no averages; says what to do.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights is one of {', '.join(get_args(Weights))}; got {weights!r}")
    path = find_checkpoint(Path(checkpoint), "checkpoint")
    if path.is_dir():
        raise ConfigError(
            f"checkpoint {path}: a folder of shards; make it one file first "
            f"(python -m lightning.pytorch.utilities.consolidate_checkpoint {path})"
        )
    config = compose(find_config(path))
    content = read_weights(path, mmap=True)
    stored = training_manifest(content)
    if stored is None or not {"state_dict", "global_step"} <= content.keys():
        raise ValueError(f"checkpoint {path}: not a checkpoint of a text-to-image run (`t2ikit run`)")
    module = _build(config, autoencoder)
    module.on_load_checkpoint(content)
    manifest = Manifest.from_json(stored)
    module.check_manifest(manifest)
    label = _load(module, content, weights, decay)
    module.eval().requires_grad_(False)
    return TrainedModel(module, manifest, config, sha256_of(path), path, int(content["global_step"]), label)


def find_config(checkpoint: Path) -> Path:
    """The latest resolved experiment of the run folder of a checkpoint (or beside the checkpoint).

    Raises:
        ConfigError: there is none.
    """
    for folder in (checkpoint.absolute().parent.parent, checkpoint.absolute().parent):
        config = latest_config(folder)
        if config.is_file():
            return config
    raise ConfigError(
        f"checkpoint {checkpoint}: no config.yaml of its run in {checkpoint.absolute().parent.parent}; leave it in its "
        "run folder (RUN/config.yaml, RUN/checkpoints/step-*.ckpt) or put config.yaml beside it"
    )


def find_device(name: str | None) -> torch.device:
    """The device of ``--device``; by default a GPU if there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device


def _build(config: dict[str, Any], autoencoder: str | None) -> TextToImage:
    node = config["model"]
    if autoencoder is not None:
        space = {"autoencoder": autoencoder, "revision": None}
        node = merge(node, {"init_args": {"space": {"init_args": space}}})
    try:
        module = check_component("model", node, LightningModule).build()
    except ConfigError as error:
        if autoencoder is None or "autoencoder" not in str(error):
            raise
        raise ConfigError(f"--autoencoder {autoencoder}: the model of this checkpoint has none ({error})") from error
    if not isinstance(module, TextToImage):
        raise ConfigError(f"model: {type(module).__name__} is no t2ikit.module.TextToImage, which samples images")
    return module


def _load(module: TextToImage, content: Mapping[str, Any], weights: Weights, decay: float | None) -> str:
    """The weights of the denoiser, with averages in place of what they average; returns which weights."""
    state: dict[str, Tensor] = {key.removeprefix(_DENOISER): value for key, value in content["state_dict"].items()}
    profiles = content.get("callbacks", {}).get("EMA", {}).get("profiles") or {}
    if weights == "ema" and not profiles:
        raise ValueError("this checkpoint holds no averaged weights (no EMA callback): sample with --weights raw")
    label = "raw"
    if weights != "raw" and profiles:
        profile = next(iter(profiles)) if decay is None else str(decay)
        if profile not in profiles:
            raise ValueError(f"this checkpoint has no averages of decay {decay}, only of {', '.join(profiles)}")
        state |= profiles[profile]
        label = f"ema {profile}"
    load_weights(module.denoiser, state)
    return label
