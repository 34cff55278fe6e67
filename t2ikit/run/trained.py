"""A trained model: checkpoint, resolved experiment and manifest of its training data in one object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from t2ikit.batch import Texts
from t2ikit.checkpoints import load_weights, read_weights
from t2ikit.checkpoints.denoiser import Weights, stored_experiment, stored_weights
from t2ikit.checkpoints.exported import parts_of, text_encoder_name
from t2ikit.checkpoints.runs import find_trained, run_folder_of
from t2ikit.config.class_nodes import check_component
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import merge
from t2ikit.config.origins import Origins
from t2ikit.config.secrets import trust_names
from t2ikit.data.resume import training_manifest
from t2ikit.diffusion.processes import Threshold
from t2ikit.diffusion.samplers import find_solver
from t2ikit.diffusion.solvers import Solver
from t2ikit.encoders.limits import with_remarks
from t2ikit.encoders.text import TextEncoder, encode_prompts, encoder_source, load_encoder
from t2ikit.evaluation.sampling import sample_batches
from t2ikit.evaluation.settings import Sampling
from t2ikit.module import TextToImage
from t2ikit.pictures import Pictures
from t2ikit.pretrained import EncoderReference, sha256_of
from t2ikit.records.fits import OWN_TEXT_ENCODER
from t2ikit.records.manifest import Manifest
from t2ikit.run.experiment import ORIGINS, origins_of


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """A model that is ready to sample, and where it comes from; what ``t2ikit.load`` returns.

    Example:
        >>> model = t2ikit.load("runs/quickstart")                              # doctest: +SKIP
        >>> model.sample("a large red circle", count=4)[0].save("circle.png")   # doctest: +SKIP

    Attributes:
        module: in evaluation mode, without gradients; on the CPU unless ``t2ikit.load`` moves it.
        manifest: of the data that it was trained on.
        config: the resolved experiment.
        sha256: of the checkpoint file.
        checkpoint: the file.
        step: optimizer steps of the checkpoint.
        weights: which ones the module holds: "ema 0.9999" or "raw".
        origins: which modules its class paths may name.
        encoder_names: folders or repositories of the text encoders, in place of the recorded ones.
        loaded_encoders: those that are loaded already, by their place among the text encoders.
    """

    module: TextToImage
    manifest: Manifest
    config: dict[str, Any]
    sha256: str
    checkpoint: Path
    step: int
    weights: str
    origins: Origins = ORIGINS
    encoder_names: tuple[str, ...] | None = None
    loaded_encoders: dict[int, TextEncoder] = field(default_factory=dict, compare=False)
    _states: dict[str, Texts] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        network = type(self.module.denoiser).__name__
        return f"<{network} of step {self.step}, {self.weights} weights, {self.checkpoint}>"

    def sample(
        self,
        prompt: str | Sequence[str],
        *,
        count: int = 1,
        seed: int = 0,
        steps: int = 50,
        guidance: float = 2.0,
        method: str | Solver | None = None,
        negative: str | Sequence[str] = "",
        size: tuple[int, int] | None = None,
        batch_size: int = 16,
        threshold: Threshold | None = None,
    ) -> Pictures:
        """Images of prompts, the same as those of ``t2ikit sample`` with the same options.

        Args:
            prompt: one or several.
            count: images of each.
            seed: of the noise; image i depends on it, on i and on its prompt alone.
            steps: of the sampler.
            guidance: w of (1 + w) cond - w uncond.
            method: sampler: ddim, ddpm, euler, heun, dpmpp_2m, or a Solver; None takes that of the process, euler for a
                rectified flow and ddim for the others.
            negative: prompt that guidance moves away from, instead of the empty one; or one for each prompt.
            size: (H, W) of x_0, one that the denoiser takes beside its ``input_size``.
            batch_size: images sampled at once.
            threshold: bound on the estimates of x_0: ("clamp", c), ("dynamic", q), ("per_channel", q) or "none"; None
                takes that of the image space.

        Returns:
            A list of PIL images, which a notebook shows as a grid.

        Raises:
            FileNotFoundError: the text encoder or the autoencoder is missing.
            ValueError: an option that cannot be, and what to change.
        """
        if count < 1 or steps < 1 or batch_size < 1:
            raise ValueError(f"count, steps and batch_size are at least 1; got {count}, {steps} and {batch_size}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        method = self.module.process.solver if method is None else method
        if not isinstance(negative, str):
            if len(negative) != len(prompts):
                raise ValueError(
                    f"negative: one for all prompts or one for each of the {len(prompts)}; got {len(negative)}"
                )
            negative = [text for text in negative for _ in range(count)]
        sampling = Sampling(steps, method, guidance, seed, batch_size, size=size, threshold=threshold)
        rows = [text for text in prompts for _ in range(count)]
        images = [image for _, batch in self.images(rows, sampling, negative) for image in batch]
        return Pictures(images, columns=count if count > 1 and len(prompts) > 1 else None)

    def images(
        self, prompts: Sequence[str], sampling: Sampling, negative: str | Sequence[str] = ""
    ) -> Iterator[tuple[range, Tensor]]:
        """Image i of ``prompts[i]``, batch by batch, on the device of the module; what is missing is refused at once.

        Args:
            prompts: one an image.
            sampling: how.
            negative: one for all images, or one for each.

        Returns:
            The indices of a batch and its images, [B, 3, H, W] uint8 on the CPU, as they are sampled.

        Raises:
            ValueError: as :meth:`sample`.
        """
        negatives = [negative] if isinstance(negative, str) else list(dict.fromkeys(negative))
        rows, uncond = self.states([*prompts, *negatives], sampling, next(filter(None, negatives), ""))
        rows = rows[: len(prompts)]
        each: Texts | list[Texts] = uncond if len(negatives) == 1 else [self._states[text] for text in negative]
        indices = range(len(prompts))
        batches = [indices[start : start + sampling.batch_size] for start in indices[:: sampling.batch_size]]
        return sample_batches(self.module, rows, sampling, batches, "sampling", each)

    def states(self, prompts: Sequence[str], sampling: Sampling, negative: str = "") -> tuple[list[Texts], Texts]:
        """The text states of every prompt and of the negative one; what sampling lacks is refused before the work.

        Raises:
            ValueError: as :meth:`sample`.
        """
        if negative and sampling.guidance == 0.0:
            raise ValueError("a negative prompt acts through guidance: give guidance another value than 0")
        find_solver(sampling.method)
        sampling.shape(self.module.denoiser)
        self.module.space.load()
        self._encode([*prompts, negative, ""])
        self.module.unconditional = self._states[""]
        return [self._states[prompt] for prompt in prompts], self._states[negative]

    def _encode(self, prompts: Sequence[str]) -> None:
        """Keeps the states of new prompts, one row on the CPU; each by itself, so that the others cannot change it."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
        if new:
            encoders = with_remarks(self.text_encoders(self.module.device), new)
            self._states.update(zip(new, encode_prompts(encoders, new, batch_size=1), strict=True))

    def text_encoders(self, device: str | torch.device = "cpu") -> Iterator[TextEncoder]:
        """The text encoders that the training data was encoded with; their weights are compared with those.

        The recorded ones may be in the run folder or in the experiment's data root.

        Args:
            device: where they run.

        Yields:
            One after the other, each loaded when it is asked for.

        Raises:
            FileNotFoundError: there is no such encoder; names ``--text-encoder``.
            ValueError: the data has none, another number of names is given, or the weights of one are others.
        """
        root, references = self._encoder_root(), self._references()
        remedy = "give the one of the training data with --text-encoder"
        for index, reference in enumerate(references):
            if index in self.loaded_encoders:
                yield self.loaded_encoders[index]
                continue
            name = self._encoder_name(index)
            try:
                yield load_encoder(reference, root, remedy, name, device, self.manifest.token_limit)
            except FileNotFoundError as error:
                searched = f", nor in the data root {root}" if root else ""
                known = f" (SHA-256 {reference.sha256[:12]}...)" if reference.sha256 else ""
                raise FileNotFoundError(
                    f"no text encoder {name or reference.name}{searched}: give the folder or the repository of the one "
                    f"that the training data was encoded with{known} with --text-encoder"
                ) from error

    def encoder_sources(self) -> Iterator[tuple[EncoderReference, str, str | None]]:
        """Of every text encoder: what is recorded, and the folder or repository, with its revision, that is loaded."""
        root = self._encoder_root()
        for index, reference in enumerate(self._references()):
            yield reference, *encoder_source(reference, root, self._encoder_name(index))

    def _references(self) -> tuple[EncoderReference, ...]:
        """The recorded text encoders.

        Raises:
            ValueError: there are none, or other names are given than for each of them.
        """
        references, names = self.manifest.text_encoders, self.encoder_names
        if not references:
            raise ValueError(f"{self.checkpoint}: its training data had no text states")
        if names is not None and len(names) != len(references):
            raise ValueError(
                f"--text-encoder is given {len(names)} times, the training data has {len(references)} text encoders: "
                f"name each, in the order of {', '.join(reference.name for reference in references)}"
            )
        return references

    def _encoder_name(self, index: int) -> str | None:
        """The folder or repository that was given for a text encoder, or that is included in an export."""
        if self.encoder_names is not None:
            return self.encoder_names[index]
        parts = parts_of(self.checkpoint)
        included = None if parts is None else parts / text_encoder_name(index)
        return str(included) if included is not None and included.is_dir() else None

    def _encoder_root(self) -> Path | None:
        """The run folder where it keeps the encoder that was built for its data, else the data root; None if named."""
        if self.encoder_names is not None:
            return None
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
    text_encoders: Sequence[str] | None = None,
) -> TrainedModel:
    """Rebuilds the module of a checkpoint; needs no data set.

    Args:
        checkpoint: see :func:`~t2ikit.checkpoints.runs.find_trained`.
        weights: "ema" for the averages of the EMA callback, "raw" for the weights themselves, "auto" for the averages
            where there are any, as a snapshot of the run takes them.
        autoencoder: folder or repository of the autoencoder, in place of the experiment's.
        decay: which profile of the averages; None takes the first.
        origins: which modules its class paths may name.
        text_encoders: folder or repository of each, in their order, in place of the recorded ones.

    Raises:
        ConfigError: no checkpoint, no experiment beside it, or one that cannot be built.
        ValueError: the file is not a checkpoint of a text-to-image run, or holds no averages; says what to do.
    """
    path = find_trained(Path(checkpoint), "checkpoint")
    content = read_weights(path, mmap=True)
    config = stored_experiment(content, path)
    stored = training_manifest(content)
    if stored is None or "global_step" not in content:
        raise ValueError(f"checkpoint {path}: not a checkpoint of a text-to-image run (`t2ikit run`)")
    parts = parts_of(path)
    if autoencoder is None and parts is not None and (parts / "vae").is_dir():
        autoencoder = str(parts / "vae")
    module = _build(config, path, autoencoder, origins)
    module.on_load_checkpoint(content)
    manifest = Manifest.from_json(stored)
    module.check_manifest(manifest)
    state, label = stored_weights(content, path, weights, decay)
    load_weights(module.denoiser, state)
    module.eval().requires_grad_(False)
    step, names = int(content["global_step"]), None if text_encoders is None else tuple(text_encoders)
    return TrainedModel(module, manifest, config, sha256_of(path), path, step, label, origins, names)


def load(
    source: str | Path,
    *,
    weights: Weights = "ema",
    device: str | None = None,
    decay: float | None = None,
    text_encoder: str | Sequence[str] | None = None,
    autoencoder: str | None = None,
    trust: Sequence[str] = (),
) -> TrainedModel:
    """A trained model, ready to sample: ``t2ikit.load("runs/quickstart").sample("a large red circle")``.

    Args:
        source: a run folder, a stage of one, the folder of an experiment's runs (the newest is taken), a checkpoint
            file, or what ``t2ikit export`` has written, a folder or a file.
        weights: "ema" for the averaged weights, "raw" for those of the last step, "auto" for the averages where there
            are any.
        device: "cpu", "cuda", "cuda:1", ...; by default a GPU if there is one.
        decay: which profile of the averages; None takes the first.
        text_encoder: folder or repository of the text encoder of the training data, if it has moved; of several, each.
        autoencoder: that of the autoencoder, if it has moved.
        trust: modules that the experiment may name though they are not ours.

    Raises:
        ConfigError: no such model, or one that cannot be built; says what to change.
        ValueError: the file is not a checkpoint of a text-to-image run, or holds no averages.
    """
    trust_names(trust)
    path = find_trained(Path(source), "checkpoint")
    place = find_device(device)
    encoders = [text_encoder] if isinstance(text_encoder, str) else text_encoder
    origins = origins_of(trusted=trust, checkpoint=path)
    trained = load_trained(path, weights, autoencoder, decay, origins, encoders)
    trained.module.to(place)
    return trained


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
