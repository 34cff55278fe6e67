"""Crop: what a batch becomes, what the denoiser is asked, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from t2ikit import rng
from t2ikit.augment.crop import sides, typical_sizes
from t2ikit.batch import Batch, StepOutput, Text
from t2ikit.callbacks import Crop
from t2ikit.denoisers import CADI, DiTI
from t2ikit.diffusion import Denoising
from t2ikit.encoders import PixelSpace
from t2ikit.module import TextToImage
from tiny import shallow_cad_i


def network(**options: Any) -> DiTI:
    sizes = {"input_size": 8, "in_channels": 3, "patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 4}
    denoiser = DiTI(**{**sizes, "text_dim": 8, "num_registers": 2, "window_tokens": True, **options})
    with torch.no_grad():
        denoiser.final.weight.normal_(std=0.1)  # it starts at zero, where nothing shows
    return denoiser


def tiny(crop: Crop | None = None, step: int = 16, **options: Any) -> TextToImage:
    torch.manual_seed(0)
    objective = Denoising(text_drop=options.pop("text_drop", 0.1))
    module = TextToImage(network(), objective, PixelSpace(), **options)
    module.unconditional = Text(torch.ones(1, 1, 8), torch.ones(1, 1, dtype=torch.bool))
    if crop is not None:
        crop.register(SimpleNamespace(batch_size=step), module)  # type: ignore[arg-type]
    return module


def batch(slot: int = 0, count: int = 16) -> Batch:
    """A pure function of the slots."""
    rows = []
    for number in range(slot, slot + count):
        generator = torch.Generator().manual_seed(number)
        rows.append(
            (
                torch.randn(3, 8, 8, generator=generator),
                torch.randn(5, 8, generator=generator),
                torch.rand((), generator=generator),
            )
        )
    x, text, t = (torch.stack(column) for column in zip(*rows, strict=True))
    mask = torch.ones(count, 5, dtype=torch.bool)
    mask[::2, 3:] = False
    index = torch.arange(slot, slot + count)
    return Batch(x, Text(text, mask), t, torch.zeros(count, dtype=torch.long), index, slot=slot)


def step(module: TextToImage, whole: Batch) -> tuple[torch.Tensor, StepOutput]:
    """The loss with its graph, and what the callbacks get."""
    parts: tuple[Batch, ...] = (whole,)
    for transform in module._transforms:
        parts = tuple(part for one in parts for part in transform(one))
    output = module.training_step(parts, 0)
    return output["loss"], output["step"]


def test_half_of_a_batch_is_seen_through_windows() -> None:
    crop = Crop()
    tiny(crop)
    sizes = set()
    for slot in range(0, 16 * 40, 16):
        whole = batch(slot)
        full, part = crop.augment(whole)
        assert full.slots.tolist() == list(range(slot, slot + 16, 2))
        assert part.slots.tolist() == list(range(slot + 1, slot + 16, 2))
        assert full.window is None and torch.equal(full.latents, whole.latents[::2])
        assert part.window is not None
        side = part.latents.shape[-1] // 2
        sizes.add(side)
        for row, (x0, y0, x1, y1) in enumerate((part.window * 8).round().long().tolist()):
            assert x1 - x0 == y1 - y0 == 2 * side
            assert torch.equal(part.latents[row], whole.latents[2 * row + 1, :, y0:y1, x0:x1])
        for name in ("t", "source", "index"):
            for rows, first in ((full, 0), (part, 1)):
                assert torch.equal(getattr(rows, name), getattr(whole, name)[first::2])
        assert torch.equal(part.text.embeddings, whole.text.embeddings[1::2])  # the caption is kept
        assert torch.equal(part.text.mask, whole.text.mask[1::2])
    assert sizes == {3}  # of a grid of 4


def test_windows_are_a_pure_function_of_the_slots_and_a_step_has_one_size() -> None:
    crop = Crop(p=1.0)
    torch.manual_seed(0)
    module = TextToImage(network(input_size=32), space=PixelSpace())
    crop.register(SimpleNamespace(batch_size=8), module)  # type: ignore[arg-type]
    state = torch.get_rng_state()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def windows(slot: int) -> torch.Tensor:
        rows = torch.zeros(4, dtype=torch.long)
        text = Text(torch.zeros(4, 1, 8), torch.ones(4, 1, dtype=torch.bool))
        found = crop.augment(Batch(x, text, torch.zeros(4), rows, rows, slot=slot))[0].window
        assert found is not None
        return found

    assert torch.equal(windows(4), windows(4)) and torch.equal(torch.get_rng_state(), state)
    sides, alike = set(), 0
    for index in range(60):  # two micro-batches a step, of whatever rank
        both = torch.cat([windows(8 * index), windows(8 * index + 4)])
        [side] = {round(16 * float(value)) for value in (both[:, 2:] - both[:, :2]).flatten()}
        sides.add(side)
        alike += torch.equal(both[:2], both[2:])
    assert alike < 10  # but places of their own
    assert sides == set(range(9, 16))


@pytest.mark.parametrize("aspect", ["square", "free"])
def test_a_plan_counts_steps_of_typical_sizes(aspect: Any) -> None:
    crop = Crop(aspect=aspect)
    module = tiny(crop, seed=3)
    sizes = []
    for number in crop.unlike_steps():
        _, part = crop.augment(batch(16 * number))
        sizes.append((part.latents.shape[2] // 2, part.latents.shape[3] // 2))
    assert sizes == typical_sizes(module.denoiser.grid, aspect) and max(sizes) == (3, 3)


def test_the_mean_of_typical_sizes_is_nearly_that_of_all() -> None:
    for tokens in (8, 16, 32, 64):
        lengths = np.array(sides(tokens))
        for aspect, mean in (("square", (lengths**2).mean()), ("free", lengths.mean() ** 2)):
            counts = [height * width for height, width in typical_sizes((tokens, tokens), aspect)]  # type: ignore[arg-type]
            assert np.mean(counts) == pytest.approx(mean, rel=0.025)


def test_the_loss_is_that_of_the_parts_and_every_sample_weighs_the_same() -> None:
    crop = Crop(p=0.25)
    module = tiny(crop, text_drop=0.0)
    whole = batch()
    loss, output = step(module, whole)
    plain = step(tiny(text_drop=0.0), whole)[1]
    cropped = torch.arange(16) % 4 == 3
    assert torch.allclose(output.loss[:12], plain.loss[~cropped], atol=1e-6)  # whole images as without Crop
    assert torch.equal(output.index, torch.cat([whole.index[~cropped], whole.index[cropped]]))
    assert torch.allclose(loss, output.loss.mean())
    part = crop.augment(whole)[1]
    noise = rng.normal(0, "noise", part.slot, 4, part.latents.shape[1:])
    objective = module.objective
    assert isinstance(objective, Denoising)
    direct = objective.loss(module.denoiser, part.latents, noise, part.t, part.text, window=part.window)
    assert torch.allclose(output.loss[12:], direct, atol=1e-6)
    blind = objective.loss(module.denoiser, part.latents, noise, part.t, part.text, window=part.window.flip(0))
    assert not torch.allclose(direct, blind, atol=1e-4)  # it is told where


def test_the_window_stays_where_the_caption_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny(Crop(p=1.0), text_drop=1.0)
    seen: list[tuple[Text, Any]] = []
    encode = module.denoiser.encode_text

    def watched(text: Text, window: Any) -> Any:
        seen.append((text, window))
        return encode(text, window=window)

    monkeypatch.setattr(module.denoiser, "encode_text", watched)
    step(module, batch())
    [(text, window)] = seen
    assert text.mask.sum(1).tolist() == [1] * 16 and window.shape == (16, 4)


def test_nothing_is_cropped_at_p_0_and_drawing_shows_the_whole_image() -> None:
    whole = batch()
    [same] = Crop(p=0.0).augment(whole)
    assert same.window is None and torch.equal(same.latents, whole.latents)
    module = tiny(Crop())
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    text = whole.part(0, 2).text
    images = module.sample(text, noise, steps=2, guidance=2.0)
    assert images.shape == (2, 3, 8, 8)
    context = module.denoiser.encode_text(text)
    assert context.window is not None and context.window.tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.long
@pytest.mark.parametrize("rows", [16, 24])
def test_cad_i_carries_its_state_through_windows_and_compiles(rows: int) -> None:
    """24 rows are two parts of 12; about half of each is self-conditioned."""
    torch._dynamo.reset()
    found = []
    for compile in (None, {"backend": "eager"}):
        torch.manual_seed(0)
        sizes = {"data_dim": 16, "num_latents": 4, "latent_dim": 16, "num_blocks": 2, "num_layers": 1}
        heads = {"read_write_heads": 2, "compute_heads": 2, "refine_heads": 2, "num_registers": 2}
        denoiser = CADI(input_size=8, in_channels=3, text_dim=8, window_tokens=True, **sizes, **heads)
        with torch.no_grad():
            denoiser.ln_previous.weight.fill_(1.0)
        module = TextToImage(denoiser, Denoising(self_condition_rate=0.5), PixelSpace(), compile=compile)
        module.unconditional = Text(torch.ones(1, 1, 8), torch.ones(1, 1, dtype=torch.bool))
        Crop().register(SimpleNamespace(batch_size=rows), module)  # type: ignore[arg-type]
        loss, output = step(module, batch(count=rows))
        loss.backward()
        assert denoiser.window_embed is not None and denoiser.window_embed.types.grad is not None
        found.append((output.loss, denoiser.window_embed.types.grad))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-6)


def test_a_compiled_step_is_a_plain_one() -> None:
    torch._dynamo.reset()
    plain, compiled = (step(tiny(Crop(), compile=mode), batch())[1] for mode in (None, {"backend": "eager"}))
    torch.testing.assert_close(plain.loss, compiled.loss, rtol=1e-4, atol=1e-6)


def test_a_callback_that_is_set_up_twice_crops_once() -> None:
    crop = Crop()
    module = tiny(crop)
    crop.register(SimpleNamespace(batch_size=16), module)  # type: ignore[arg-type]
    assert len(module._transforms) == 1
    Crop().register(SimpleNamespace(batch_size=16), module)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"callbacks\.crop: the batch shows windows already"):
        step(module, batch())


def test_what_cannot_be_is_refused_when_the_experiment_is_read() -> None:
    for options, named in [({"p": 1.5}, "p must lie in"), ({"aspect": "wide"}, "square, free")]:
        with pytest.raises(ValueError, match=rf"callbacks\.crop: .*{named}"):
            Crop(**options)  # type: ignore[arg-type]
    cad = shallow_cad_i(in_channels=3, latent_dim=16, refine_heads=16)
    for denoiser in (network(window_tokens=False), cad):
        with pytest.raises(ValueError, match="--model.denoiser.window_tokens true"):
            Crop().validate_experiment(SimpleNamespace(model=SimpleNamespace(denoiser=denoiser)))
    with pytest.raises(ValueError, match="grid of 2 tokens"):
        Crop().validate_experiment(SimpleNamespace(model=SimpleNamespace(denoiser=network(input_size=4))))
