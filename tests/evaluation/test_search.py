"""Test-time search: the first candidate is the plain image, the verifier chooses, and its own score is no result."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ikit.batch import Text
from t2ikit.denoisers import CADI
from t2ikit.diffusion import Denoising, Guidance, RectifiedFlow
from t2ikit.evaluation import Evaluated, Evaluation, Search
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.evaluation.sampling import sample_batch
from t2ikit.evaluation.search import Chosen, neighbour
from t2ikit.evaluation.selection import first_and_best
from t2ikit.evaluation.settings import Sampling
from t2ikit.metrics import DistributionMetrics, RandomConvFeatures
from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples
from t2ikit.metrics.fingerprint import UnlikeFingerprints, compare
from t2ikit.metrics.geneval.metric import GenEval
from t2ikit.module import TextToImage
from t2ikit.prompts import Encode, Prompt, PromptSource
from t2ikit.shapes import ShapesDetector
from t2ikit.shapes.scenes import render, scenes
from tiny import awake, shallow_cad_i

COUNT = 7
CANDIDATES = 6
DATA: Any = SimpleNamespace(trainer=None)


def row(tokens: int, seed: int) -> Text:
    return Text.from_rows([torch.randn(tokens, 8, generator=torch.Generator().manual_seed(seed))])


class Numbered(PromptSource):
    """Prompts "0", "1", ...; the metadata of the last one asks for nothing."""

    def __init__(self, count: int = COUNT) -> None:
        self.count = count

    def prompts(self) -> list[Prompt]:
        return [Prompt(str(number), {"asks": number < COUNT - 1}) for number in range(self.count)]

    def states(self, prompts: Sequence[Prompt], encode: Encode) -> list[Text]:
        return [row(1 + int(prompt.text) % 4, int(prompt.text)) for prompt in prompts]


class Brightness(Metric):
    """Mean of the pixels of channel ``channel``, and of all; nothing where the metadata ask for nothing."""

    batch_size = 5

    def __init__(self, channel: int = 0, only: bool = True, name: str | None = None) -> None:
        self.channel, self.only, self.name = channel, only, name

    def observe(self, batch: SampleBatch) -> Rows:
        means = batch.images.double().mean((2, 3))
        means[[not metadata["asks"] for metadata in batch.metadata]] = math.nan
        return means

    def score(self, samples: Samples, rows: Rows) -> Result:
        means = torch.as_tensor(rows)
        known = means[~means[:, 0].isnan()]
        value = float(known[:, self.channel].mean()) if len(known) else math.nan
        return Result({"bright": value} if self.only else {"bright": value, "all": float(known.mean())})

    def fingerprint(self) -> dict[str, Any]:
        return {"features": f"channel {self.channel}"}


class Darkness(Brightness):
    less_is_better = ("bright",)


def module_of() -> TextToImage:
    torch.manual_seed(0)
    denoiser = awake(shallow_cad_i(input_size=8, in_channels=3, patch_size=4))
    module = TextToImage(denoiser, Denoising(RectifiedFlow())).eval()
    module.unconditional = row(1, 90)
    return module


def settings(search: Search | None, **changes: Any) -> Sampling:
    return Sampling(**{"steps": 3, "method": "euler", "batch_size": 8, "search": search, **changes})


def search_of(method: str = "random", verifier: Metric | None = None, **changes: Any) -> Search:
    return Search(verifier or Brightness(), **{"method": method, "candidates": CANDIDATES, **changes})  # type: ignore[arg-type]


def evaluate(folder: Path, search: Search | None, metrics: Sequence[Metric] = (), **changes: Any) -> Evaluated:
    evaluation = Evaluation("val", Numbered(), metrics)
    return evaluation.evaluate(module_of(), DATA, settings(search, **changes), folder, weights="raw", step=7)


def values_of(evaluated: Evaluated) -> Tensor:
    """[B, N], of the table of candidates."""
    rows = list(csv.reader(evaluated.files["search_candidates.csv"].decode().splitlines()))[1:]
    return torch.tensor([[float(value or "nan") for value in row[2:]] for row in rows], dtype=torch.float64)


def brightness(images: Any) -> Tensor:
    return images[:].double()[:, 0].mean((1, 2))


METHODS = ["random", "zero-order"]


@pytest.mark.parametrize("method", METHODS)
def test_the_best_candidate_is_chosen(tmp_path: Path, method: str) -> None:
    plain = evaluate(tmp_path / "plain", None).images[:]
    found = evaluate(tmp_path / "found", search_of(method))
    values, asked = values_of(found), slice(0, COUNT - 1)
    assert values.shape == (COUNT, CANDIDATES) and len(values[asked].unique()) == CANDIDATES * (COUNT - 1)
    assert torch.allclose(values[asked, 0], brightness(plain)[asked], atol=0.5)  # the first one is the plain image
    assert torch.equal(values[asked].amax(1), brightness(found.images)[asked])
    assert (values[asked].argmax(1) > 0).sum() > 1
    # Where the verifier says nothing of an image, the first candidate stays.
    assert values[-1].isnan().all() and (found.images[-1].int() - plain[-1].int()).abs().max() <= 1


def test_less_may_be_better(tmp_path: Path) -> None:
    found = evaluate(tmp_path, search_of(verifier=Darkness()))
    asked = slice(0, COUNT - 1)
    assert torch.equal(values_of(found)[asked].amin(1), brightness(found.images)[asked])
    curve = [score.value for score in found.scores]
    assert curve[0] < curve[1]  # best, first


@pytest.mark.parametrize("solver", ["euler", "ddpm"])
@pytest.mark.parametrize("method", METHODS)
def test_an_image_does_not_depend_on_its_batch(tmp_path: Path, method: str, solver: str) -> None:
    search = search_of(method, neighbours=2)
    one, four, all_ = (evaluate(tmp_path / str(size), search, batch_size=size, method=solver) for size in (1, 4, 64))
    for other in (four, all_):
        assert (one.images[:].int() - other.images[:].int()).abs().max() <= 1
        assert (values_of(one) - values_of(other)).nan_to_num().abs().max() < 0.5


def test_more_candidates_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    few, many = (
        values_of(evaluate(tmp_path / str(count), search_of(candidates=count), batch_size=1)) for count in (3, 5)
    )
    assert torch.equal(few.nan_to_num(), many[:, :3].nan_to_num())


def test_neighbours_lie_on_the_sphere_of_their_pivot() -> None:
    pivot, fresh = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    near = neighbour(pivot, fresh, 0.8)
    lengths = [x.flatten(1).norm(dim=1) for x in (pivot, near)]
    assert torch.allclose(*lengths)
    assert torch.allclose((pivot * near).flatten(1).sum(1) / lengths[0] ** 2, torch.tensor(0.8), atol=1e-5)


def test_zero_order_starts_each_round_from_the_best_so_far() -> None:
    search, starts = search_of("zero-order", candidates=5, neighbours=2, similarity=0.9), list[Tensor]()
    assert search.rounds() == [range(1), range(1, 3), range(3, 5)]

    def fresh(candidate: int) -> Tensor:
        return torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(candidate))

    scores = iter([0, 200, 100, 50, 150])

    def render(noise: Tensor, rows: Any) -> Tensor:
        starts.extend(noise)
        return torch.cat([torch.full((1, 3, 2, 2), next(scores), dtype=torch.uint8) for _ in rows])

    chosen = search.choose([Prompt("0", {"asks": True})], fresh, render, 8)
    assert chosen.values.tolist() == [[0, 200, 100, 50, 150]] and int(chosen.images[0, 0, 0, 0]) == 200
    cosines = [[float((a * b).sum() / (a * a).sum()) for b in starts] for a in starts]
    assert cosines[0][1] == pytest.approx(0.9) and cosines[0][2] == pytest.approx(0.9)
    assert cosines[1][3] == pytest.approx(0.9) and cosines[1][4] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("solver", "guidance"),
    [
        ("euler", 0.0),
        ("euler", 2.0),
        ("heun", 2.0),
        ("ddim", Guidance(2.0, latent_weight=0.5)),
        ("ddim", Guidance(1.0, weaker=awake(shallow_cad_i(input_size=8, in_channels=3, patch_size=4)))),
    ],
    ids=["plain", "guided", "heun", "latent", "weaker"],
)
def test_text_is_encoded_once_and_evaluations_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solver: str, guidance: Any
) -> None:
    encoded, evaluated = list[int](), list[int]()
    encode_text, forward = CADI.encode_text, CADI.forward

    def encoding(self: CADI, text: Any, *args: Any, **kwargs: Any) -> Any:
        encoded.append(len(text))
        return encode_text(self, text, *args, **kwargs)

    def evaluating(self: CADI, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(len(x))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(CADI, "encode_text", encoding)
    monkeypatch.setattr(CADI, "forward", evaluating)
    found = evaluate(tmp_path, search_of("zero-order"), method=solver, guidance=guidance, batch_size=64)
    weaker = isinstance(guidance, Guidance) and guidance.weaker is not None
    assert encoded == ([COUNT] if guidance == 0.0 else [COUNT, COUNT] if weaker else [COUNT, 1])
    assert max(evaluated) == 4 * COUNT  # the neighbours of all images are one batch
    (reported,) = (score.value for score in found.scores if score.name == "selection/network_evaluations")
    assert sum(evaluated) == COUNT * reported


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9."""


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_search_goes_on_to_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole = evaluate(tmp_path / "whole", search_of(method))
    add, done = ImageStore.add_chosen, list[int]()

    def limited(self: ImageStore, first: int, chosen: Chosen) -> None:
        if len(done) == 2:
            self._write(first, first + len(chosen.images), "values", chosen.values)
            raise Killed
        done.append(first)
        add(self, first, chosen)

    monkeypatch.setattr(ImageStore, "add_chosen", limited)
    with pytest.raises(Killed):
        evaluate(tmp_path / "cut", search_of(method))
    resumed = list[int]()

    def counted(self: ImageStore, first: int, chosen: Chosen) -> None:
        resumed.append(first)
        add(self, first, chosen)

    monkeypatch.setattr(ImageStore, "add_chosen", counted)
    again = evaluate(tmp_path / "cut", search_of(method))
    assert resumed and min(resumed) > max(done)  # what was stored is not searched again
    assert torch.equal(again.images[:], whole.images[:]) and again.files == whole.files
    assert [score.value for score in again.scores] == [score.value for score in whole.scores]
    # Of another verifier, nothing is kept.
    resumed.clear()
    evaluate(tmp_path / "cut", search_of(method, verifier=Brightness(1)))
    assert resumed[0] == 0


def test_two_ranks_search_as_one(tmp_path: Path, two_ranks: Callable[[Callable[[], Any]], list[Any]]) -> None:
    alone = evaluate(tmp_path / "alone", search_of())

    def work() -> Any:
        found = evaluate(tmp_path / "both", search_of())
        return found.images[:].numpy(), [(score.name, score.value) for score in found.scores]

    for images, scores in two_ranks(work):
        assert (torch.from_numpy(images) == alone.images[:]).all()
        assert scores == [(score.name, score.value) for score in alone.scores]


def test_a_verifier_is_no_judge_of_what_it_chose(tmp_path: Path) -> None:
    for verifier, metric in ((Brightness(), Brightness()), (Brightness(), Darkness()), (Darkness(), Brightness())):
        with pytest.raises(
            ValueError, match=r"callbacks\.val: \w+ has chosen these images .* set its name to selection"
        ):
            evaluate(tmp_path / "refused", search_of(verifier=verifier), [metric])
        assert not (tmp_path / "refused").exists()
    found = evaluate(tmp_path / "named", search_of(), [Brightness(name="selection"), Brightness(2)])
    assert [score.name for score in found.scores] == [
        "selection/bright",
        "bright",
        "selection/bright_first",
        "selection/network_evaluations",
    ]


def test_scores_say_that_images_were_chosen(tmp_path: Path) -> None:
    plain = evaluate(tmp_path / "plain", None, [Brightness(2)]).scores[0]
    found = evaluate(tmp_path / "found", search_of("zero-order", similarity=0.5), [Brightness(2)]).scores
    assert "search" not in plain.fingerprint.extra
    for score in found:
        said = score.fingerprint.extra["search"]
        assert said == {
            "method": "zero-order",
            "candidates": CANDIDATES,
            "neighbours": 4,
            "similarity": 0.5,
            "verifier": {"metric": "Brightness", "features": "channel 0"},
        }
    with pytest.raises(UnlikeFingerprints, match=r"extra\.search"):
        compare(plain.fingerprint, found[0].fingerprint)
    compare(plain.fingerprint, found[0].fingerprint, ["search"])


def test_the_curve(tmp_path: Path) -> None:
    found = evaluate(tmp_path, search_of())
    lines = list(csv.DictReader(found.files["search_curve.csv"].decode().splitlines()))
    values = values_of(found)[:-1]  # the last image has no score
    for count, line in enumerate(lines, start=1):
        best = values[:, :count].amax(1)
        assert (line["candidates"], line["network_evaluations"]) == (str(count), str(5 * count))
        assert float(line["bright"]) == pytest.approx(float(best.mean()))
        assert float(line["standard_error"]) == pytest.approx(float(best.std()) / math.sqrt(len(best)))
    by_name = {score.name: score for score in found.scores}
    assert by_name["selection/bright"].value == float(lines[-1]["bright"])
    assert by_name["selection/bright_first"].value == float(lines[0]["bright"])
    assert found.files["search_curve.png"][:4] == found.files["search_first_and_best.png"][:4] == b"\x89PNG"


def test_first_above_best() -> None:
    firsts, bests = torch.zeros(18, 3, 96, 96, dtype=torch.uint8), torch.full((18, 3, 96, 96), 9, dtype=torch.uint8)
    picture = first_and_best(firsts, bests)
    assert picture.shape == (3, 4 * 98 - 2, 16 * 98 - 2)
    assert [int(picture[0, 98 * line, 0]) for line in range(4)] == [0, 9, 0, 9]
    assert int(picture[0, 98 * 2, 98 * 2]) == 255  # two images are left for the last lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": 1}, "candidates must be at least 2, got 1"),
        ({"method": "best"}, "random or zero-order, got 'best'"),
        ({"similarity": 1.0}, r"cosine in \(-1, 1\), got 1.0"),
        ({"neighbours": 0}, "neighbours must be at least 1"),
        ({"verifier": DistributionMetrics(RandomConvFeatures(dim=8))}, "compares sets of images"),
        ({"verifier": Brightness(only=False)}, "search.score is None; set it to one of its scores: bright, all"),
        ({"score": "dark"}, "search.score is dark; set it to one of its scores: bright"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "images", search_of(**options))
    assert not (tmp_path / "images").exists()


def test_one_of_several_scores_decides(tmp_path: Path) -> None:
    found = evaluate(tmp_path, search_of(verifier=Brightness(only=False), score="all"))
    means = found.images[:-1].double().mean((1, 2, 3))
    assert torch.allclose(values_of(found)[:-1].amax(1), means)
    assert found.scores[0].fingerprint.extra["search"]["verifier"]["score"] == "all"


def test_geneval_may_choose() -> None:
    metadata = {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a photo of a circle"}
    verifier = GenEval(ShapesDetector())
    scene = next(scene for scene in scenes(0, "val", 0, 40, "simple") if scene.main.class_name == "circle")
    images = torch.stack([torch.from_numpy(render(scene, 32)), torch.zeros(3, 32, 32, dtype=torch.uint8)])
    search = search_of(verifier=verifier, score="correct_images")
    search.check([Prompt("a photo of a circle", metadata)], [DistributionMetrics(RandomConvFeatures(dim=8))], "val")
    assert search.values(images, [Prompt("a photo of a circle", metadata)] * 2) == [1.0, 0.0]


def test_contexts_are_those_of_the_texts() -> None:
    module, texts = module_of(), [row(2, 1), row(3, 2)]
    sampling = settings(None, guidance=2.0)
    plain = sample_batch(module, texts, 0, sampling)
    contexts = module.encode(Text.join(texts), 2.0)
    noise = torch.stack([torch.zeros(3, 8, 8)] * 2)
    options: dict[str, Any] = {"steps": 3, "guidance": 2.0, "method": "euler"}
    whole = module.sample(Text.join(texts), noise, **options)
    swapped = module.sample(contexts.rows(torch.tensor([1, 0])), noise, **options)
    assert torch.allclose(whole.flip(0), swapped, atol=1e-5) and plain.shape == (2, 3, 8, 8)
