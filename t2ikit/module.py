"""TextToImage: the LightningModule. Wiring only; the mathematics live in ``denoisers`` and ``diffusion``.

    StoredBatch --on_after_batch_transfer--> Batch --batch transforms--> Batch, ... --objective--> Loss --> StepOutput

Every random number of a step is a pure function of (seed, purpose, global slot), so that gradient accumulation, more
ranks or a resumed run take the same numbers (``t2ikit.rng``). Dropout alone depends on how a batch is split: its masks
belong to a micro-batch.

Longer than other files: it is the one place where data, denoiser, objective, space, optimizer and checkpoint meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from t2ikit import rng
from t2ikit.batch import Batch, StepOutput, StoredBatch, Texts, each_text, joined
from t2ikit.checkpoints.start import Start, start_from, train_only
from t2ikit.data.datamodule import DataModule
from t2ikit.data.resume import training_manifest
from t2ikit.denoisers import Denoiser
from t2ikit.denoisers.autocast import CACHE_IS_SAFE
from t2ikit.denoisers.layers import evaluating
from t2ikit.diffusion import Denoising, Guidance, Objective, Process, sample
from t2ikit.diffusion.compiled import CompiledObjective
from t2ikit.diffusion.objectives import FIXED_SEED, fixed_t_loss
from t2ikit.diffusion.processes import Threshold
from t2ikit.diffusion.samplers import Condition, Contexts, encode
from t2ikit.diffusion.solvers import Solver
from t2ikit.diffusion.terms import Term
from t2ikit.encoders.autoencoders import ImageSpace, PixelSpace
from t2ikit.learner import Learner
from t2ikit.optim import Constant, Lamb, LearningRate, OptimizerFactory
from t2ikit.pretrained import state_sha256
from t2ikit.records.manifest import Manifest

VALIDATION_POSTERIOR = "validation posterior"
"""Key of the random numbers of the posterior in validation."""

BatchTransform = Callable[[Batch], "Batch | tuple[Batch, ...]"]


class TextToImage(Learner, L.LightningModule):
    """Trains one denoiser by one objective on one kind of image space.

    Args:
        denoiser: the network, e.g. ``t2ikit.denoisers.CADI``.
        objective: what is minimised, with its diffusion process; default ``Denoising()``.
        space: what a stored image is: ``PixelSpace`` or ``LatentSpace`` with its normalisation.
        optimizer: default ``Lamb()``.
        learning_rate: schedule of the learning rate over optimizer steps; default constant.
        start: weights that a fresh run starts from; None starts from scratch.
        trainable: parts of the denoiser, or patterns of parameter names, that are trained; None trains all.
        noise_bins: loss is logged in this many equal bins of t.
        seed: key of every random number of a step.
        compile: the training loss under ``torch.compile``, whole: null (off), "default", "reduce-overhead" (CUDA
            graphs), "max-autotune", or its options as a mapping, e.g. ``{backend: aot_eager}``; or "blocks": only the
            blocks of the network, of which equal ones are compiled once. Every text length is compiled once
            (``data.length_bucket`` makes them few). Validation and sampling are not compiled.

    Raises:
        ValueError: no noise bin, or an unknown ``compile``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective | None = None,
        space: ImageSpace | None = None,
        optimizer: OptimizerFactory | None = None,
        learning_rate: LearningRate | None = None,
        start: Start | None = None,
        trainable: list[str] | None = None,
        noise_bins: int = 10,
        seed: int = 0,
        compile: str | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if noise_bins < 1:
            raise ValueError(f"model.init_args.noise_bins must be at least 1, got {noise_bins}")
        self.denoiser = denoiser
        self.objective: Objective = objective if objective is not None else Denoising()
        self.space = space if space is not None else PixelSpace()
        self.compiled = None if compile is None else CompiledObjective(self.objective, compile)
        self.optimizer_factory = optimizer if optimizer is not None else Lamb()
        self.learning_rate = learning_rate if learning_rate is not None else Constant()
        self.start = start
        self.started_from: dict[str, str] | None = None
        if trainable is not None:
            train_only(denoiser, trainable)
        self._frozen_sha256: str | None = None
        self.noise_bins = noise_bins
        self.seed = seed
        self.manifest: Manifest | None = None
        self._transforms: list[BatchTransform] = []
        rates = (getattr(layer, "p", getattr(layer, "rate", 0.0)) for layer in denoiser.modules())
        self._drops = any(isinstance(rate, float) and rate > 0.0 for rate in rates)

    @property
    def process(self) -> Process:
        """The diffusion process, of the objective."""
        return self.objective.process

    @property
    def rng(self) -> rng.Keyed:
        """The keyed random numbers of the run."""
        return rng.Keyed(self.seed)

    @property
    def unconditional(self) -> Texts | None:
        """The encoding of the empty prompt by every text encoder, of the objective; one row."""
        return self.objective.unconditional

    @unconditional.setter
    def unconditional(self, text: Texts) -> None:
        self.objective.unconditional = text

    @property
    def network(self) -> Denoiser:
        """The denoiser."""
        return self.denoiser

    def evaluation_kit(self) -> TextToImage:
        """This module: snapshots sample with it."""
        return self

    @property
    def optimized(self) -> nn.Module:
        """What the optimizer sees: the denoiser, then the objective, whose parameters are trained beside it."""
        return nn.ModuleDict({"denoiser": self.denoiser, "objective": self.objective})

    # ------------------------------------------------------------------ the data's side

    def add_batch_transform(self, transform: BatchTransform) -> None:
        """Registers an online augmentation, applied to every training batch in the order of registration; once only."""
        if transform not in self._transforms:  # a callback registers in every fit
            self._transforms.append(transform)

    def setup(self, stage: str) -> None:
        """Takes the empty prompt from the data and refuses data that does not fit the model.

        Raises:
            ValueError: image shape, text width or kind of image differ, or the objective needs what data or denoiser
                lack; names the options.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError("TextToImage needs a data module: set `data` in the experiment")
        for manifest in reversed(data.manifests):  # that of the first bucket is kept
            self.check_manifest(manifest)
        self.check_needs(data.manifest)
        if self.objective.needs.arrays:
            data.read_arrays(self.objective.needs.arrays)
        if self.start is not None and stage == "fit" and self.trainer.ckpt_path is None:
            path, content = self.start.read()
            self.started_from = start_from(self.denoiser, self.start, path, content, self.origins)
            self._warn_of_other_encoders(self.start, path, training_manifest(content), data.manifest)
            self.trainer.print("starts from", ", ".join(filter(None, self.started_from.values())))
        empty = data.unconditional()
        self._check_pooled(empty)
        self.objective.check_texts(empty)
        self.unconditional = empty
        # A plugin of 16-bit weights would cast the stored batch as well, noise quantile and posterior included; the
        # denoiser casts what it needs, and the rest of a step is in fp32.
        plugin = self.trainer.precision_plugin
        plugin.convert_input = _unchanged  # type: ignore[method-assign]
        plugin.convert_module = partial(_narrowed, plugin.convert_module, self.objective)  # type: ignore[method-assign]

    def check_manifest(self, manifest: Manifest) -> None:
        """Refuses prepared data that does not fit denoiser and space; keeps the manifest for the checkpoint."""
        if manifest.kind != self.space.kind:
            raise ValueError(
                f"the prepared data holds {manifest.kind}, model.init_args.space ({type(self.space).__name__}) "
                f"expects {self.space.kind}: change model.init_args.space or prepare again with `t2ikit prepare encode "
                "--autoencoder`"
            )
        shape = tuple(manifest.image_shape[-3:])
        if shape not in self.denoiser.shapes:
            raise ValueError(
                f"the prepared images are {shape} [C, H, W], the denoiser takes "
                f"{' and '.join(map(str, self.denoiser.shapes))}: change its input_size, other_sizes and in_channels, "
                "or prepare with another --size"
            )
        if _widths(manifest.text_dim) != _widths(self.denoiser.text_dim):
            raise ValueError(
                f"the stored text states are {manifest.text_dim} wide, the denoiser takes {self.denoiser.text_dim}: "
                "set model.init_args.denoiser.init_args.text_dim, or prepare with another --text-encoder"
            )
        self.space.check(manifest.autoencoder)
        self.manifest = manifest

    @staticmethod
    def _warn_of_other_encoders(start: Start, path: Path, before: str | None, now: Manifest) -> None:
        """Says that weights which read text were trained on the states of other text encoders, of the same widths."""
        if before is None or (start.fit == "grow" and "text" not in start.take):
            return
        known = Manifest.from_json(before)
        if not now.same_encoders(known):
            rank_zero_warn(
                f"model.init_args.start: {path} was trained on the states of {known.encoders_shown}, the data has "
                f"those of {now.encoders_shown}: what it takes has never seen these"
            )

    def _check_pooled(self, texts: Texts) -> None:
        """Refuses pooled vectors of another width than the denoiser takes; one that ignores them takes any."""
        width = sum(text.pooled.shape[1] for text in each_text(texts) if text.pooled is not None)
        if self.denoiser.pooled_dim not in (0, width):
            raise ValueError(
                f"the stored pooled vectors have {width} numbers, the denoiser takes {self.denoiser.pooled_dim}: "
                "set model.init_args.denoiser.init_args.pooled_dim, or prepare with another --text-encoder"
            )

    def check_needs(self, manifest: Manifest) -> None:
        """Refuses an objective that reads arrays that no record has, or taps that the denoiser does not give."""
        needs = self.objective.needs
        lacking = sorted(set(needs.arrays) - set(manifest.arrays))
        if lacking:
            raise ValueError(
                f"model.init_args.objective ({type(self.objective).__name__}) reads {', '.join(lacking)} of every "
                f"record; the prepared data has {', '.join(manifest.arrays)}"
            )
        self._check_coherence(manifest)
        terms = {f".init_args.{path}": part for path, part in self.objective.named_modules() if isinstance(part, Term)}
        readers: dict[str, Term | Objective] = {**terms, "": self.objective}  # a term is named rather than the whole
        for path, reader in readers.items():
            try:
                self.denoiser.check_taps(reader.needs.taps)
            except ValueError as error:
                option = f"model.init_args.objective{path} ({type(reader).__name__})"
                raise ValueError(f"{option}: {error}") from error

    def _check_coherence(self, manifest: Manifest) -> None:
        """Refuses coherence that only one of denoiser and objective knows, or an array of more than one number."""
        name, network = self.objective.coherence, type(self.denoiser).__name__
        option = f"model.init_args.objective.init_args.coherence ({type(self.objective).__name__})"
        knows = "coherence" in self.denoiser.supports
        if knows and name is None:
            raise ValueError(
                f"{option}: this {network} is trained with the coherence of text and image; name the array of every "
                "record that holds it, or set coherence: false of the denoiser"
            )
        if name is not None and not knows:
            raise ValueError(
                f"{option}: this {network} knows no coherence; set coherence: true of CADI, or leave it out"
            )
        if name is not None and math.prod(size or 0 for size in manifest.arrays[name].shape) != 1:
            shape = list(manifest.arrays[name].shape)
            raise ValueError(f"{option}: the array {name} has shape {shape}; one number a record was expected")

    def on_after_batch_transfer(self, batch: StoredBatch, dataloader_idx: int) -> tuple[Batch, ...]:
        parts: tuple[Batch, ...] = (self.ready(batch),)
        for transform in self._transforms:
            transformed = [transform(part) for part in parts]
            parts = tuple(
                part for result in transformed for part in (result if isinstance(result, tuple) else (result,))
            )
        return parts

    def ready(self, stored: StoredBatch, purpose: str = "posterior", seed: int | None = None) -> Batch:
        """Dequantises, samples the VAE posterior, normalises: StoredBatch -> Batch, on the device of the batch.

        Args:
            stored: [B] records.
            purpose: key of the random numbers of the posterior; evaluation uses another than training.
            seed: of these numbers; None = that of the run.
        """
        return Batch(
            latents=self._latents(stored, purpose, self.seed if seed is None else seed),
            text=stored.text(),
            t=self.process.t(stored.u),
            source=stored.source,
            index=stored.index,
            extra={name: stored.array(name) for name in self.objective.needs.arrays},
            slot=stored.slot,
            text_lengths=stored.text_lengths(),
        )

    def _latents(self, stored: StoredBatch, purpose: str, seed: int) -> Tensor:
        """x_0 [B, C, H, W] of records; a posterior is sampled by random numbers of this purpose and seed."""
        noise = None
        if self.space.stochastic:
            shape, device = stored.image.shape[2:], stored.image.device
            noise = rng.Keyed(seed).normal(purpose, stored.slot, len(stored), shape, device)
        return self.space.x_0(stored.image, noise)

    # ------------------------------------------------------------------ the training step

    def training_step(self, parts: tuple[Batch, ...], batch_idx: int) -> dict[str, Any]:
        if CACHE_IS_SAFE:  # Lightning turns it off, and every pass would cast all weights anew
            torch.set_autocast_cache_enabled(True)
        if self.compiled is not None:  # results of the step before may be overwritten by CUDA graphs
            torch.compiler.cudagraph_mark_step_begin()
        keyed, step = self.rng, self.global_step
        if self._drops:  # dropout takes from the global generator: keyed, so that a resumed run takes the same
            torch.manual_seed(keyed.derived_seed("dropout", int(parts[0].slots[0])))
        loss = self.compiled or self.objective
        losses = [loss(self.denoiser, part, self.objective.draw(part, keyed, step)) for part in parts]
        loss_B = joined([part.loss_B for part in losses])
        logged = {name: joined([part.parts[name].detach() for part in losses]) for name in losses[0].parts}
        return self.step_result(loss_B.mean(), StepOutput(loss_B.detach(), logged, parts))

    @torch.no_grad()
    def validation_losses(self, stored: StoredBatch, names: Sequence[str] = ("loss",)) -> dict[str, Tensor]:
        """Losses of records in their stored order, of the denoiser alone.

        Args:
            stored: [B] records.
            names: "loss", see :meth:`Objective.validation`, and "loss_fixed_t", see :func:`fixed_t_loss`.

        Returns:
            loss_B [B] by name.
        """
        # `loss_fixed_t` compares runs whatever their seeds, so its posterior has the seed of no run.
        seeds = {"loss": self.seed, "loss_fixed_t": FIXED_SEED if self.space.stochastic else self.seed}
        batches: dict[int, Batch] = {}
        for name in names:
            if not batches:
                batches[seeds[name]] = self.ready(stored, VALIDATION_POSTERIOR, seeds[name])
            elif seeds[name] not in batches:
                latents = self._latents(stored, VALIDATION_POSTERIOR, seeds[name])
                batches[seeds[name]] = replace(next(iter(batches.values())), latents=latents)
        losses: dict[str, Callable[[Batch], Tensor]] = {
            "loss": lambda batch: self.objective.validation(self.denoiser, batch, self.rng),
            "loss_fixed_t": lambda batch: fixed_t_loss(self.denoiser, self.process, batch),
        }
        with evaluating(self.denoiser):
            return {name: losses[name](batches[seeds[name]]) for name in names}

    # ------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(
        self,
        text: Condition,
        noise: Tensor,
        *,
        steps: int,
        guidance: float | Guidance = 0.0,
        method: str | Solver = "ddim",
        uncond: Texts | None = None,
        threshold: Threshold | None = None,
        generators: list[torch.Generator] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Images of the present weights.

        Args:
            text: B prompts; a tuple with those of every text encoder where there are several, or what ``encode`` made
                of them.
            noise: [B, C, H, W] standard normal, one row a prompt.
            steps, guidance, method, generators, progress: as in ``t2ikit.diffusion.sample``.
            uncond: encoding of the negative prompt, one row or one a prompt; default the empty prompt of the data.
            threshold: as there; None takes the bound of the space, where the process bounds the estimates at all.

        Returns:
            [B, 3, H, W] float32 in [0, 1].
        """
        x_0 = sample(
            self.denoiser,
            self.process,
            noise,
            text,
            uncond if uncond is not None else self._empty_prompt(noise.device),
            steps=steps,
            guidance=guidance,
            method=method,
            threshold=self._threshold() if threshold is None else threshold,
            generators=generators,
            progress=progress,
        )
        return self.space.images(x_0)

    def encode(self, text: Texts, guidance: float | Guidance = 0.0, uncond: Texts | None = None) -> Contexts:
        """The texts of B images encoded once, for several calls of :meth:`sample`; arguments as there."""
        device = each_text(text)[0].mask.device
        empty = uncond if uncond is not None else self._empty_prompt(device)
        return encode(self.denoiser, text, empty, guidance, device)

    def _empty_prompt(self, device: torch.device) -> Texts:
        empty = self.unconditional
        if empty is not None and each_text(empty)[0].mask.device == device:
            return empty
        return self.objective.empty_prompt(device)

    def _threshold(self) -> Threshold:
        """The bound of the space on estimates of x_0, where the process bounds them at all."""
        unbounded = self.process.default_threshold(self.space.channels) == "none"
        return "none" if unbounded else ("clamp", self.space.bound)

    # ------------------------------------------------------------------ optimiser and checkpoint

    def validate_experiment(self, experiment: Any) -> None:
        """Refuses a schedule that needs the length of the run where only a clock ends it; before any data is read.

        A term that ends leaves its parameters without gradients, of which DDP is told.

        Raises:
            ValueError: names the options.
        """
        trainer = experiment.trainer
        if trainer.max_steps == -1 and trainer.max_epochs == -1:
            self.learning_rate.factor(1, math.inf)
        remark = self.learning_rate.remark(trainer.max_steps) if trainer.max_steps > 0 else None
        if remark is not None and not trainer.fast_dev_run:  # a trial is short by design
            rank_zero_warn(remark)
        terms = (term for term in self.objective.modules() if isinstance(term, Term) and term.until is not None)
        if any(p.requires_grad for t in terms for p in t.parameters()) and isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # Infinite where only trainer.max_time ends the run.
        return self.scheduled(self.trainer.estimated_stepping_batches)  # type: ignore[return-value]

    def on_train_start(self) -> None:
        self._frozen_sha256 = self._hash_of_frozen()
        self.renew_rates()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.started_from is not None:
            checkpoint["start"] = self.started_from
        if self._frozen_sha256 is not None and self._frozen_sha256 != self._hash_of_frozen():
            raise RuntimeError("a weight that `model.init_args.trainable` freezes has changed; no checkpoint of that")
        if self.manifest is not None and training_manifest(checkpoint) is None:
            checkpoint["data_manifest"] = self.manifest.to_json()
        checkpoint["space"] = self.space.description()

    def _hash_of_frozen(self) -> str | None:
        """SHA-256 of every parameter that is not trained, those of the objective's networks too; None if all are."""
        frozen = {name: parameter for name, parameter in self.named_parameters() if not parameter.requires_grad}
        return state_sha256(frozen) if frozen else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, DataModule):  # its own state comes too early: Lightning's counters are restored after it
            data.restore_counters(checkpoint)
        self.started_from = checkpoint.get("start")
        stored, ours = checkpoint.get("space"), self.space.description()
        if stored is not None and stored != ours:
            differing = sorted(key for key in {*stored, *ours} if stored.get(key) != ours.get(key))
            raise ValueError(
                f"the checkpoint was trained with another image space ({', '.join(differing)}: "
                f"{[stored.get(key) for key in differing]}, now {[ours.get(key) for key in differing]}): "
                "set model.init_args.space as it was"
            )


def _widths(text_dim: int | Sequence[int]) -> tuple[int, ...]:
    return (text_dim,) if isinstance(text_dim, int) else tuple(text_dim)


def _unchanged(data: Any) -> Any:
    return data


def _narrowed(convert: Callable[[nn.Module], nn.Module], objective: nn.Module, module: nn.Module) -> nn.Module:
    """``module`` as a plugin converts it, but what the objective trains stays in fp32 beside 16-bit weights."""
    kept = [(parameter, parameter.data) for parameter in objective.parameters() if parameter.requires_grad]
    converted = convert(module)
    for parameter, data in kept:
        if parameter.dtype.itemsize < data.dtype.itemsize:
            parameter.data = data
    return converted
