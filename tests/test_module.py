"""The training step: what it draws, that it has no side effect, and that accumulation is one batch."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from t2ikit.batch import Batch, StepOutput, StoredBatch, StoredText, Text
from t2ikit.checkpoints.start import Start
from t2ikit.diffusion import Denoising
from t2ikit.diffusion.objectives import Draws, Needs
from t2ikit.diffusion.terms import Term
from t2ikit.diffusion.terms.base import MainPass
from t2ikit.encoders import LatentSpace, PixelSpace
from t2ikit.module import TextToImage
from t2ikit.pretrained import EncoderReference
from t2ikit.records.manifest import Manifest, StoredArray, TextSource
from tiny import awake, shallow_cad_i

OBJECTIVE = ("process", "text_drop", "self_condition_rate", "weighting", "terms")


def tiny(**options: object) -> TextToImage:
    """A module whose objective takes those of the options that are its own."""
    objective = Denoising(**{name: options.pop(name) for name in OBJECTIVE if name in options})  # type: ignore[arg-type]
    torch.manual_seed(0)
    denoiser = shallow_cad_i(in_channels=3, latent_dim=16, refine_heads=16)
    with torch.no_grad():  # self-conditioning starts switched off: switch it on, so that a wrong state shows
        denoiser.ln_previous.weight.fill_(1.0)
    module = TextToImage(denoiser, objective, PixelSpace(), **options)  # type: ignore[arg-type]
    module.unconditional = Text(torch.ones(1, 1, 8), torch.ones(1, 1, dtype=torch.bool))
    return module


def stored(first: int, count: int) -> StoredBatch:
    """Records first .. first + count, a pure function of the slot."""
    rows = []
    for slot in range(first, first + count):
        generator = torch.Generator().manual_seed(slot)
        rows.append(
            (
                torch.randint(0, 256, (3, 4, 4), generator=generator, dtype=torch.uint8),
                torch.randint(-127, 128, (3, 8), generator=generator, dtype=torch.int8),
                torch.rand((), generator=generator),
            )
        )
    image, tokens, u = (torch.stack(column) for column in zip(*rows))
    text = StoredText(
        tokens=tokens.reshape(-1, 8),
        scales=torch.full((count * 3, 1), 0.01, dtype=torch.float16),
        positions=(torch.arange(count)[:, None] * 16 + torch.arange(3)).flatten(),
        rows=count,
        max_length=16,
    )
    return StoredBatch(
        image=image,
        texts={"t5": text},
        u=u,
        source=torch.zeros(count, dtype=torch.long),
        index=torch.arange(first, first + count),
        slot=first,
    )


def gradients(module: TextToImage, sizes: list[int]) -> list[torch.Tensor]:
    module.zero_grad()
    total, first = sum(sizes), 0
    for size in sizes:
        step = module.training_step(module.on_after_batch_transfer(stored(first, size), 0), 0)
        (step["loss"] * size / total).backward()
        first += size
    return [p.grad.clone() for p in module.denoiser.parameters() if p.grad is not None]


def step(module: TextToImage, batch: StoredBatch, batch_idx: int = 0) -> StepOutput:
    """What the callbacks get of a training step."""
    output: StepOutput = module.training_step(module.on_after_batch_transfer(batch, 0), batch_idx)["step"]
    return output


def test_no_noise_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_bins"):
        tiny(noise_bins=0)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_accumulation_is_one_batch(rate: float) -> None:
    module = tiny(self_condition_rate=rate, text_drop=0.3)
    whole, parts = gradients(module, [17]), gradients(module, [2, 4, 11])
    assert len(whole) == len(parts) > 20
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_is_a_pure_function_of_its_slots() -> None:
    module = tiny()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    batch = stored(32, 8)
    first = step(module, batch).loss
    assert torch.equal(torch.get_rng_state(), before), "a step must not draw from the global generator"
    torch.manual_seed(2)
    assert torch.equal(first, step(module, stored(32, 8), 7).loss)
    other = step(module, stored(40, 8)).loss
    assert not torch.equal(first, other)


def test_the_slot_says_which_samples_are_self_conditioned_whatever_the_batch() -> None:
    module = tiny(self_condition_rate=0.9)
    [whole] = module.on_after_batch_transfer(stored(0, 64), 0)
    draws = module.objective.draw(whole, module.rng, 0)
    assert draws.keep is not None and draws.most == 60 and 57 <= draws.keep.sum() <= 58
    rows = np.array([3, 40, 41, 9])
    for part, expected in ((whole.part(5, 17), draws.keep[5:17]), (whole.rows(rows), draws.keep[rows])):
        keep = module.objective.draw(part, module.rng, 0).keep
        assert keep is not None and torch.equal(keep, expected)


@pytest.mark.parametrize(
    ("keep", "most", "expected"),
    [
        ([True, False, True, True], 3, [0, 2, 3]),
        ([True, False, True, False], 3, [0, 2, 2]),
        ([True, True, True, True], 3, None),  # more than there is room for
        ([False] * 4, 3, None),
        ([True, False, True, True], 4, None),  # no row less than the batch has
    ],
)
def test_compiled_code_gets_kept_rows_in_one_shape(keep: list[bool], most: int, expected: list[int] | None) -> None:
    draws = Draws(torch.zeros(4, 1), Text(torch.zeros(4, 1, 1), torch.ones(4, 1)), torch.tensor(keep), most=most)
    given = draws.static(torch.device("cpu")).keep
    assert given is not None and given.tolist() == (keep if expected is None else expected)


def test_text_drop_replaces_by_the_empty_prompt_alone() -> None:
    for rate, expected in ((0.0, 3), (1.0, 1)):
        module = tiny(text_drop=rate)
        [batch] = module.on_after_batch_transfer(stored(0, 4), 0)
        text = module.objective.draw(batch, module.rng, 0).text
        assert text.mask.sum(1).tolist() == [expected] * 4
    assert torch.equal(text.embeddings[:, 0], torch.ones(4, 8))


def test_transforms_may_split_a_batch() -> None:
    module = tiny()

    def halves(batch: Batch) -> tuple[Batch, ...]:
        rows = [torch.arange(0, 3), torch.arange(3, 8)]
        return tuple(
            Batch(
                batch.latents[r], batch.text.rows(r), batch.t[r], batch.source[r], batch.index[r],
                slot=batch.slot + int(r[0]),
            )
            for r in rows
        )  # fmt: skip

    whole = step(module, stored(8, 8))
    module.add_batch_transform(halves)
    split = step(module, stored(8, 8))
    torch.testing.assert_close(whole.loss, split.loss, rtol=1e-5, atol=1e-6)
    assert torch.equal(whole.index, split.index)


def test_the_learning_rate_starts_at_its_first_step_and_not_at_the_full_one() -> None:
    from t2ikit.optim import AdamW, WarmupCosine

    module = tiny(optimizer=AdamW(lr=0.1), learning_rate=WarmupCosine(warmup=10))
    module._trainer = SimpleNamespace(estimated_stepping_batches=100)
    found = module.configure_optimizers()
    assert found["optimizer"].param_groups[0]["lr"] == pytest.approx(0.01)


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {"kind": "pixels", "image_shape": (3, 4, 4), "texts": {"t5": TextSource(8)}}
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (3, 8, 8)}, "input_size"),
        ({"texts": {"t5": TextSource(16)}}, "text_dim"),
        ({"kind": "latents", "image_shape": (2, 4, 4, 4)}, "space"),
    ],
)
def test_data_that_does_not_fit_names_the_option(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().check_manifest(manifest(**changes))
    tiny().check_manifest(manifest())


def test_another_space_than_the_checkpoint_s_is_refused() -> None:
    module = tiny()
    checkpoint: dict[str, object] = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="normalisation"):
        module.on_load_checkpoint({"space": {"space": "LatentSpace", "normalisation": "scalar"}})


def test_compiled_steps_are_plain_steps_and_leave_the_names_of_weights_alone() -> None:
    torch._dynamo.reset()
    plain, compiled = tiny(), tiny(compile={"backend": "eager"})
    assert plain.compiled is None and plain.state_dict().keys() == compiled.state_dict().keys()
    for a, b in zip(gradients(plain, [8]), gradients(compiled, [8]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert compiled.compiled is not None and compiled.compiled._function is not None
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    with pytest.raises(ValueError, match="compile must be null"):
        tiny(compile="quick")


def run_of(steps: int, trial: bool = False) -> SimpleNamespace:
    return SimpleNamespace(trainer=SimpleNamespace(max_steps=steps, max_epochs=-1, fast_dev_run=trial, strategy=None))


def test_a_run_inside_its_warmup_is_told(recwarn: pytest.WarningsRecorder) -> None:
    from t2ikit.optim import WarmupCosine

    module = tiny(learning_rate=WarmupCosine(warmup=10))
    module.validate_experiment(run_of(11))
    module.validate_experiment(run_of(1, trial=True))
    assert not [warning for warning in recwarn if "warm-up" in str(warning.message)]
    with pytest.warns(UserWarning, match=r"never leaves the warm-up; set model\.init_args\.learning_rate"):
        module.validate_experiment(run_of(10))


def test_a_clock_alone_ends_a_run_only_with_a_schedule_that_has_no_end() -> None:
    from t2ikit.optim import WarmupCosine

    clock = SimpleNamespace(trainer=SimpleNamespace(max_steps=-1, max_epochs=-1))
    tiny().validate_experiment(clock)
    cosine = tiny(learning_rate=WarmupCosine(warmup=10))
    cosine.validate_experiment(run_of(11))
    with pytest.raises(ValueError, match=r"trainer\.max_time.*trainer\.max_steps.*Constant"):
        cosine.validate_experiment(clock)
    constant = tiny()
    constant._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))
    assert constant.configure_optimizers()["optimizer"].param_groups[0]["lr"] == 1e-3


def test_a_step_with_the_texts_of_two_encoders() -> None:
    """The texts of a batch are a tuple; one step over two batches has the losses of each."""
    torch.manual_seed(0)
    denoiser = shallow_cad_i(in_channels=3, text_dim=[8, 5], pooled_dim=4)
    module = TextToImage(denoiser, Denoising(text_drop=0.3, text_drop_each=[0.2, 0.4]), PixelSpace())

    def texts(rows: int) -> tuple[Text, Text]:
        first, second = torch.randn(rows, 3, 8), torch.randn(rows, 2, 5)
        return (
            Text(first, torch.ones(rows, 3, dtype=torch.bool), torch.randn(rows, 4)),
            Text(second, torch.ones(rows, 2, dtype=torch.bool)),
        )

    module.unconditional = texts(1)
    numbers = torch.arange(6)
    whole = Batch(torch.randn(6, 3, 4, 4), texts(6), torch.linspace(0.1, 0.9, 6), numbers, numbers)
    module.eval()
    together = module.training_step((whole,), 0)["step"].loss
    split = module.training_step((whole.part(0, 2), whole.part(2, 6)), 0)["step"].loss
    torch.testing.assert_close(split, together)
    module._check_pooled(module.unconditional)
    with pytest.raises(ValueError, match="pooled vectors have 4 numbers, the denoiser takes 7.*pooled_dim"):
        module.denoiser.pooled_dim = 7
        module._check_pooled(module.unconditional)


def test_a_start_from_a_run_with_another_text_encoder_of_the_same_width_is_said() -> None:
    def texts(sha256: str) -> Manifest:
        return Manifest("pixels", (3, 4, 4), texts={"t5": TextSource(8, EncoderReference("t5", None, sha256))})

    def warned(start: Start, before: str | None) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            TextToImage._warn_of_other_encoders(start, Path("a.ckpt"), before, texts("1" * 64))
        return [str(warning.message) for warning in caught]

    other = texts("2" * 64).to_json()
    (said,) = warned(Start("a"), other)
    assert "a.ckpt was trained on the states of t5 (22222222), the data has those of t5 (11111111)" in said
    assert len(warned(Start("a", fit="grow", take=("text", "core")), other)) == 1
    assert not warned(Start("a", fit="grow", take=("core",)), other)
    assert not warned(Start("a"), texts("1" * 64).to_json()) and not warned(Start("a"), None)
    assert not warned(Start("a"), texts("").to_json())  # of imported weights only the name is known


def test_the_loss_at_fixed_t_is_the_same_for_every_seed() -> None:
    """Of latents, too, whose posterior is sampled; the loss that trains has the numbers of its run."""

    def losses(seed: int, *names: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        module = TextToImage(awake(shallow_cad_i()), space=LatentSpace(), seed=seed)
        return module.validation_losses(records, names)

    pixels = stored(0, 8)
    posterior = torch.randn(8, 2, 4, 4, 4, generator=torch.Generator().manual_seed(5)).abs().half()
    records = replace(pixels, image=posterior)
    both = ("loss", "loss_fixed_t")
    first, second = losses(1, *both), losses(2, *both)
    assert torch.equal(first["loss_fixed_t"], second["loss_fixed_t"])
    assert not torch.equal(first["loss"], second["loss"])
    for name in both:  # one alone is what it is beside the other
        assert torch.equal(losses(2, name)[name], second[name])


def test_validation_leaves_a_submodule_in_evaluation_mode() -> None:
    module = tiny()
    module.denoiser.rin_blocks[0].eval()
    module.validation_losses(stored(0, 8))
    assert module.denoiser.training and not module.denoiser.rin_blocks[0].training


class Tapped(Term):
    """A term that reads features after one block."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.needs = Needs(taps=(block,))

    def forward(self, main: MainPass) -> torch.Tensor:
        return next(iter(main.features.values())).square().mean((1, 2))


@pytest.mark.parametrize("block", [0, 2, 99])
def test_a_term_that_taps_no_block_is_refused_by_its_name(block: int) -> None:
    message = rf"objective\.init_args\.terms\.deep \(Tapped\): taps are blocks, 1 to 1 of CADI; got {block}"
    with pytest.raises(ValueError, match=message):
        tiny(terms={"first": Tapped(1), "deep": Tapped(block)}).check_needs(manifest())
    tiny(terms={"first": Tapped(1)}).check_needs(manifest())


def test_coherence_that_only_one_of_network_and_objective_knows_is_refused() -> None:
    def check(coherence: bool, name: str | None, **further: StoredArray) -> None:
        denoiser = shallow_cad_i(in_channels=3, coherence=coherence)
        TextToImage(denoiser, Denoising(coherence=name)).check_needs(manifest(further=further))

    check(True, "clip", clip=StoredArray("float16", (1,), None))
    check(False, None)
    with pytest.raises(ValueError, match=r"init_args\.coherence .*name the array of every record"):
        check(True, None)
    with pytest.raises(ValueError, match=r"init_args\.coherence .*this CADI knows no coherence"):
        check(False, "clip", clip=StoredArray("float16", (1,), None))
    with pytest.raises(ValueError, match="reads clip of every record; the prepared data has image"):
        check(True, "clip")
    with pytest.raises(ValueError, match=r"the array clip has shape \[8\]; one number a record"):
        check(True, "clip", clip=StoredArray("float16", (8,), None))
