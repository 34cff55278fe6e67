"""Every rank looks at its share of the images, on its device; the scores are those of one rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from t2ikit.evaluation.scoring import score_samples, write_references
from t2ikit.metrics.base import Metric, Result, Rows, SampleBatch, Samples, look, reference_of
from t2ikit.metrics.distribution.cmmd import CMMD
from t2ikit.metrics.distribution.distribution import DistributionMetrics
from t2ikit.metrics.distribution.kid import KID
from t2ikit.metrics.features.features import FeatureExtractor, NetworkHolder, RandomConvFeatures
from t2ikit.metrics.features.networks import CLIPFeatures, DINOv2Features
from t2ikit.metrics.fingerprint import Score
from t2ikit.metrics.geneval.metric import GenEval
from t2ikit.metrics.questions.answers import Choices, QuestionAnswerer
from t2ikit.metrics.questions.dsg import DSG

COUNT, REFERENCE = 23, 31
ITEMS = ("tifa_1", "vrd_2")
TwoRanks = Callable[[Callable[[], Any]], list[Any]]


def pictures(count: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def metadata(number: int) -> dict[str, Any]:
    clause = {"class": "clock", "count": 1}
    return {"tag": "counting", "include": [clause], "prompt": f"{number % 5}", "item_id": ITEMS[number % 2]}


IMAGES, REFERENCES = pictures(COUNT, 0), pictures(REFERENCE, 1)
TEXTS, METADATA = [str(k) for k in range(COUNT)], [metadata(k) for k in range(COUNT)]


def scored(metrics: list[Metric], reference: Samples | None = None) -> list[Score]:
    """As an evaluation does."""
    samples = Samples(IMAGES, TEXTS, METADATA, reference or reference_of(REFERENCES, "photos"))
    return score_samples(samples, metrics, {"prompts": "numbers"}, 7, "callbacks.val", [])[0]


class Counted(FeatureExtractor):
    """Random convolutions that note how many images they see."""

    def __init__(self) -> None:
        self.network = RandomConvFeatures(dim=8)
        self.name, self.dim = self.network.name, self.network.dim
        self.seen: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return self.network(images)

    def fingerprint(self) -> dict[str, Any]:
        return self.network.fingerprint()


class Told(QuestionAnswerer):
    """Says "yes" of bright images."""

    def free_answers(self, images: Tensor, questions: Any, choices: Choices = None) -> list[str]:
        return ["yes" if float(image.float().mean()) > 127 else "no" for image in images]

    def identity(self) -> dict[str, Any]:
        return {"features": "told", "features_sha256": "0" * 64}


@pytest.fixture
def questions(tmp_path: Any) -> str:
    header = "item_id,text,category_broad,category_detailed,proposition_id,dependency,tuple,question_natural_language"
    rows = [f"{item},x,entity,whole,{k},0,entity - whole (x),Is it {k}?" for item in ITEMS for k in (1, 2)]
    (tmp_path / "dsg.csv").write_text("\n".join([header, *rows]) + "\n")
    return str(tmp_path / "dsg.csv")


def detect(image: Tensor) -> list[dict[str, Any]]:
    return [{"class": "clock", "color": "red", "box": [1, 1, 9, 9], "score": 0.99}] * (1 + int(image[0, 0, 0]) % 2)


def make(questions: str) -> list[Metric]:
    judge = DSG(questions, Told(batch_size=3), answers=questions + ".answers")
    features = [
        DistributionMetrics(Counted(), k=3, batch_size=4),
        CMMD(Counted(), batch_size=5),
        KID(Counted(), batch_size=5, subset_size=9, subsets=3),
    ]
    return [*features, GenEval(detect), judge]


def test_two_ranks_give_the_scores_of_one(two_ranks: TwoRanks, questions: str) -> None:
    expected = scored(make(questions))
    assert {score.name for score in expected} > {"frechet_distance", "coverage", "cmmd", "overall", "dsg"}

    def work() -> Any:
        metrics, reference = make(questions), reference_of(REFERENCES, "photos")
        twice = [scored(metrics, reference), scored(metrics, reference)]
        return twice, [sum(metric.features.seen) for metric in metrics[:3]]  # type: ignore[attr-defined]

    looks = 0
    for scores, seen in two_ranks(work):
        for found in scores:
            assert [score.name for score in found] == [score.name for score in expected]
            for mine, theirs in zip(found, expected, strict=True):
                assert mine.value == pytest.approx(theirs.value, rel=1e-5, abs=1e-9), mine.name
                assert (mine.fingerprint, mine.step, mine.standard_error) == (
                    theirs.fingerprint, theirs.step, theirs.standard_error
                )  # fmt: skip
        # Its share of the reference once, and of the images twice; the other metrics on this network do not look.
        assert seen[1:] == [0, 0]
        looks += seen[0]
    assert looks == REFERENCE + 2 * COUNT


def test_an_error_on_one_rank_ends_both(two_ranks: TwoRanks) -> None:
    class Fails(Metric):
        def observe(self, batch: SampleBatch) -> Rows:
            if batch.first > 0:
                raise ValueError(f"image {batch.first} is odd")
            return super().observe(batch)

        def score(self, samples: Samples, rows: Rows) -> Result:
            return Result({"none": 0.0})

        def fingerprint(self) -> dict[str, Any]:
            return {}

    first, second = two_ranks(lambda: scored([Fails()]))
    assert second == "ValueError: image 11 is odd" and first == f"OtherRankFailed: rank 1 failed: {second}"


def test_networks_see_images_on_the_device_of_their_rank(questions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device stands for a GPU: it is none of the CPU."""
    devices: dict[str, str] = {}

    class Features(Counted):
        def __call__(self, images: Tensor) -> Tensor:
            devices["features"] = images.device.type
            return torch.zeros(len(images), self.dim)

    class Answers(Told):
        def free_answers(self, images: Tensor, questions: Any, choices: Choices = None) -> list[str]:
            devices["answers"] = images.device.type
            return ["yes"] * len(images)

    def detector(image: Tensor) -> list[dict[str, Any]]:
        devices["detector"] = image.device.type
        return []

    monkeypatch.setattr(
        "t2ikit.metrics.questions.answers.images_sha256", lambda images: "0" * 64
    )  # these have no pixels
    samples = Samples(IMAGES, TEXTS, METADATA, device=torch.device("meta"))
    metrics = [CMMD(Features()), GenEval(detector), DSG(questions, Answers(), answers=questions + ".answers")]
    for metric in metrics:
        assert len(look(metric, samples, range(COUNT))) == COUNT
    assert devices == {"features": "meta", "answers": "meta", "detector": "meta"}


class Precise(Metric):
    """Notes how exact products are while it looks, and where its networks are afterwards."""

    def __init__(self, rows: int = COUNT) -> None:
        self.rows = rows
        self.exact: list[Any] = []
        self.moves: list[Any] = []
        outer = self

        class Network(nn.Linear):
            def to(self, *args: Any, **kwargs: Any) -> Any:
                outer.moves.append(args)
                return super().to(*args, **kwargs)

        class Encoder(NetworkHolder):
            def __init__(self) -> None:
                self._loaded = (Network(1, 1), "tokenizer")

        self.encoder = Encoder()

    def observe(self, batch: SampleBatch) -> Rows:
        self.exact = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]
        return [0] * self.rows

    def score(self, samples: Samples, rows: Rows) -> Result:
        return Result({"zero": float(sum(rows))})

    def fingerprint(self) -> dict[str, Any]:
        return {}


def test_networks_are_exact_and_leave_the_device_to_training() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        before = torch.backends.cudnn.allow_tf32
        scored([metric := Precise()])
        assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cudnn.allow_tf32 == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert metric.exact == ["highest", False] and metric.moves == [("cpu",)]
    failing = Precise(rows=3)
    with pytest.raises(ValueError, match="Precise: observe gives 3 rows for 23 images"):
        scored([failing])
    assert failing.moves == [("cpu",)]


class Piped(Counted):
    """One network of two ways to show it images."""

    def __init__(self, pipeline: str) -> None:
        super().__init__()
        self.pipeline = pipeline

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "resize": self.pipeline}


def test_statistics_of_one_network_with_two_pipelines_are_two_files(tmp_path: Path) -> None:
    none, first, second = Samples(IMAGES[:0], reference=reference_of(REFERENCES, "photos")), Piped("a"), Piped("b")
    metrics = [CMMD(first), DistributionMetrics(second, k=3), KID(Piped("a"), subset_size=9, subsets=3)]
    files = write_references(tmp_path, none, metrics)
    assert list(files.values()) == [["CMMD", "KID"], ["DistributionMetrics"]]
    assert [path.name for path in files] == [f"{first.name}.npz", f"{first.name}_2.npz"]
    samples = Samples(IMAGES, TEXTS)
    for path, features in zip(files, (first, second), strict=True):
        DistributionMetrics(features, k=3, reference_statistics=str(path)).compute(samples)
    # A file of the other one is refused before anything is drawn.
    with pytest.raises(ValueError, match="differ in resize: 'b' there, 'a' here"):
        DistributionMetrics(first, k=3, reference_statistics=str(path)).check(samples)


def test_names_of_files_of_statistics_say_how_images_are_shown() -> None:
    def name(features: FeatureExtractor) -> str | None:
        return CMMD(features).statistics_file

    assert name(RandomConvFeatures(dim=8)) == "random_conv_8_seed0.npz"
    assert name(DINOv2Features("a/b")) == "dinov2_a_b.npz"
    assert name(CLIPFeatures("a/b", pipeline="cmmd_224")) == "clip_a_b_cmmd_224.npz"
    assert (
        name(CLIPFeatures("a/b", pipeline="open_clip_224", unit_length=False))
        == "clip_a_b_open_clip_224_any_length.npz"
    )
