"""The metric SynthReal: what it finds on images whose classes are known, what it keeps, what it leaves untouched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from t2ikit import cli
from t2ikit.classify import SynthReal
from t2ikit.evaluation.scoring import score_samples
from t2ikit.metrics.base import Samples, reference_of
from t2ikit.metrics.fingerprint import read_scores

SETTINGS: dict[str, Any] = {
    "per_class": 8,
    "test_per_class": 8,
    "size": 16,
    "network": "test_resnet",
    "epochs": 6,
    "batch": 8,
}


def images(classes: int, count: int, seed: int, shift: int = 0) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """``count`` images a class, brighter in the channel of the class plus ``shift``; classes follow each other."""
    numbers = np.random.default_rng(seed)
    pixels = numbers.integers(0, 120, (classes * count, 3, 20, 20)).astype(np.uint8)
    labels = np.arange(classes * count) % classes
    for row, label in enumerate(labels):
        pixels[row, (label + shift) % 3] += 100
    return torch.from_numpy(pixels), [{"class_id": 7 * int(label)} for label in labels]


def samples(count: int = 16, shift: int = 0, real_count: int = 16) -> Samples:
    pictures, metadata = images(3, count, 1, shift)
    real, labels = images(3, real_count, 2)
    return Samples(pictures, metadata=metadata, reference=reference_of(real, metadata=labels))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))


def test_useful_images_teach_and_those_of_other_classes_do_not() -> None:
    metric = SynthReal(**SETTINGS)
    good = metric.compute(samples())
    assert good.values["synth_real"] > 0.8 and good.values["real_synth"] > 0.8 and good.values["real_real"] > 0.8
    assert good.values["ratio"] == good.values["synth_real"] / good.values["real_real"]
    assert set(good.errors) == {"synth_real", "real_synth", "real_real"}
    wrong = metric.compute(samples(shift=1))
    assert wrong.values["synth_real"] < 0.2 and wrong.values["real_synth"] < 0.2
    assert wrong.values["real_real"] == good.values["real_real"]


def test_the_real_network_is_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    train = SynthReal._trained
    monkeypatch.setattr(SynthReal, "_trained", lambda self, *given: (trained.append(given[-1]), train(self, *given))[1])
    first = SynthReal(**SETTINGS)
    values = first.compute(samples()).values
    assert trained == ["generated", "real"]
    assert first.compute(samples()).values == values and trained[2:] == ["generated"]
    assert SynthReal(**SETTINGS).compute(samples()).values == values and trained[3:] == [
        "generated"
    ]  # out of the cache
    other = SynthReal(**{**SETTINGS, "epochs": 5})
    other.compute(samples())
    assert trained[4:] == ["generated", "real"]


def test_random_state_and_modes_stay_as_they_are() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad(), torch.inference_mode():
        first = SynthReal(**SETTINGS).compute(samples()).values
        assert not torch.is_grad_enabled() and torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert SynthReal(**SETTINGS).compute(samples()).values == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(s, "reference", None), "set `reference` of the snapshot"),
        (lambda s: s.metadata.__setitem__(3, {}), "the prompts have no class_id"),
        (lambda s: setattr(s.reference, "metadata", ()), "the records of the reference have no class_id"),
        (lambda s: s.metadata.__setitem__(3, {"class_id": 7}), r"class 0 has 15 generated images, and .* are 16"),
        (lambda s: s.reference.metadata.__setitem__(4, {"class_id": 0}), r"class 7 has 15 real images"),
    ],
)
def test_what_lacks_is_said_before_anything_is_sampled(change: Callable[[Samples], None], message: str) -> None:
    given = samples()
    change(given)
    with pytest.raises(ValueError, match=message):
        SynthReal(**SETTINGS).check(given)


def test_two_ranks_get_the_scores_of_the_first(two_ranks: Callable[..., list[Any]]) -> None:
    def work() -> dict[str, float]:
        scores, _ = score_samples(samples(), [SynthReal(**SETTINGS)], {}, None, "callbacks.useful", [])
        return {score.name: score.value for score in scores}

    first, second = two_ranks(work)
    assert first == second and first["synth_real"] > 0.8


def test_bad_settings_are_refused() -> None:
    for option, value in (("per_class", 1), ("classes", 1), ("epochs", 0), ("network", "resnet49")):
        with pytest.raises(ValueError, match=f"{option if option != 'network' else 'no network'}"):
            SynthReal(**{**SETTINGS, option: value})


SNAPSHOT = """
extends: [tiny.yaml]
data: {init_args: {val_count: 48}}
trainer: {max_steps: 6}
callbacks:
  val: null
  geneval: null
  table: null
  useful:
    class_path: t2ikit.callbacks.Snapshot
    init_args:
      prompts: {class_path: t2ikit.evaluation.CaptionPrompts, init_args: {split: val, limit: 48}}
      metrics:
        - class_path: t2ikit.classify.SynthReal
          init_args: {per_class: 2, test_per_class: 1, size: 16, network: test_resnet, epochs: 2, batch: 4}
      reference: val
      every_n_steps: 3
      at_start: false
      steps: 2
"""


def test_a_snapshot_trains_and_leaves_the_run_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.enter(tmp_path, monkeypatch, {"small.yaml": SNAPSHOT})
    assert cli.main(["run", "small.yaml"]) == 0
    assert cli.main(["run", "small.yaml", "--run.name", "without", "--callbacks.useful", "null"]) == 0
    scores = read_scores(tmp_path / "runs/small/version_0/samples/useful/scores/step-00000006")
    assert set(scores) == {"synth_real", "real_synth", "real_real", "ratio"}
    fingerprint = scores["ratio"].fingerprint.named()
    assert fingerprint["network"] == "test_resnet" and fingerprint["reference"] == "val"
    states = []
    for name in ("small", "without"):
        content = torch.load(tmp_path / f"runs/{name}/version_0/checkpoints/step-00000006.ckpt", weights_only=True)
        kept = {key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")}
        states.append({**tiny.leaves(kept), **tiny.leaves(content["callbacks"]["EMA"], "EMA")})
    tiny.assert_same(*states)
