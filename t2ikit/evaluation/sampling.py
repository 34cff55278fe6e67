"""Sampling for snapshots and ``t2ikit sample``: image i depends on its seed, index and prompt, not on its batch.

Shapes: B images of a batch, N of a set; the text of each prompt is one row, without padding; noise [B, C, H, W].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit import ranks, rng
from t2ikit.batch import Text, Texts, each_text, map_texts, text_rows
from t2ikit.checkpoints import filled
from t2ikit.config.origins import Origins
from t2ikit.denoisers import Denoiser
from t2ikit.diffusion import Guidance
from t2ikit.diffusion.guidance import loaded
from t2ikit.diffusion.samplers import find_solver
from t2ikit.diffusion.solvers import Solver
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.metrics.fingerprint import state_sha256
from t2ikit.module import TextToImage


@dataclass(frozen=True)
class Sampling:
    """How a set of images is sampled.

    Attributes:
        steps: sampler steps.
        method: sampler, see ``t2ikit.diffusion.sample``.
        guidance: classifier-free guidance w, (1 + w) cond - w uncond; or a Guidance.
        seed: key of the noise.
        batch_size: images sampled at once on each rank; changes them by rounding at most.
        precision: as the Trainer names it; "bf16-..." samples under bfloat16 autocast.
        size: (H, W) of x_0, one that the denoiser takes beside its ``input_size``; None takes that.
    """

    steps: int = 50
    method: str | Solver = "ddim"
    guidance: float | Guidance = 2.0
    seed: int = 0
    batch_size: int = 64
    precision: str = "32-true"
    size: tuple[int, int] | None = None

    @property
    def bf16(self) -> bool:
        """Whether the network runs under bfloat16 autocast."""
        return self.precision.startswith("bf16")

    def shape(self, denoiser: Denoiser) -> tuple[int, int, int]:
        """(C, H, W) of the noise of an image.

        Raises:
            ValueError: the denoiser takes no x of this size.
        """
        if self.size is None:
            return denoiser.input_shape
        shape = (denoiser.input_shape[0], *self.size)
        if shape not in denoiser.shapes:
            sizes = ", ".join(f"{height}x{width}" for _, height, width in denoiser.shapes)
            raise ValueError(f"size {self.size[0]}x{self.size[1]}: the denoiser takes {sizes} (its other_sizes)")
        return shape

    def with_weight(self, weight: float) -> Sampling:
        """The same with another guidance weight w."""
        if isinstance(self.guidance, Guidance):
            return replace(self, guidance=replace(self.guidance, weight=weight))
        return replace(self, guidance=weight)

    def filled(self, device: torch.device | str, origins: Origins | None = None) -> Sampling:
        """The same with a weaker denoiser that is there, where guidance names one by its checkpoint; on ``device``.

        ``origins``: which modules the class paths of that checkpoint may name.
        """
        if not isinstance(self.guidance, Guidance) or self.guidance.weaker is None:
            return self
        return replace(self, guidance=replace(self.guidance, weaker=filled(self.guidance.weaker, origins).to(device)))

    def conditions(self) -> dict[str, Any]:
        """The fields of a score's fingerprint: all but the batch size."""
        conditions = {
            "seeds": str(self.seed),
            "sampler": find_solver(self.method).name,
            "steps": self.steps,
            "guidance": describe_guidance(self.guidance),
            "precision": self.precision,
        }
        return conditions if self.size is None else {**conditions, "size": list(self.size)}


def describe_guidance(guidance: float | Guidance) -> float | str:
    """The weight where there is nothing else to say, else every setting; a weaker denoiser by its hash."""
    if not isinstance(guidance, Guidance):
        return float(guidance)
    if guidance == Guidance(guidance.weight):
        return float(guidance.weight)
    plain = repr(replace(guidance, weaker=None))
    weaker = loaded(guidance.weaker)
    return plain if weaker is None else f"{plain} weaker={state_sha256(weaker.state_dict())}"


def identity_of(module: TextToImage, states: Sequence[Texts], sampling: Sampling) -> dict[str, Any]:
    """What a set of images depends on, JSON-able: two sets of one identity are equal but for rounding.

    The process is described by what it does at the sampler's nodes, so that every setting of it counts.
    """
    empty = module.unconditional
    assert empty is not None
    process, space = module.process, module.space
    times = process.times(sampling.steps, find_solver(sampling.method).spacing)
    column = torch.ones(len(times), 1, 1, 1, dtype=times.dtype)
    estimates = process.split(column, column / 2, times)
    nodes = torch.cat([*(values.flatten() for values in estimates), process.level(times, module.denoiser.level_kind)])
    texts = hashlib.sha256()
    for text in (encoded for prompt in chain([empty], states) for encoded in each_text(prompt)):
        pooled = {} if text.pooled is None else {"pooled": text.pooled}
        texts.update(state_sha256({"state": text.embeddings[text.mask], **pooled}).encode())
    return {
        **sampling.conditions(),
        "denoiser": type(module.denoiser).__name__,
        "weights_sha256": state_sha256({name: _local(value) for name, value in module.denoiser.state_dict().items()}),
        "process_sha256": state_sha256({"nodes": nodes}),
        "space": space.description(),
        "autoencoder": getattr(getattr(space, "reference", None), "sha256", None),
        "texts_sha256": texts.hexdigest(),
        "shape": list(sampling.shape(module.denoiser)),
    }


def sample_missing(
    module: TextToImage, states: Sequence[Texts], sampling: Sampling, store: ImageStore, label: str
) -> None:
    """Samples the images that the store lacks, with the present weights, spread over all ranks; every rank calls it.

    Args:
        module: the model.
        states: text states of the N prompts, one row each.
        sampling: steps, method, guidance, seed, batch size, precision.
        store: where the images go; the folder must be the same for all ranks.
        label: of the progress bar.

    Raises:
        OtherRankFailed: another rank failed.
        Stopped: a signal to any rank has ended it; images that are stored are not sampled again.
    """

    def open_store() -> list[range]:
        store.open(identity_of(module, states, sampling))
        return store.missing(sampling.batch_size)

    batches = ranks.from_first(open_store)[ranks.this() :: ranks.count()]

    def work() -> None:
        for indices, images in sample_batches(module, states, sampling, batches, f"{label}: sampling"):
            store.add(indices.start, images)

    ranks.together(work)


def sample_batches(
    module: TextToImage,
    states: Sequence[Texts],
    sampling: Sampling,
    batches: Sequence[range],
    label: str,
    uncond: Texts | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Samples batch after batch behind a progress bar, which the first rank shows.

    Args:
        module: the model.
        states: text states of the N prompts, one row each.
        sampling: steps, method, guidance, seed, precision.
        batches: consecutive indices of the images of each batch.
        label: of the progress bar.
        uncond: states of the negative prompt, one row; default the empty prompt.

    Yields:
        The indices of a batch and its images, [B, 3, H, W] uint8 on the CPU.

    Raises:
        Stopped: a signal to any rank has ended it; the batch that it is at is lost.
    """
    total, disable = len(batches) * sampling.steps, ranks.this() > 0
    with tqdm(total=total, desc=label, unit="step", leave=False, disable=disable, mininterval=1.0) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(1)
            if done < total:  # a whole batch is stored first
                ranks.stop_if_asked()

        for indices in batches:
            ranks.stop_if_asked()
            rows = [states[index] for index in indices]
            yield indices, sample_batch(module, rows, indices.start, sampling, uncond, progress)


def sample_batch(
    module: TextToImage,
    states: Sequence[Texts],
    first: int,
    sampling: Sampling,
    uncond: Texts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Samples images ``first`` to ``first + B - 1`` with the present weights, on the device of the module.

    Image i depends on (seed, i, its text) alone; the other images of its batch change it by rounding at most.

    Args:
        module: the model.
        states: text states of B prompts, one row each.
        first: index of the first image.
        sampling: steps, method, guidance, seed, precision.
        uncond: states of the negative prompt, one row; default the empty prompt.
        progress: as in ``t2ikit.diffusion.sample``.

    Returns:
        [B, 3, H, W] uint8 on the CPU.
    """
    text, device, seed = map_texts(lambda *rows: Text.join(rows), *states), module.device, sampling.seed
    count = text_rows(text)
    noise = rng.normal(seed, "snapshot", first, count, sampling.shape(module.denoiser))
    generators = [
        torch.Generator(device).manual_seed(rng.derived_seed(seed, "snapshot steps", first + row))
        for row in range(count)
    ]
    # TF32 in the convolutions of a decoder may round by more than one grey level, by other kernels for other batches.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with exact, torch.autocast(device.type, dtype=torch.bfloat16, enabled=sampling.bf16):
        images = module.sample(
            map_texts(lambda encoded: encoded.to(device), text),
            noise.to(device),
            steps=sampling.steps,
            guidance=sampling.guidance,
            method=sampling.method,
            uncond=None if uncond is None else map_texts(lambda encoded: encoded.to(device), uncond),
            generators=generators,
            progress=progress,
        )
    return (images * 255.0).round().to(torch.uint8).cpu()


def _local(weights: Tensor) -> Tensor:
    """This rank's part of a sharded tensor."""
    local = getattr(weights, "to_local", None)
    return local() if callable(local) else weights
