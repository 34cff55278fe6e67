"""Images of prompts with the states of two text encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from t2ikit.batch import Text, Texts
from t2ikit.diffusion import Denoising, RectifiedFlow
from t2ikit.evaluation.evaluation import Evaluation
from t2ikit.evaluation.sampling import identity_of, sample_batch
from t2ikit.evaluation.settings import Sampling
from t2ikit.module import TextToImage
from t2ikit.prompts import Prompt, PromptSource
from tiny import awake, shallow_cad_i

COUNT = 5


def row(width: int, tokens: int, seed: int, pooled: int = 0) -> Text:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(1, pooled, generator=generator) if pooled else None
    return Text.from_rows([torch.randn(tokens, width, generator=generator)], vectors)


class Two(PromptSource):
    def prompts(self) -> list[Prompt]:
        return [Prompt(f"prompt {index}") for index in range(COUNT)]

    def states(self, prompts: Any, encode: Any) -> list[Texts]:
        return [(row(8, 1 + index % 3, index, 3), row(5, 2, 50 + index)) for index in range(len(prompts))]


def module_of() -> TextToImage:
    torch.manual_seed(0)
    denoiser = awake(shallow_cad_i(input_size=8, in_channels=3, patch_size=4, text_dim=[8, 5], pooled_dim=3))
    module = TextToImage(denoiser, Denoising(RectifiedFlow())).eval()
    module.unconditional = (row(8, 1, 90, 3), row(5, 1, 91))
    return module


def test_an_image_depends_on_its_own_texts_alone(tmp_path: Path) -> None:
    module, settings = module_of(), Sampling(steps=3, method="euler", batch_size=2)
    source = Two()
    states = source.states(source.prompts(), None)
    data: Any = SimpleNamespace(trainer=None)
    images = Evaluation("val", source).evaluate(module, data, settings, tmp_path / "a", weights="raw", step=0).images
    alone = torch.cat([sample_batch(module, states[index : index + 1], index, settings) for index in range(COUNT)])
    assert (images[:].int() - alone.int()).abs().max() <= 1
    first, second = states[3]
    for changed in ((replace(first, pooled=first.pooled + 3.0), second), (first, row(5, 2, 77))):
        other = sample_batch(module, [changed], 3, settings)
        assert not torch.equal(other[0], alone[3])
        assert identity_of(module, [changed], settings) != identity_of(module, [(first, second)], settings)
    negative = (row(8, 4, 60, 3), row(5, 3, 61))
    assert not torch.equal(sample_batch(module, states[:1], 0, settings, negative)[0], alone[0])
