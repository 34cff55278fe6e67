"""Every row of SynthReal in docs/reproduce.md runs, in small: the command of the page on three classes of noise."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from class_pictures import WNIDS, fill, tiny_depth_anything

import tiny
from t2ikit import cli

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"
RECIPE = """
    --data.size 32 --data.filter_size 32 --data.batch_size 12 --data.num_workers 0 --data.held_out 0.25
    --data.depth_model depth --trainer.max_steps 1 --trainer.accelerator cpu
"""
BENCHMARKS = ["--classes", "classes.tsv", "--seeds", "1", "--features", "random", *RECIPE.split()]
SAMPLED = """
    --data.num_workers 0 --data.text_encoder text_encoder
    --callbacks.{0}.prompts.classes shapes.tsv --callbacks.{0}.prompts.per_class 2
"""
TRAINED = """
extends: [tiny.yaml]
trainer: {max_steps: 1}
data: {init_args: {root: data}}
callbacks: {progress: null, table: null, geneval: null, val: null}
"""


def rows() -> dict[str, str]:
    """The commands of the section, by their row."""
    section = (ROOT / "docs/reproduce.md").read_text().partition('## SynthReal: "When')[2].partition("\n## ")[0]
    found = re.findall(r"^\| ([^|]*) \| ([^|]*) \| `([^`]*)` \|$", section, re.MULTILINE)
    return {f"{paper}: {row}": command for paper, row, command in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and images of a model in class folders, a tiny Depth Anything, and a run on shapes."""
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {"small.yaml": TRAINED})
        for number, name in enumerate(("IMAGENET", "MODEL")):
            fill(folder / name / "train", 8, 2 * number, size=(36, 34))
            fill(folder / name / "val", 3, 2 * number + 1, size=(36, 34))
        (folder / "classes.tsv").write_text("".join(f"{wnid}\tclass {label}\n" for label, wnid in enumerate(WNIDS)))
        (folder / "shapes.tsv").write_text("circle\tcircle\nsquare\tsquare\n")
        tiny_depth_anything(folder / "depth")
        (folder / "experiments").symlink_to(EXPERIMENTS)
        assert cli.main(["run", "small.yaml"]) == 0
    return folder


def small(command: str) -> list[str]:
    """The words of a command with the tiny parts in place of the large ones."""
    words = shlex.split(command)[1:]
    if words[0] == "benchmark":
        words = [{"500": "6", "50,100,250,500": "4,6"}.get(word, word) for word in words]
        return [*words, *BENCHMARKS]
    if words[:2] == ["prepare", "reencode"]:
        words[words.index("--autoencoder") + 1] = "embedded:shapes-full"
        return [*words, "--size", "32", "--device", "cpu"]
    snapshot = words[words.index("--snapshot") + 1]
    words = ["runs/small/version_0" if word == "RUN" else word for word in words]
    words[words.index("--data.root") + 1] = "data"
    return [*words, *SAMPLED.format(snapshot).split(), "--steps", "1", "--device", "cpu"]


def test_the_rows_of_the_specification_are_there() -> None:
    papers = {row.partition(":")[0] for row in rows()}
    assert papers >= {"4.1", "Figures 1 and 6", "Figure 3", "Figure 4, left", "Figure 4, right", "Figure 5", "poster"}
    assert papers >= {"Appendix A", "Figure 2, Appendix B"} and len(rows()) == 13


# Captions of a server and GenEval of pictures have tests of their own (tests/prepare, tests/test_evaluate.py).
OTHERS = ("4.1: captions of photos", "Figure 3: GenEval, CLIPScore")


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("row", [row for row in rows() if row not in OTHERS])
def test_a_row_runs_in_small(row: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.current(folder, monkeypatch)
    assert cli.main(small(rows()[row])) == 0
