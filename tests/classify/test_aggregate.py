"""From trainings to the numbers of the paper: means, errors, gaps; the paper's own; copies of training photos."""

from __future__ import annotations

import math

import pytest
import torch

from t2ikit.classify.aggregate import Group, Trained, estimate, gap_of, per_class, rows_of
from t2ikit.classify.published import PUBLISHED, paper_accuracy, published
from t2ikit.classify.results import ClassificationResults, TestScore
from t2ikit.metrics.distribution.copies import share_of_copies


def score(accuracy: float, images: int = 1000) -> TestScore:
    return TestScore(accuracy, images, {"n01443537": (int(accuracy * 10), 10)})


def trained(source: str, seed: int, **tests: float) -> Trained:
    scores = {name: score(accuracy) for name, accuracy in tests.items()}
    return Trained(source, "rgb", "resnet50", seed, None, ClassificationResults({}, {}, scores, {}))


def test_errors_are_of_seeds_or_of_images() -> None:
    three = estimate([score(0.5), score(0.6), score(0.7)])
    assert three.mean == pytest.approx(0.6) and three.error == pytest.approx(0.1 / math.sqrt(3))
    assert three.kind == "seeds" and three.sampling == pytest.approx(math.sqrt(0.24 / 1000))
    assert three.total == pytest.approx(math.hypot(three.error, three.sampling))
    single = estimate([score(0.6)])
    assert (single.kind, single.error, single.total) == ("images", single.sampling, single.sampling)
    with pytest.raises(ValueError, match="no training"):
        estimate([])


def test_gaps() -> None:
    real, synthetic = estimate([score(0.7), score(0.8)]), estimate([score(0.5), score(0.55)])
    gap, relative = gap_of(real, synthetic)
    assert gap == pytest.approx((0.225, math.hypot(0.05, 0.025)))
    assert relative is not None and relative[0] == pytest.approx(0.3)
    assert relative[1] == pytest.approx(math.hypot(0.025 / 0.75, 0.525 / 0.75**2 * 0.05))
    assert gap_of(estimate([score(0.0)]), synthetic)[1] is None


def test_rows_have_both_directions_and_the_real_source_first() -> None:
    runs = [trained("mine", seed, real=0.4 + 0.1 * seed, mine=0.9) for seed in (1, 0)]
    runs += [trained("real", seed, real=0.7, mine=0.6) for seed in (0, 1)]
    rows = rows_of(runs)[Group("rgb", "resnet50", None)]
    assert [row.source for row in rows] == ["real", "mine"]
    assert rows[1].synth_real.values == (0.4, 0.5) and rows[0].gap is None and rows[0].real_synth is None
    assert rows[1].real_synth is not None and rows[1].real_synth.mean == pytest.approx(0.6)
    assert rows[1].gap is not None and rows[1].gap[0] == pytest.approx(0.25)
    alone = rows_of(runs[:2])[Group("rgb", "resnet50", None)]
    assert alone[0].gap is None and alone[0].real_synth is None
    assert per_class([score(0.4), score(0.6)]) == {"n01443537": 0.5}


def test_the_paper_s_numbers() -> None:
    assert len(PUBLISHED) == 13 and published("sd-1.5") == ("SD1.5", PUBLISHED["SD1.5"])
    assert published("mine") is None and paper_accuracy("mine", "rgb", "resnet50") is None
    assert paper_accuracy("qwen_image", "rgb", "swin_tiny") == 0.085
    assert paper_accuracy("Qwen-Image", "texture", "bagnet9") == 0.04
    assert paper_accuracy("Qwen-Image", "texture", "resnet50") is None
    assert paper_accuracy("real", "high", "resnet50") == 0.516 and paper_accuracy("real", "rgb", "vit_tiny") == 0.42
    assert paper_accuracy("FLUX-dev captions", "rgb", "resnet50") == 0.556
    assert paper_accuracy("vae_sdxl", "high", "resnet50") == 0.371 and paper_accuracy("vae", "rgb", "resnet50") is None
    assert PUBLISHED["SD3-medium"].coverage is None and PUBLISHED["SD2.1"].real_synth == 0.238


def test_copies_are_nearer_than_photos_are() -> None:
    generator = torch.Generator().manual_seed(0)
    real, same = torch.randn(2, 400, 16, generator=generator).unbind()
    assert share_of_copies(real, same) < 0.05
    half = torch.cat([same[:200], real[:200] + 1e-3 * same[:200]])
    assert share_of_copies(real, half) == pytest.approx(0.5, abs=0.03)
    assert share_of_copies(real, real) == 1.0
    with pytest.raises(ValueError, match="two real rows"):
        share_of_copies(real[:1], same)
