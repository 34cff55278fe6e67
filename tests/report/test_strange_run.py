"""The page of a stranger's run folder: it shows nothing else of the reader's, asks for no pipe, and runs no script."""

from __future__ import annotations

import json
import os
import re
import string
from pathlib import Path

import pytest
from report.test_run import make_run

from t2ikit.report.run import run_page
from t2ikit.report.run_folder import Run, read_run

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def page_of(folder: Path) -> tuple[Run, str]:
    run = read_run(folder, folder.name)
    return run, run_page([run], "Report")


@pytest.mark.parametrize(
    "name",
    [
        "samples/imagenet_val/prompts.txt",
        "samples/imagenet_val/step-00000020.png",
        "metrics.csv",
        "classification.json",
        "environment.yaml",
        "config.yaml",
        "samples/imagenet_val/scores/step-00000020/more.json",
    ],
)
@pytest.mark.parametrize("kind", ["link", "pipe", "device"])
def test_links_and_pipes_are_left_out(run: Path, name: str, kind: str) -> None:
    path, outside = run / name, run.parent / "mine"
    path.unlink(missing_ok=True)
    outside.write_text("my own words\n")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside if kind == "link" else "/dev/zero")
    read, html = page_of(run)
    said = "it is no file" if kind == "pipe" else "it is a link out of the run folder"
    assert f"{name} is left out: {said}." in read.missing
    assert "my own words" not in html


def test_a_pipe_is_no_checkpoint_and_no_end(run: Path) -> None:
    (run / "checkpoints").mkdir()
    os.mkfifo(run / "checkpoints/step-00000020.ckpt")
    (run / "finished").unlink()
    os.mkfifo(run / "finished")
    read, _ = page_of(run)
    assert read.step is None and not read.finished


def _aliases(line: str) -> str:
    lines = ["a: &a {k: 1}"]
    for before, name in zip(string.ascii_lowercase, string.ascii_lowercase[1:], strict=False):
        lines.append(f"{name}: &{name} " + line.replace("one", f"*{before}"))
    return "\n".join(lines)


@pytest.mark.parametrize("name", ["config.yaml", "environment.yaml", "finished", "classification.json"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, _aliases("{x: one, y: one, z: one}"), _aliases("{<<: [one, one, one]}"), "&a [*a, *a]"]
)
def test_what_would_fill_the_memory_is_left_out(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    read, _ = page_of(run)
    assert name == "finished" or any(f"{name} cannot be read" in sentence for sentence in read.missing)


def test_prompts_are_one_a_line_feed_and_damaged_ones_are_named(run: Path) -> None:
    path = run / "samples/imagenet_val/prompts.txt"
    path.write_text("a red\u2028circle\na blue\u0085square\n", encoding="utf-8")
    assert page_of(run)[0].prompts == {"imagenet_val": ["a red\u2028circle", "a blue\u0085square"]}
    path.write_bytes("ein grüner Kreis\n".encode("latin-1"))
    read, _ = page_of(run)
    assert not read.prompts and any("prompts of imagenet_val are left out" in sentence for sentence in read.missing)


def test_a_file_of_too_many_bytes_is_left_out(run: Path) -> None:
    with (run / "metrics.csv").open("wb") as file:
        file.truncate(2**40)  # without a byte on the disk
    assert any("metrics.csv is left out: it has more than" in sentence for sentence in page_of(run)[0].missing)


def test_other_kinds_of_values_do_not_end_the_reading(run: Path) -> None:
    (run / "config.yaml").write_text("run: [1]\nmodel: 3\ntrainer: {num_nodes: [a], devices: 3, max_steps: 1e400}\n")
    (run / "environment.yaml").write_text("machine: [1]\npackages: x\ncommit: [1]\n")
    (run / "classification.json").write_text('{"tests": [1], "selected": 3}')
    page_of(run)


def test_texts_are_shown_and_not_run(run: Path) -> None:
    word = json.dumps(SCRIPT)
    (run / "config.yaml").write_text(f"run: {{name: {word}}}\nmodel: {{class_path: {word}}}\n{word}: 1\n")
    (run / "environment.yaml").write_text(f"command: {word}\nmachine: {{gpus: [{word}]}}\n")
    classification = {"tests": {SCRIPT: {"images": 1}}, "selected": {SCRIPT: SCRIPT}}
    (run / "classification.json").write_text(json.dumps(classification))
    (run / "samples/imagenet_val/prompts.txt").write_text(SCRIPT + "\n")
    rows = [f'{step},"{name}{SCRIPT}",0.5' for step in (1, 2) for name in ("train/", "train/loss/", "imagenet_val/")]
    (run / "metrics.csv").write_text("\n".join(["step,name,value", *rows, ""]))
    _, html = page_of(run)
    assert SCRIPT not in html and "<script>alert" not in html and not re.search(r"<img[^>]*onerror", html)
    assert html.count("&lt;script&gt;alert(1)") > 5
