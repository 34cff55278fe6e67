"""What a snapshot costs beside the sampler: files and hashes of its images, features of its reference, scores.

``python -m benchmarks snapshot``. Small images of a small CAD-I; what stands beside the sampler does not depend on the
size of the network, so its share falls with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.base import Benchmark, Measurement, Settings, cpu_seconds
from t2ikit.batch import Text
from t2ikit.denoisers import CADI
from t2ikit.denoisers.cad_i import cad_i_l
from t2ikit.evaluation import Evaluation
from t2ikit.evaluation.sampling import identity_of, sample_batch
from t2ikit.evaluation.settings import Sampling
from t2ikit.metrics import DistributionMetrics, RandomConvFeatures
from t2ikit.module import TextToImage
from t2ikit.pictures import Images
from t2ikit.prompts import Encode, Prompt, PromptSource

TEXT_DIM, TOKENS, SIZE, BATCH = 64, 12, 32, 32


class _Texts(PromptSource):
    def __init__(self, count: int) -> None:
        self.count = count

    def prompts(self) -> list[Prompt]:
        return [Prompt(f"prompt {index}") for index in range(self.count)]

    def states(self, prompts: Sequence[Prompt], encode: Encode) -> list[Text]:
        generator = torch.Generator().manual_seed(0)
        return [Text.from_rows([torch.randn(TOKENS, TEXT_DIM, generator=generator)]) for _ in prompts]


def perturbed(denoiser: CADI) -> TextToImage:
    """A module on the denoiser with random weights: a fresh one predicts zeros."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    module = TextToImage(denoiser).eval()
    module.unconditional = Text.from_rows([torch.zeros(1, denoiser.text_dim)])
    return module


class RecordsOfImages:
    """Images [M, 3, H, W] as a prepared set of pixels."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.manifest = SimpleNamespace(kind="pixels", image_shape=images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def view(self, index: int) -> Any:
        """The record at ``index``."""
        return SimpleNamespace(array=lambda name: self.images[index].numpy())


def _measure(settings: Settings) -> list[Measurement]:
    count, reference = (256, 2000) if settings.full else (64, 500)
    heads = {"read_write_heads": 4, "compute_heads": 4}
    module = perturbed(CADI(SIZE, 3, 4, 64, 32, 128, 2, 2, text_dim=TEXT_DIM, **heads))
    sampling = Sampling(steps=10, guidance=2.0, batch_size=BATCH)
    source = _Texts(count)
    states = source.states(source.prompts(), list)
    generator = torch.Generator().manual_seed(1)
    photos = torch.randint(0, 256, (reference, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    data: Any = SimpleNamespace(trainer=None, record_set=lambda split: RecordsOfImages(photos))
    metric = DistributionMetrics(RandomConvFeatures())
    scored, bare = Evaluation("val", source, [metric], "val"), Evaluation("val", source)

    def snapshot(evaluation: Evaluation) -> None:
        with tempfile.TemporaryDirectory() as folder:
            evaluation.evaluate(module, data, sampling, Path(folder) / "images", weights="raw", step=0)

    def sampler() -> None:
        for first in range(0, count, BATCH):
            sample_batch(module, states[first : first + BATCH], first, sampling)

    def first_time() -> None:
        snapshot(Evaluation("val", source, [metric], "val"))

    seconds = cpu_seconds(
        {"bare": lambda: snapshot(bare), "sampler": sampler, "first": first_time, "later": lambda: snapshot(scored)}
    )
    large = perturbed(cad_i_l())
    texts = [Text.from_rows([torch.zeros(TOKENS, large.denoiser.text_dim)])]
    hashed = cpu_seconds({"identity": lambda: identity_of(large, texts, sampling)}, repeats=1, warm_up=0)["identity"]
    label = f"snapshot of {count} images of {SIZE} x {SIZE}, {sampling.steps} guided DDIM steps"
    scores = f"Frechet and PRDC against {reference:,} images"
    return [
        Measurement(f"{label}, without metrics", seconds["bare"], "s", "the sampler alone", seconds["sampler"]),
        Measurement(f"{label}, {scores}, the first", seconds["first"], "s", "the sampler alone", seconds["sampler"]),
        Measurement(
            f"{label}, {scores}, a later one", seconds["later"], "s", "the sampler alone", seconds["sampler"],
            note="features of the reference are kept",
        ),
        Measurement("hash of CAD-I L's weights, once a snapshot", hashed, "s", note="an interrupted one goes on by it"),
    ]  # fmt: skip


BENCHMARKS = (Benchmark("snapshot", "a whole snapshot against the sampler alone", _measure),)
