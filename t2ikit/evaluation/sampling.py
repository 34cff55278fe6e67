"""Sampling for snapshots and ``t2ikit sample``: image i depends on its seed, index and prompt, not on its batch.

Shapes: B images of a batch, N of a set; the text of each prompt is one row, without padding; noise [B, C, H, W].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from t2ikit import ranks, rng
from t2ikit.batch import Text, Texts, each_text, map_texts, text_rows
from t2ikit.diffusion.samplers import Condition, find_solver
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.evaluation.search import Chosen, Rows
from t2ikit.evaluation.settings import Sampling
from t2ikit.module import TextToImage
from t2ikit.pretrained import state_sha256
from t2ikit.prompts import Prompt


def identity_of(
    module: TextToImage,
    states: Sequence[Texts],
    sampling: Sampling,
    prompts: Sequence[Prompt] = (),
    uncond: Texts | None = None,
) -> dict[str, Any]:
    """What a set of images depends on, JSON-able: two sets of one identity are equal but for rounding.

    The process is described by what it does at the sampler's nodes, so that every setting of it counts; the prompts
    count where a verifier reads them.
    """
    empty = module.unconditional
    assert empty is not None
    process, space = module.process, module.space
    times = process.times(sampling.steps, find_solver(sampling.method).spacing)
    column = torch.ones(len(times), 1, 1, 1, dtype=times.dtype)
    estimates = process.split(column, column / 2, times)
    nodes = torch.cat([*(values.flatten() for values in estimates), process.level(times, module.denoiser.level_kind)])
    texts = hashlib.sha256()
    every = chain([empty], states, [] if uncond is None else [uncond])
    for text in (encoded for prompt in every for encoded in each_text(prompt)):
        pooled = {} if text.pooled is None else {"pooled": text.pooled}
        texts.update(state_sha256({"state": text.embeddings[text.mask], **pooled}).encode())
    if sampling.search is not None:
        texts.update(json.dumps([[prompt.text, prompt.metadata] for prompt in prompts], sort_keys=True).encode())
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
    module: TextToImage,
    states: Sequence[Texts],
    sampling: Sampling,
    store: ImageStore,
    label: str,
    prompts: Sequence[Prompt] = (),
    uncond: Texts | None = None,
) -> None:
    """Samples the images that the store lacks, with the present weights, spread over all ranks; every rank calls it.

    Args:
        module: the model.
        states: text states of the N prompts, one row each.
        sampling: steps, method, guidance, seed, batch size, precision, search.
        store: where the images go; the folder must be the same for all ranks.
        label: of the progress bar.
        prompts: what a verifier reads, N of them; needed by a search.
        uncond: states of the negative prompt, one row; default the empty prompt.

    Raises:
        OtherRankFailed: another rank failed.
        Stopped: a signal to any rank has ended it; images that are stored are not sampled again.
    """

    def open_store() -> list[range]:
        store.open(identity_of(module, states, sampling, prompts, uncond))
        return store.missing(sampling.images_at_once())

    batches = ranks.from_first(open_store)[ranks.this() :: ranks.count()]

    def work() -> None:
        if sampling.search is None:
            for indices, images in sample_batches(module, states, sampling, batches, f"{label}: sampling", uncond):
                store.add(indices.start, images)
            return
        with Progress(batches, sampling, f"{label}: search") as progress:
            for indices in batches:
                ranks.stop_if_asked()
                rows, read = [states[index] for index in indices], [prompts[index] for index in indices]
                chosen = search_batch(module, rows, read, indices.start, sampling, uncond, progress)
                store.add_chosen(indices.start, chosen)
        sampling.search.verifier.offload()

    ranks.together(work)


class Progress:
    """A bar over the sampler's steps of all batches, which the first rank shows; a context manager.

    Called after each step, as ``t2ikit.diffusion.sample`` does; raises Stopped where a signal to any rank asks for it.
    """

    def __init__(self, batches: Sequence[range], sampling: Sampling, label: str) -> None:
        search = sampling.search
        calls = [1 if search is None else search.batches(len(indices), sampling.batch_size) for indices in batches]
        total, disable = sum(calls) * sampling.steps, ranks.this() > 0
        self._bar = tqdm(total=total, desc=label, unit="step", leave=False, disable=disable, mininterval=1.0)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(1)
        if done < total:  # a whole batch is stored first
            ranks.stop_if_asked()


def sample_batches(
    module: TextToImage,
    states: Sequence[Texts],
    sampling: Sampling,
    batches: Sequence[range],
    label: str,
    uncond: Texts | list[Texts] | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Samples batch after batch behind a progress bar, which the first rank shows.

    Args:
        module: the model.
        states: text states of the N prompts, one row each.
        sampling: steps, method, guidance, seed, precision.
        batches: consecutive indices of the images of each batch.
        label: of the progress bar.
        uncond: states of the negative prompt, one row, or a list of N such, one an image; default the empty prompt.

    Yields:
        The indices of a batch and its images, [B, 3, H, W] uint8 on the CPU.

    Raises:
        Stopped: a signal to any rank has ended it; the batch that it is at is lost.
    """
    with Progress(batches, sampling, label) as progress:
        for indices in batches:
            ranks.stop_if_asked()
            rows = [states[index] for index in indices]
            negative = _joined([uncond[index] for index in indices]) if isinstance(uncond, list) else uncond
            yield indices, sample_batch(module, rows, indices.start, sampling, negative, progress)


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
        uncond: states of the negative prompt, one row or B; default the empty prompt.
        progress: as in ``t2ikit.diffusion.sample``.

    Returns:
        [B, 3, H, W] uint8 on the CPU.
    """
    text = _joined(states)
    count = text_rows(text)
    noise = rng.normal(sampling.seed, "snapshot", first, count, sampling.shape(module.denoiser))
    keys = [("snapshot steps", first + row) for row in range(count)]
    with _precision(module, sampling):
        return _images(
            module,
            _moved(text, module),
            noise,
            keys,
            sampling,
            None if uncond is None else _moved(uncond, module),
            progress,
        )


def search_batch(
    module: TextToImage,
    states: Sequence[Texts],
    prompts: Sequence[Prompt],
    first: int,
    sampling: Sampling,
    uncond: Texts | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """Searches images ``first`` to ``first + B - 1``: every text is encoded once, the candidates are batched.

    Candidate 0 is what :func:`sample_batch` gives. Arguments as there; ``prompts`` are what the verifier reads.
    """
    search = sampling.search
    assert search is not None
    text = _moved(_joined(states), module)
    shape = sampling.shape(module.denoiser)
    with _precision(module, sampling):
        contexts = module.encode(text, sampling.guidance, None if uncond is None else _moved(uncond, module))

    def fresh(candidate: int) -> Tensor:
        purpose = "snapshot" if candidate == 0 else f"search {candidate}"
        return rng.normal(sampling.seed, purpose, first, len(states), shape)

    def render(noise: Tensor, rows: Rows) -> Tensor:
        # Neighbours share the noise of the steps, so that their images differ by their starts alone.
        own = search.method == "random"
        keys = [
            (f"search steps {candidate}" if candidate and own else "snapshot steps", first + row)
            for row, candidate in rows
        ]
        chosen = contexts.rows(torch.tensor([row for row, _ in rows]))
        with _precision(module, sampling):
            return _images(module, chosen, noise, keys, sampling, None, progress)

    return search.choose(prompts, fresh, render, sampling.batch_size, module.device)


@contextmanager
def _precision(module: TextToImage, sampling: Sampling) -> Iterator[None]:
    # TF32 in the convolutions of a decoder may round by more than one grey level, by other kernels for other batches.
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with exact, torch.autocast(module.device.type, dtype=torch.bfloat16, enabled=sampling.bf16):
        yield


def _images(
    module: TextToImage,
    text: Condition,
    noise: Tensor,
    keys: Sequence[tuple[str, int]],
    sampling: Sampling,
    uncond: Texts | None,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """[B, 3, H, W] uint8 on the CPU of noise [B, C, H, W]; ``keys`` are (purpose, index) of the noise of the steps."""
    device = module.device
    generators = [
        torch.Generator(device).manual_seed(rng.derived_seed(sampling.seed, purpose, index)) for purpose, index in keys
    ]
    images = module.sample(
        text,
        noise.to(device),
        steps=sampling.steps,
        guidance=sampling.guidance,
        method=sampling.method,
        uncond=uncond,
        threshold=sampling.threshold,
        generators=generators,
        progress=progress,
    )
    dtype = next(module.denoiser.parameters()).dtype
    if dtype == torch.float16 and not bool(images.isfinite().all()):
        raise ValueError("an image is not finite: a network overflows in float16; load it in bfloat16 or float32")
    return (images * 255.0).round().to(torch.uint8).cpu()


def _joined(states: Sequence[Texts]) -> Texts:
    """Texts of one row each as one batch."""
    return map_texts(lambda *rows: Text.join(rows), *states)


def _moved(texts: Texts, module: TextToImage) -> Texts:
    return map_texts(lambda encoded: encoded.to(module.device), texts)


def _local(weights: Tensor) -> Tensor:
    """This rank's part of a sharded tensor."""
    local = getattr(weights, "to_local", None)
    return local() if callable(local) else weights
