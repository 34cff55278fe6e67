"""The conformance suite: our own classes pass it, each check finds its fault, and the command says so."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing import broken_denoisers, broken_others

import tiny
from t2ikit.callbacks import ByTextLength, Crop, CutMix
from t2ikit.denoisers import Levels
from t2ikit.diffusion import Denoising, RectifiedFlow, VelocityError
from t2ikit.diffusion.solvers import SOLVERS
from t2ikit.metrics import DistributionMetrics, GenEval, RandomConvFeatures
from t2ikit.shapes import AskedProbability, LargestColorShare, ShapesDetector
from t2ikit.testing import examine
from t2ikit.testing.__main__ import main
from t2ikit.testing.base import Subject, run_checks
from t2ikit.testing.kinds import KINDS

FAULTS = {
    "denoiser": broken_denoisers.FAULTS,
    "objective": broken_others.OBJECTIVES,
    "term": broken_others.TERMS,
    "solver": broken_others.SOLVER_FAULTS,
    "augmentation": broken_others.AUGMENTATIONS,
    "metric": broken_others.METRICS,
}
CHECKS = {kind.name: {check.name: check for check in kind.checks} for kind in KINDS}

TWO: dict[str, Any] = {"text_dim": [8, 5], "pooled_dim": 3}
"""Texts of two encoders of unlike width, the first with pooled vectors."""

# What passes, and the checks that do not apply to it. Whoever adds a class adds a line.
OURS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "cad_i": (lambda: tiny.shallow_cad_i(patch_size=1, window_tokens=True, coherence=True), {"several texts"}),
    "dit_i": (
        lambda: tiny.shallow_dit_i(patch_size=1, window_tokens=True),
        {"self-conditioning", "several texts", "coherence"},
    ),
    "cad_i-two": (lambda: tiny.shallow_cad_i(patch_size=1, window_tokens=True, **TWO), {"coherence"}),
    "dit_i-two": (
        lambda: tiny.shallow_dit_i(patch_size=1, window_tokens=True, **TWO),
        {"self-conditioning", "coherence"},
    ),
    "dit_i-two-modulated": (
        lambda: tiny.shallow_dit_i(time_conditioning="adaln_single", **TWO),
        {"self-conditioning", "window", "coherence"},
    ),
    "uvit": (lambda: tiny.uvit(text_dim=8), {"self-conditioning", "window", "several texts", "coherence"}),
    "uvit-levels-two": (
        lambda: tiny.uvit(shell=Levels(2, (8,), (2,), 8), text_dim=[8, 5]),
        {"self-conditioning", "window", "coherence"},
    ),
    "small": (broken_denoisers.Small, {"several texts", "coherence"}),
    "small-two": (broken_denoisers.TwoTexts, {"coherence"}),
    "denoising": (Denoising, set()),
    "denoising-term": (
        lambda: Denoising(RectifiedFlow(), 0.2, 0.5, 0.1, VelocityError(), {"align": broken_others.Align(0.5, 9)}),
        {"window"},
    ),
    "term": (broken_others.Align, {"window"}),
    **{name: (lambda name=name: SOLVERS[name], set()) for name in SOLVERS},
    "crop": (Crop, {"stored stream"}),
    "by-text-length": (lambda: ByTextLength(2), {"stored stream"}),
    "crop-free": (lambda: Crop(0.7, "free"), {"stored stream"}),
    "distribution": (lambda: DistributionMetrics(RandomConvFeatures()), set()),
    "geneval": (lambda: GenEval(ShapesDetector()), set()),
    "largest_color_share": (LargestColorShare, set()),
    "asked_probability": (lambda: AskedProbability(64, 1), set()),
    "brightness": (broken_others.Brightness, set()),
}


LONG = ("cad_i-two", "dit_i-two", "dit_i-two-modulated", "uvit-levels-two", "denoising-term")
"""Left to ``nox -s long``: each differs little from one that is not."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in LONG else pytest.mark.slow) for name in OURS],
)
def test_ours_pass(name: str) -> None:
    build, lacks = OURS[name]
    report = examine(build, broken_others.ARRAYS)
    assert report.ok, report.of("failed")
    assert set(report.of("does not apply")) == lacks


@pytest.mark.parametrize(
    ("kind", "check", "fault", "sentence"),
    [pytest.param(kind, *fault, id=fault[1].__name__) for kind, faults in FAULTS.items() for fault in faults],
)
def test_a_check_finds_its_fault(kind: str, check: str, fault: Callable[[], Any], sentence: str) -> None:
    (outcome,) = run_checks("broken", [CHECKS[kind][check]], Subject(fault, broken_others.ARRAYS)).outcomes
    assert outcome.state == "failed"
    assert re.search(sentence, outcome.detail), outcome.detail


@pytest.mark.parametrize("kind", FAULTS)
def test_every_check_has_a_fault_that_it_finds(kind: str) -> None:
    assert {check for check, _, _ in FAULTS[kind]} == set(CHECKS[kind])


def test_what_extend_shows_passes() -> None:
    """The page itself examines its denoiser."""
    shown: dict[str, Any] = {}
    page = (Path(__file__).parents[2] / "docs" / "extend.md").read_text()
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)), shown)
    assert shown["report"].ok
    for name in ("Mirror", "Collage", "Features", "Restless", "Brightness"):
        report = examine(shown[name])
        assert report.ok, report.of("failed")


def test_a_stored_augmentation_is_not_passed_off_as_tried() -> None:
    report = examine(CutMix)
    assert not report.ok and not report.of("failed")
    assert "it reads prepared data" in report.of("does not apply")["not in place"]


def test_the_command_tries_a_class_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mirror_trial.py").write_text(
        "from dataclasses import replace\n"
        "from t2ikit.callbacks import AugmentationCallback\n"
        "class Mirror(AugmentationCallback):\n"
        "    def __init__(self, keep_slots: bool = True, start: int = 0):\n"
        "        super().__init__()\n"
        "        self.move = start if keep_slots else 1\n"
        "    def augment(self, batch):\n"
        "        return replace(batch, latents=batch.latents.flip(-1), slot=batch.slot + self.move)\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["mirror_trial.Mirror"]) == 0
    assert "4 passed" in capsys.readouterr().out
    assert main(["mirror_trial.Mirror", "--keep_slots", "false", "--start=0"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"rows and slots kept .* failed", shown) and "3 passed, 1 failed" in shown
    assert re.search("rows and slots kept: every row must come back once, .*batch.part", shown)
    (tmp_path / "leaves_trial.py").write_text(
        "import sys\nfrom mirror_trial import Mirror\n"
        "class Leaves(Mirror):\n    def __init__(self):\n        sys.exit(0)\n"
    )
    for words, message in (
        (["leaves_trial.Leaves"], "its constructor ends the process, sys.exit(0)"),
        (["mirror_trial.Miror"], "nearest known: 'Mirror'"),
        (["mirror_trial.Mirror", "--slots", "1"], "takes no 'slots'"),
        (["mirror_trial.Mirror", "--start"], "--start needs a value"),
        (["mirror_trial.Mirror", "3"], "'3' belongs to no option"),
        (["t2ikit.optim.Lamb"], "derived from none of Denoiser, Objective"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_options_reach_nested_classes_and_solvers_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--features", "t2ikit.metrics.RandomConvFeatures", "--features.dim", "8", "--k", "3"]
    assert main(["t2ikit.metrics.DistributionMetrics", *words]) == 0
    assert "rows [24, 8]" in capsys.readouterr().out
    assert main(["heun"]) == 0
    assert "11 evaluations in 6 steps" in capsys.readouterr().out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "python -m t2ikit.testing plain.Plain --width 32" in capsys.readouterr().out
