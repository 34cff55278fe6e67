"""A search as a user asks for it: in an experiment, in ``t2ikit sample`` and in ``t2ikit evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.evaluation.image_store import ImageStore
from t2ikit.evaluation.search import Chosen
from t2ikit.metrics.fingerprint import read_scores

EXPERIMENT = """
extends: [tiny.yaml]
model: {init_args: {optimizer: {init_args: {lr: 0.05}}}}
data: {init_args: {root: data}}
trainer: {max_steps: 2}
callbacks:
  geneval: null
  table: null
  cutmix: null
  progress: null
  val:
    init_args:
      prompts: {init_args: {limit: 4}}
      metrics: [t2ikit.shapes.LargestColorShare]
      reference: null
      validation_loss: false
      at_start: false
      steps: 2
      batch_size: 6
      search:
        class_path: t2ikit.evaluation.Search
        init_args: {method: zero-order, candidates: 4, neighbours: 3, verifier: {class_path: bright.Bright}}
"""
BRIGHT = '''
from t2ikit.metrics.base import Metric, Result


class Bright(Metric):
    """The mean of all pixels."""

    def observe(self, batch):
        return batch.images.double().mean((1, 2, 3)).cpu()

    def score(self, samples, rows):
        return Result({"bright": float(rows.mean())})

    def fingerprint(self):
        return {}
'''
RUN = Path("runs/small/version_0")
SEARCH = ["--search", "random", "--candidates", "3", "--verifier", "bright.Bright", "--trust", "bright"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with bright.py and runs/small/version_0, made by ``t2ikit run``."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {"small.yaml": EXPERIMENT, "bright.py": BRIGHT})
        assert cli.main(["run", "small.yaml"]) == 0
    return folder


@pytest.fixture
def folder(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the current folder."""
    return tiny.current(trained, monkeypatch)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The message of a call that is refused."""
    capsys.readouterr()
    assert cli.main(list(words)) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_snapshot_searches(folder: Path) -> None:
    samples = RUN / "samples" / "val"
    scores = read_scores(samples / "scores" / "step-00000002")
    assert set(scores) == {
        "largest_color_share",
        "selection/bright",
        "selection/bright_first",
        "selection/network_evaluations",
    }
    assert scores["selection/bright"].value > scores["selection/bright_first"].value
    assert scores["selection/network_evaluations"].value == 4 * 3  # the first of two steps is not guided
    said = scores["largest_color_share"].fingerprint.extra["search"]
    assert (said["method"], said["candidates"], said["verifier"]) == ("zero-order", 4, {"metric": "Bright"})
    details = {path.name for path in (samples / "details" / "step-00000002").iterdir()}
    assert details == {
        "search_candidates.csv",
        "search_curve.csv",
        "search_curve.png",
        "search_first_and_best.png",
    }
    assert read_metrics(RUN / "metrics.csv")["val/selection/bright"] == [(2, scores["selection/bright"].value)]
    assert not list(samples.glob("*.sampling"))


def test_the_verifier_is_refused_as_a_metric(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "small.yaml", "--run.name", "other", "--callbacks.val.metrics", "[bright.Bright]"]
    message = refused(capsys, *words)
    assert "callbacks.val: Bright has chosen these images (search.verifier)" in message
    words = ["evaluate", str(RUN), "--snapshot", "val", "--verifier", "t2ikit.shapes.LargestColorShare"]
    assert "LargestColorShare has chosen these images" in refused(capsys, *words, "--trust", "bright")


def test_evaluate_searches(folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(RUN), "--snapshot", "val", "--out", str(tmp_path)]
    plain = ["--callbacks.val.search", "null"]
    assert cli.main([*words, *plain]) == 0
    compared = ["--compare", str(tmp_path / "step-00000002-search-null"), "--varied", "search"]
    assert cli.main([*words, *plain, *SEARCH, *compared]) == 0
    names = ("step-00000002-search-null", "step-00000002-search-random-candidates-3-verifier-Bright-search-null")
    first, best = (read_scores(tmp_path / name / "scores") for name in names)
    assert set(first) == {"largest_color_share"} and set(best) > set(first)
    assert best["selection/bright"].fingerprint.extra["search"]["method"] == "random"
    # Options replace those of the snapshot's own search.
    assert cli.main([*words, "--candidates", "5", "--trust", "bright"]) == 0
    said = read_scores(tmp_path / "step-00000002-candidates-5" / "scores")["largest_color_share"].fingerprint
    assert (said.extra["search"]["method"], said.extra["search"]["candidates"]) == ("zero-order", 5)


def read(out: Path) -> np.ndarray:
    """All images [N, H, W, 3] of a folder."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(out.glob("0*.png"))]).astype(int)


def test_sample_searches_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", str(RUN), "--prompt", "a red circle", "--prompt", "a blue star", "--count", "2", "--steps", "3"]
    words += ["--batch-size", "3"]
    assert cli.main([*words, "--out", str(tmp_path / "plain")]) == 0
    assert cli.main([*words, *SEARCH, "--out", str(tmp_path / "best"), "--grid", str(tmp_path / "grid.png")]) == 0
    assert "random search: bright of the verifier from " in capsys.readouterr().out
    plain, best = read(tmp_path / "plain"), read(tmp_path / "best")
    assert (best.mean((1, 2, 3)) >= plain.mean((1, 2, 3)) - 0.5).all() and (best != plain).any()
    assert {path.name for path in (tmp_path / "best").iterdir() if not path.name.startswith(("0", "."))} == {
        "search_candidates.csv",
        "search_curve.csv",
        "search_curve.png",
        "search_first_and_best.png",
    }
    for index, image in enumerate(best):
        text = Image.open(tmp_path / "best" / f"{index:05d}.png").text  # type: ignore[attr-defined]
        said = json.loads(text["search"])
        assert (said["candidates"], text["network_evaluations"]) == (3, "15")
        assert float(text["verifier_score"]) == pytest.approx(image.mean())
        if text["chosen"] == "0":
            assert np.abs(image - plain[index]).max() <= 1

    add = ImageStore.add_chosen

    def limited(self: ImageStore, first: int, chosen: Chosen) -> None:
        if first == 2:
            raise KeyboardInterrupt
        add(self, first, chosen)

    monkeypatch.setattr(ImageStore, "add_chosen", limited)
    cut = [*words, *SEARCH, "--out", str(tmp_path / "cut")]
    assert cli.main(cut) == 130
    assert len(list((tmp_path / "cut" / "images.sampling").glob("*.npy"))) == 2
    firsts = list[int]()

    def counted(self: ImageStore, first: int, chosen: Chosen) -> None:
        firsts.append(first)
        add(self, first, chosen)

    monkeypatch.setattr(ImageStore, "add_chosen", counted)
    assert cli.main(cut) == 0 and firsts == [2, 3]
    assert np.array_equal(read(tmp_path / "cut"), best) and not (tmp_path / "cut" / "images.sampling").exists()


def test_what_is_missing_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(RUN), "--prompt", "a red circle", "--out", "out"]
    assert "needs --search random or zero-order and --verifier METRIC" in refused(capsys, *words, "--candidates", "3")
    message = refused(capsys, *words, "--search", "random", "--verifier", "t2ikit.metrics.Nothing")
    assert "--verifier" in message and "Nothing" in message
    message = refused(capsys, *words, "--search", "random", "--verifier", "t2ikit.shapes.LargestColorShare")
    assert "search.verifier LargestColorShare cannot score an image" in message
    words = ["evaluate", "--images", "out", "--experiment", "small.yaml", "--snapshot", "val", "--search", "random"]
    assert "--search is an option of sampling" in refused(capsys, *words)
