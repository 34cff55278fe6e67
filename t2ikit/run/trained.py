"""A trained model: checkpoint, resolved experiment and manifest of its training data in one object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from t2ikit.checkpoints import load_weights, read_weights
from t2ikit.checkpoints.denoiser import Weights, stored_experiment, stored_weights
from t2ikit.checkpoints.runs import find_checkpoint, run_folder_of
from t2ikit.config.class_nodes import check_component
from t2ikit.config.compose import ConfigError, merge
from t2ikit.config.origins import Origins
from t2ikit.data.resume import training_manifest
from t2ikit.encoders.text import TextEncoder, load_encoder
from t2ikit.module import TextToImage
from t2ikit.pretrained import sha256_of
from t2ikit.records.fits import OWN_TEXT_ENCODER
from t2ikit.records.manifest import Manifest
from t2ikit.run.experiment import ORIGINS


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
        origins: which modules its class paths may name.
    """

    module: TextToImage
    manifest: Manifest
    config: dict[str, Any]
    sha256: str
    checkpoint: Path
    step: int
    weights: str
    origins: Origins = ORIGINS

    def text_encoders(
        self, names: Sequence[str] | None = None, device: str | torch.device = "cpu"
    ) -> Iterator[TextEncoder]:
        """The text encoders that the training data was encoded with; their weights are compared with those.

        Args:
            names: folder or repository of each, in their order; by default the recorded ones, which may be in the
                experiment's data root.
            device: where they run.

        Yields:
            One after the other, each loaded when it is asked for.

        Raises:
            FileNotFoundError: there is no such encoder; names ``--text-encoder``.
            ValueError: the data has none, another number of names is given, or the weights of one are others.
        """
        references = self.manifest.text_encoders
        if not references:
            raise ValueError(f"{self.checkpoint}: its training data had no text states")
        if names is not None and len(names) != len(references):
            raise ValueError(
                f"--text-encoder is given {len(names)} times, the training data has {len(references)} text encoders: "
                f"name each, in the order of {', '.join(reference.name for reference in references)}"
            )
        root = self._encoder_root() if names is None else None
        remedy = "give the one of the training data with --text-encoder"
        for index, reference in enumerate(references):
            name = None if names is None else names[index]
            try:
                yield load_encoder(reference, root, remedy, name, device, self.manifest.token_limit)
            except FileNotFoundError as error:
                searched = f", nor in the data root {root}" if root else ""
                raise FileNotFoundError(
                    f"no text encoder {name or reference.name}{searched}: give the folder or the repository of the one "
                    f"that the training data was encoded with (SHA-256 {reference.sha256[:12]}...) with --text-encoder"
                ) from error

    def _encoder_root(self) -> Path | None:
        """The run folder where it keeps the encoder that was built for its data, else the data root."""
        run_folder = run_folder_of(self.checkpoint)
        return run_folder if (run_folder / OWN_TEXT_ENCODER).is_dir() else self._data_root()

    def _data_root(self) -> Path | None:
        """The data root of the experiment. Its data module says it, since ShapesData derives one from its options."""
        try:
            data = check_component("data", self.config.get("data"), LightningDataModule, origins=self.origins).build()
        except ConfigError:  # a class of the user's own that cannot be imported: the encoder may be found by its name
            return None
        folder = getattr(data, "folder", None)
        return None if folder is None else Path(folder)


def load_trained(
    checkpoint: str | Path,
    weights: Weights = "ema",
    autoencoder: str | None = None,
    decay: float | None = None,
    origins: Origins = ORIGINS,
) -> TrainedModel:
    """Rebuilds the module of a checkpoint; needs no data set.

    Args:
        checkpoint: a ``step-*.ckpt``, wherever it lies, or a run folder, whose newest complete checkpoint is taken.
        weights: "ema" for the averages of the EMA callback, "raw" for the weights themselves, "auto" for the averages
            where there are any, as a snapshot of the run takes them.
        autoencoder: folder or repository of the autoencoder, in place of the experiment's.
        decay: which profile of the averages; None takes the first.
        origins: which modules its class paths may name.

    Raises:
        ConfigError: no checkpoint, no experiment beside it, or one that cannot be built.
        ValueError: the file is not a checkpoint of a text-to-image run, or holds no averages; says what to do.
    """
    path = find_checkpoint(Path(checkpoint), "checkpoint")
    content = read_weights(path, mmap=True)
    config = stored_experiment(content, path)
    stored = training_manifest(content)
    if stored is None or "global_step" not in content:
        raise ValueError(f"checkpoint {path}: not a checkpoint of a text-to-image run (`t2ikit run`)")
    module = _build(config, path, autoencoder, origins)
    module.on_load_checkpoint(content)
    manifest = Manifest.from_json(stored)
    module.check_manifest(manifest)
    state, label = stored_weights(content, path, weights, decay)
    load_weights(module.denoiser, state)
    module.eval().requires_grad_(False)
    return TrainedModel(module, manifest, config, sha256_of(path), path, int(content["global_step"]), label, origins)


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


def _build(config: dict[str, Any], path: Path, autoencoder: str | None, origins: Origins) -> TextToImage:
    node = config["model"]
    if autoencoder is not None:
        space = {"autoencoder": autoencoder, "revision": None}
        node = merge(node, {"init_args": {"space": {"init_args": space}}})
    try:
        module = check_component("model", node, LightningModule, origins=origins).build()
    except ConfigError as error:
        if autoencoder is None or "autoencoder" not in str(error):
            raise ConfigError(f"checkpoint {path}: {error}") from error
        raise ConfigError(f"--autoencoder {autoencoder}: the model of this checkpoint has none ({error})") from error
    if not isinstance(module, TextToImage):
        raise ConfigError(f"model: {type(module).__name__} is no t2ikit.module.TextToImage, which samples images")
    return module
