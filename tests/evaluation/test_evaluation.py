"""The core of a snapshot: images that depend on their number alone, an interrupt that costs a batch, honest scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from t2ikit.batch import Text
from t2ikit.denoisers import CADI
from t2ikit.diffusion import Guidance
from t2ikit.evaluation import Evaluated, Evaluation
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.evaluation.sampling import identity_of
from t2ikit.evaluation.settings import Sampling
from t2ikit.evaluation.validation import SCORES
from t2ikit.metrics.base import CPU, Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.distribution.cmmd import CMMD
from t2ikit.metrics.distribution.distribution import DistributionMetrics
from t2ikit.metrics.distribution.kid import KID
from t2ikit.metrics.features.features import RandomConvFeatures
from t2ikit.module import TextToImage
from t2ikit.pictures import PictureFiles, StoredImages, find_pictures
from t2ikit.prompts import Encode, Prompt, PromptSource
from tiny import shallow_cad_i

COUNT = 11
DATA: Any = SimpleNamespace(trainer=None)
TwoRanks = Callable[[Callable[[], Any]], list[Any]]


class Numbered(PromptSource):
    """Prompts "0", "1", ...; every third one is the same text."""

    def __init__(self, count: int = COUNT, salt: int = 0) -> None:
        self.count, self.salt = count, salt

    def prompts(self) -> list[Prompt]:
        return [Prompt(str(number if number % 3 else 0)) for number in range(self.count)]

    def states(self, prompts: Sequence[Prompt], encode: Encode) -> list[Text]:
        generators = (torch.Generator().manual_seed(self.salt + int(prompt.text)) for prompt in prompts)
        return [
            Text.from_rows([torch.randn(1 + int(prompt.text) % 4, 8, generator=g)])
            for g, prompt in zip(generators, prompts, strict=True)
        ]


class Mean(Metric):
    """The mean of all pixels, with a standard error of 0.5; the darker, the better."""

    less_is_better = ("mean",)

    def __init__(self, name: str | None = None, add: float = 0.0) -> None:
        self.name, self.add = name, add

    def score(self, samples: Samples, rows: Rows) -> Result:
        value = float(samples.images[:].double().mean()) + self.add
        return Result({"mean": value}, {"mean": 0.5}, {"mean.txt": str(value).encode()})

    def fingerprint(self) -> dict[str, Any]:
        return {"add": self.add}


def module_of(seed: int = 0) -> TextToImage:
    torch.manual_seed(seed)
    denoiser = shallow_cad_i(
        input_size=8, in_channels=3, patch_size=4, latent_dim=16, num_registers=16, refine_heads=16
    )
    with torch.no_grad():
        for parameter in denoiser.parameters():  # a fresh one predicts zeros
            parameter.add_(0.05 * torch.randn_like(parameter))
    module = TextToImage(denoiser)
    module.unconditional = Text.from_rows([torch.zeros(1, 8)])
    return module


def evaluate(
    folder: Path,
    source: PromptSource | None = None,
    module: TextToImage | None = None,
    metric: Metric | None = None,
    **sampling: Any,
) -> Evaluated:
    settings = Sampling(**{"steps": 3, "guidance": 2.0, "batch_size": 4, **sampling})
    evaluation = Evaluation("val", source or Numbered(), [metric or Mean()])
    return evaluation.evaluate(module or module_of(), DATA, settings, folder / "drawn", weights="raw", step=7)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every call of the denoiser."""
    rows: list[int] = []
    forward = CADI.forward

    def counted(self: CADI, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(x.shape[0])
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(CADI, "forward", counted)
    return rows


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


def kill_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """The next evaluation ends while it writes batch number ``batches``."""
    add, done = ImageStore.add, list[int]()

    def limited(self: ImageStore, first: int, images: Tensor) -> None:
        if len(done) == batches:
            monkeypatch.setattr(ImageStore, "add", add)
            (self.folder / ".torn.npy.1-a.partial").write_bytes(b"half")
            raise Killed
        done.append(first)
        add(self, first, images)

    monkeypatch.setattr(ImageStore, "add", limited)


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_an_image_depends_on_its_number_and_prompt_alone(tmp_path: Path, method: str) -> None:
    one, three, all_ = (evaluate(tmp_path / str(size), batch_size=size, method=method).images[:] for size in (1, 3, 64))
    assert one.shape == (COUNT, 3, 8, 8) and one.float().std() > 10
    assert (one.int() - three.int()).abs().max() <= 1 and (one.int() - all_.int()).abs().max() <= 1
    assert len({image.numpy().tobytes() for image in one}) == COUNT  # also those of one prompt
    fewer = evaluate(tmp_path / "fewer", Numbered(5), method=method).images[:]
    assert (fewer.int() - one[:5].int()).abs().max() <= 1
    other = evaluate(tmp_path / "seed", seed=1, method=method).images[:]
    assert (other.int() - one.int()).abs().amax((1, 2, 3)).min() > 20


def test_an_interrupt_costs_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    whole = evaluate(tmp_path / "whole")
    full = list(calls)
    kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        evaluate(tmp_path / "cut")
    calls.clear()
    again = evaluate(tmp_path / "cut")
    # Batches of 4, 4 and 3: the third alone is drawn, 3 steps, guided from the second one on.
    assert calls == full[-len(calls) :] and 3 * len(calls) == len(full) and sum(calls) < sum(full) / 3
    assert torch.equal(again.images[:], whole.images[:])
    assert [score.value for score in again.scores] == [score.value for score in whole.scores]


def test_an_interrupt_while_it_is_scored_costs_no_image(tmp_path: Path, calls: list[int]) -> None:
    class Kills(Mean):
        def observe(self, batch: SampleBatch) -> Rows:
            raise Killed

    with pytest.raises(Killed):
        evaluate(tmp_path / "cut", metric=Kills())
    calls.clear()
    again = evaluate(tmp_path / "cut")
    assert not calls
    assert again.scores[0].value == evaluate(tmp_path / "whole").scores[0].value


def test_a_resumed_evaluation_may_have_other_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(tmp_path / "whole").images[:]
    kill_after(monkeypatch, 1)
    with pytest.raises(Killed):
        evaluate(tmp_path / "cut", batch_size=3)
    drawn = ImageStore(tmp_path / "cut" / "drawn", COUNT)
    assert drawn.missing(4) == [range(3, 4), range(4, 8), range(8, 11)]
    images = evaluate(tmp_path / "cut", batch_size=4).images[:]
    assert (images.int() - whole.int()).abs().max() <= 1
    with pytest.raises(RuntimeError, match="lacks images"):
        ImageStore(tmp_path / "none", 3).images()


@pytest.mark.parametrize(
    "change",
    [
        {"module": module_of(1)},
        {"source": Numbered(salt=5)},
        {"guidance": 1.0},
        {"guidance": Guidance(2.0, schedule="linear")},
        {"steps": 2},
        {"seed": 3},
        {"method": "euler"},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_stale_images_are_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int], change: dict[str, Any]
) -> None:
    undisturbed = evaluate(tmp_path / "new", **change).images[:]
    expected = list(calls)
    kill_after(monkeypatch, 2)
    with pytest.raises(Killed):
        evaluate(tmp_path / "cut")
    calls.clear()
    images = evaluate(tmp_path / "cut", **change).images[:]
    assert calls == expected and torch.equal(images, undisturbed)


def test_the_process_and_the_empty_prompt_are_part_of_the_identity() -> None:
    from t2ikit.diffusion import GaussianDiffusion

    states, sampling = [Text.from_rows([torch.zeros(2, 8)])], Sampling(steps=3)
    first, again, other, empty = (module_of() for _ in range(4))
    other.objective.process = GaussianDiffusion(schedule="sigmoid")
    empty.unconditional = Text.from_rows([torch.ones(1, 8)])
    assert identity_of(first, states, sampling) == identity_of(again, states, sampling)
    for changed in (other, empty):
        assert identity_of(changed, states, sampling) != identity_of(first, states, sampling)
    # The batch size is none of it, and a plain Guidance is its weight.
    bounded = Sampling(steps=3, threshold=("clamp", 1.0))
    assert bounded.conditions() == {**sampling.conditions(), "threshold": ["clamp", 1.0]}
    assert identity_of(first, states, bounded) != identity_of(first, states, sampling)
    assert identity_of(first, states, Sampling(steps=3, batch_size=1)) == identity_of(first, states, sampling)
    assert identity_of(first, states, Sampling(steps=3, guidance=Guidance(2.0))) == identity_of(first, states, sampling)


def test_a_score_says_what_it_depends_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(tmp_path, guidance=1)
    (score,) = found.scores
    assert score.value == pytest.approx(float(found.images[:].double().mean()))
    fingerprint = score.fingerprint
    assert (score.name, score.step, score.standard_error) == ("mean", 7, 0.5)
    assert (fingerprint.sampler, fingerprint.steps, fingerprint.guidance, fingerprint.seeds) == ("ddim", 3, 1.0, "0")
    assert (fingerprint.prompts, fingerprint.num_images) == ("Numbered", COUNT)
    assert fingerprint.extra == {"add": 0.0, "metric": "Mean", "weights": "raw", "precision": "32-true"}
    assert [cost.what for cost in found.costs] == ["sampling", "Mean"]
    assert all(cost.seconds >= 0 and cost.memory > 2**20 for cost in found.costs)
    printed = capsys.readouterr().out
    assert "val: sampling: " in printed and "val: Mean: " in printed and "MiB" in printed


def test_two_metrics_of_a_kind_need_names(tmp_path: Path) -> None:
    def scores(*metrics: Metric) -> list[str]:
        evaluation = Evaluation("val", Numbered(2), metrics)
        found = evaluation.evaluate(module_of(), DATA, Sampling(steps=1), tmp_path / "drawn", weights="raw", step=0)
        names = [*SCORES, *(score.name for score in found.scores)]
        assert all(map(evaluation.less_is_better, names)) and not evaluation.less_is_better("overfitting/gap")
        assert list(found.files) == [score.name.replace("/", "_") + ".txt" for score in found.scores]
        assert float(found.files["mean.txt"]) == found.scores[0].value
        return [score.name for score in found.scores]

    assert scores(Mean(), Mean("other")) == ["mean", "other/mean"]
    with pytest.raises(ValueError, match="callbacks.val: two metrics give mean; set `name`"):
        scores(Mean(), Mean())
    with pytest.raises(ValueError, match="callbacks.val: mean of Mean is nan"):
        scores(Mean(add=float("nan")))
    with pytest.raises(ValueError, match="Numbered gives no prompt"):
        Evaluation("val", Numbered(0)).prepare(DATA)


def test_pictures_of_another_program_are_scored_as_kept_ones_are(tmp_path: Path) -> None:
    found = evaluate(tmp_path)
    evaluation = Evaluation("val", Numbered(), [Mean()])
    evaluation.prepare(DATA, samples=False)
    for _ in range(2):  # the second time it replaces the folder
        evaluation.keep_images(tmp_path / "kept", found.images, {"seed": 0})
    files = find_pictures(tmp_path / "kept")
    assert [path.name for path in files] == [f"{number:05d}.png" for number in range(COUNT)]
    assert torch.equal(PictureFiles(files)[:], found.images[:])
    (ours,), (theirs,) = found.scores, evaluation.evaluate_pictures(tmp_path / "kept", DATA).scores
    assert theirs.value == ours.value and theirs.fingerprint.sampler is None and theirs.step is None
    assert set(ours.fingerprint.differences(theirs.fingerprint)) == {
        "sampler", "steps", "seeds", "guidance", "extra.precision", "extra.weights"
    }  # fmt: skip
    files[3].unlink()
    with pytest.raises(ValueError, match=f"holds {COUNT - 1} pictures, Numbered has {COUNT} prompts"):
        evaluation.evaluate_pictures(tmp_path / "kept", DATA)


def test_pictures_are_looked_at_by_all_ranks(tmp_path: Path, two_ranks: TwoRanks) -> None:
    found = evaluate(tmp_path)
    evaluation = Evaluation("val", Numbered(), [Mean()])
    evaluation.prepare(DATA, samples=False)
    evaluation.keep_images(tmp_path / "kept", found.images, {"seed": 0})

    def work() -> Any:
        both = [Evaluation("val", Numbered(), [metric]) for metric in (Mean(), Seen())]
        scores = [one.evaluate_pictures(tmp_path / "kept", DATA).scores[0].value for one in both]
        return scores, both[1].metrics[0].seen  # type: ignore[attr-defined]

    value = found.scores[0].value
    for (scores, seen), share in zip(two_ranks(work), (COUNT // 2, COUNT - COUNT // 2), strict=True):
        assert scores == pytest.approx([value, value]) and seen == share


def test_metrics_refuse_before_anything_is_sampled(
    tmp_path: Path, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = DistributionMetrics(RandomConvFeatures(dim=8), k=12)
    black = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr("t2ikit.evaluation.reference_images.real_images", lambda *_: black)
    for reference, message in ((None, "needs reference images"), ("val", "at least 14: raise prompts.limit")):
        evaluation = Evaluation("val", Numbered(), [metric], reference)
        with pytest.raises(ValueError, match=message):
            evaluation.evaluate(module_of(), DATA, Sampling(steps=1), tmp_path / "drawn", weights="raw", step=0)
    assert not calls and not (tmp_path / "drawn").exists()


class Seen(Mean):
    """The mean, of what was seen image by image."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def observe(self, batch: SampleBatch) -> Rows:
        self.seen += len(batch)
        return batch.images.double().flatten(1).mean(1)

    def score(self, samples: Samples, rows: Rows) -> Result:
        return Result({"mean": float(torch.as_tensor(rows).mean())})


class Compared(Mean):
    """How far the mean of the reference is."""

    def score(self, samples: Samples, rows: Rows) -> Result:
        assert samples.reference is not None and tuple(samples.reference.images.shape[1:]) == tuple(
            samples.images.shape[1:]
        )
        return Result({"reference_mean": float(samples.reference.images[:].double().mean())})


def test_photos_of_the_prompts_are_a_reference(tmp_path: Path) -> None:
    class Photos(Numbered):
        def pictures(self) -> list[Path]:
            return find_pictures(tmp_path / "photos")

    (tmp_path / "photos").mkdir()
    for number, grey in enumerate((10, 30, 200)):
        Image.new("RGB", (20 + number, 16), (grey, grey, grey)).save(tmp_path / "photos" / f"{number}.png")
    for limit, expected in ((None, 80.0), (2, 20.0)):
        evaluation = Evaluation("val", Photos(2), [Compared()], "prompts", limit)
        found = evaluation.evaluate(module_of(), DATA, Sampling(steps=1), tmp_path / "drawn", weights="raw", step=0)
        assert found.scores[0].value == expected
        assert found.scores[0].fingerprint.num_reference == (limit or 3)
    # One that is cut off is named when it is read, one that is none before anything is drawn.
    evaluation, cut = Evaluation("val", Photos(2), [Compared()], "prompts"), tmp_path / "photos" / "30.png"
    Image.effect_noise((50, 50), 90).convert("RGB").save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    evaluation.prepare(DATA)
    with pytest.raises(ValueError, match="30.png is no whole image"):
        evaluation.evaluate(module_of(), DATA, Sampling(steps=1), tmp_path / "drawn", weights="raw", step=0)
    cut.write_bytes(b"")
    with pytest.raises(ValueError, match="30.png is no whole image"):
        Evaluation("val", Photos(2), [Compared()], "prompts").prepare(DATA)
    with pytest.raises(ValueError, match="reference: prompts needs prompts with photos of their own"):
        Evaluation("val", Numbered(2), [Compared()], "prompts").prepare(DATA)


def measures(features: type[RandomConvFeatures], statistics: str | None = None) -> list[Metric]:
    """Frechet and PRDC, CMMD and KID, in batches of unlike sizes."""
    return [
        DistributionMetrics(features(dim=8), k=3, batch_size=4, reference_statistics=statistics),
        CMMD(features(dim=8), batch_size=5, reference_statistics=statistics),
        KID(features(dim=8), subset_size=9, subsets=3, reference_statistics=statistics),
    ]


def test_a_network_looks_once_at_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(RandomConvFeatures):
        def __call__(self, images: Tensor) -> Tensor:
            looks.append(len(images))
            return super().__call__(images)

    looks: list[int] = []
    reads: list[int] = []
    read = StoredImages.__getitem__

    def counted(self: StoredImages, index: Any) -> Tensor:
        images = read(self, index)
        reads.append(len(images))
        return images

    monkeypatch.setattr(StoredImages, "__getitem__", counted)
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=generator)
    monkeypatch.setattr("t2ikit.evaluation.reference_images.real_images", lambda *_: real)
    monkeypatch.setattr("t2ikit.evaluation.evaluation.real_images", lambda *_: real)
    evaluation = Evaluation("val", Numbered(), measures(Counted), "val")
    evaluation.prepare(DATA, samples=False)
    for seed, expected in ((1, COUNT + len(real)), (2, COUNT)):  # the reference of a second snapshot is known
        images = torch.randint(0, 256, (COUNT, 3, 16, 16), dtype=torch.uint8, generator=generator.manual_seed(seed))
        evaluation.keep_images(tmp_path / "kept", images, {})
        looks.clear()
        of_images = evaluation.evaluate_pictures(tmp_path / "kept", DATA).scores
        assert sum(looks) == expected and len(of_images) == 8
        assert reads == [4, 4, 3]  # of the pictures no more than a batch is in memory
        reads.clear()
    # Statistics from a file take the place of the reference images, and give the same scores.
    looks.clear()
    (written,) = Evaluation("val", Numbered(), measures(Counted), "val").write_reference(tmp_path, DATA, CPU)
    assert sum(looks) == len(real)
    looks.clear()
    of_file = Evaluation("val", Numbered(), measures(Counted, str(written)))
    scores = of_file.evaluate_pictures(tmp_path / "kept", DATA).scores
    assert sum(looks) == COUNT and [score.value for score in scores] == [score.value for score in of_images]


@pytest.mark.parametrize("error", [ImportError("pip install seldom"), OSError("no weights at hub/x")])
def test_a_metric_without_its_package_or_weights_is_refused_before_anything_is_sampled(error: Exception) -> None:
    class Lacking(Mean):
        def fingerprint(self) -> dict[str, Any]:
            raise error

    evaluation = Evaluation("val", Numbered(), [Mean(), Lacking()])
    with pytest.raises(ValueError, match=rf"callbacks\.val: Lacking cannot be computed: {error}"):
        evaluation.prepare(DATA)


@pytest.mark.parametrize("names", [True, "mean"])
def test_less_is_better_that_lists_no_names_is_refused_before_anything_is_sampled(names: Any) -> None:
    metric = Mean()
    metric.less_is_better = names
    with pytest.raises(ValueError, match=r"callbacks\.val: less_is_better of Mean must list the names"):
        Evaluation("val", Numbered(), [metric]).prepare(DATA)
