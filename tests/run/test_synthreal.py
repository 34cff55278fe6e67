"""``t2ikit benchmark synthreal``: cells, files and page; kills; sources that come later; what is refused before."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from class_pictures import WNIDS, fill

import tiny
from t2ikit import cli
from t2ikit.classify.results import read_results
from t2ikit.commands.verify_resume import take_overrides
from t2ikit.run import synthreal_cells
from t2ikit.run.experiment import origins_of
from t2ikit.run.synthreal import CellsOfView, benchmark_of, refuse_bad

NAMES = ("real", "good", "bad")
pytestmark = pytest.mark.timeout(1200)  # every call trains several classifiers
RECIPE = """
    --data.size 16 --data.filter_size 16 --data.augmentation light --data.batch_size 8 --data.num_workers 0
    --data.held_out 0.25 --model.cutmix false --trainer.max_epochs 2 --model.learning_rate.warmup_epochs 1
    --trainer.accelerator cpu --callbacks.checkpoint.every_n_steps 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a folder of images for each source, and classes.tsv."""
    tiny.enter(tmp_path, monkeypatch, {})
    for number, name in enumerate(NAMES):
        fill(tmp_path / name / "train", 8, 2 * number)
        fill(tmp_path / name / "test", 4, 2 * number + 1)
    (tmp_path / "classes.tsv").write_text("".join(f"{wnid}\tclass {label}\n" for label, wnid in enumerate(WNIDS)))
    return tmp_path


def words(out: str, *others: str, sources: tuple[str, ...] = NAMES[1:], recipe: str = RECIPE) -> list[str]:
    given = [word for name in sources for word in ("--synth", f"{name}={name}")]
    first = ["benchmark", "synthreal", "--real", "real", *given, "--out", out, "--classes", "classes.tsv"]
    return [*first, "--networks", "test_resnet", "--seeds", "1", *others, *recipe.split()]


def table(out: str) -> dict[tuple[str, str], dict[str, str]]:
    with (Path(out) / "table.csv").open() as file:
        return {(row["view"], row["source"]): row for row in csv.DictReader(file)}


def results(out: str) -> dict[str, dict]:
    stored: dict[str, dict] = json.loads((Path(out) / "results.json").read_text())["trainings"]
    return stored


def test_cells_files_page_and_nothing_the_second_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = words(
        "out", "--views", "rgb,low", "--distribution", "--features", "random", "--pictures", "--per-class", "6"
    )
    assert cli.main([*call, "--list"]) == 0
    assert capsys.readouterr().out.count("missing") == 6
    assert cli.main(call) == 0
    rows = table("out")
    assert list(rows) == [(view, name) for view in ("rgb", "low") for name in NAMES]
    assert rows["rgb", "real"]["real_synth"] == "" and float(rows["rgb", "good"]["real_synth"]) >= 0
    assert rows["rgb", "good"]["error_of"] == "images" and rows["rgb", "good"]["per_class"] == "6"
    run = folder / "out/runs/rgb/rgb-real-test_resnet-6-seed0/version_0"
    scores = read_results(run).tests
    assert set(scores) == {"real", "good", "bad"} and scores["real"].images == 12
    assert float(rows["rgb", "real"]["synth_real"]) == pytest.approx(scores["real"].accuracy, abs=1e-6)
    page = (folder / "out/report.html").read_text()
    body = page.partition("<body>")[2]
    assert body.count("its numbers are not comparable with theirs") >= 3  # the lead, and below every table
    assert "one seed" in body and "data:image/png;base64," in body and "fingerprint" in body
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", body) and "default-src &#39;none&#39;" not in page
    assert "default-src 'none'" in page

    def never(*others: object) -> int:
        raise AssertionError("trained again")

    before = {path: path.stat().st_mtime_ns for path in (folder / "out/runs").rglob("*")}
    monkeypatch.setattr(synthreal_cells, "run_cell", never)
    monkeypatch.setattr("t2ikit.run.distribution._measure", never)
    assert cli.main(call) == 0
    assert (folder / "out/report.html").read_text() == page
    assert {path: path.stat().st_mtime_ns for path in (folder / "out/runs").rglob("*")} == before


@pytest.mark.long
def test_a_source_that_comes_later_is_tested_on_the_kept_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(words("both")) == 0
    assert cli.main(words("later", sources=("good",))) == 0
    cell = folder / "later/runs/rgb/rgb-real-test_resnet-all-seed0"
    assert cli.main(words("later")) == 0
    assert [path.name for path in cell.glob("version_*")] == ["version_0"]
    assert set(read_results(cell / "version_0").tests) == {"real", "good"}
    assert json.loads((folder / "later/tests" / cell.name / "bad.json").read_text())["score"]["images"] == 12
    assert table("later") == table("both")
    for name, training in results("both").items():
        assert results("later")[name]["results"]["tests"] == training["results"]["tests"]
    fill(
        folder / "bad" / "test", 4, 99
    )  # other images: the test is made again, and the training on "bad" keeps its own
    assert cli.main(words("later")) == 0
    assert table("later")["rgb", "good"] == table("both")["rgb", "good"]


def test_pictures_that_have_moved_are_found_for_a_later_source(folder: Path) -> None:
    fill(folder / "val", 2, 50)
    assert cli.main(words("out", "--data.val", "val", sources=())) == 0
    shutil.move(folder / "val", folder / "elsewhere")
    shutil.move(folder / "real", folder / "photos")
    call = words("out", "--data.val", "elsewhere", sources=("good",))
    call[call.index("real")] = "photos"
    assert cli.main(call) == 0
    assert table("out")["rgb", "good"]["real_synth"] != ""


@pytest.mark.long
def test_two_processes_give_what_one_gives(folder: Path) -> None:
    assert cli.main(words("one")) == 0
    assert cli.main(words("two", "--jobs", "2")) == 0
    assert results("two") == results("one")
    assert (folder / "two/logs/worker-1.log").is_file()
    assert cli.main(words("one", "--compare", "two")) == 0
    assert "Beside other benchmarks" in (folder / "one/report.html").read_text()
    compared = json.loads((folder / "two/results.json").read_text())
    compared["classes"].append("n00000000")
    (folder / "two/results.json").write_text(json.dumps(compared))


@pytest.mark.fault("SIGKILL of a benchmark, ten times", "the same results as undisturbed")
@pytest.mark.long
def test_ten_kills_change_nothing(folder: Path) -> None:
    """Each call is a process that is forked, so that it begins at once: kills come at random moments of its work."""
    call = ["--distribution", "--features", "random"]
    started = time.monotonic()
    assert cli.main(words("whole", *call)) == 0
    seconds, chance, kills = time.monotonic() - started, random.Random(0), 0
    for _ in range(40):
        child = os.fork()
        if child == 0:
            os._exit(cli.main(words("cut", *call)))
        time.sleep(chance.uniform(0.02, 0.3) * seconds)
        os.kill(child, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if kills == 10:
            break
    print(f"{kills} kills")
    assert kills == 10 and cli.main(words("cut", *call)) == 0
    for name in ("table.csv", "results.json", "report.html"):
        assert (folder / "cut" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (("--synth", "good=bad"), "good names two sources"),
        (("--synth", "real=bad"), "real names two sources"),
        (("--synth", "bad"), "--synth bad: expected NAME=DIR"),
        (("--synth", "x=nowhere"), "--synth x: nowhere needs folders train and test"),
        (("--views", "rbg"), "--views rbg: no such view; nearest known: 'rgb'"),
        (("--compare", "nowhere"), "--compare nowhere: there is no results.json"),
        (("--trainer.devices", "2"), "a cell is trained on one device"),
        (("--data.cutoff", "0.01", "--views", "low"), "a radius of 0 frequencies"),
        (("--data.train", "real/train"), "--data.train: data.train of the cells is set by --real and --synth"),
        (("--data.init_args.tests.x", "bad/test"), "data.tests of the cells is set by --real and --synth"),
        (("--model.network", "resnet18"), "set by --networks"),
        (("--data.seed", "5"), "set by --seeds"),
        (("--networks", "test_resnet,resnet5"), "no network 'resnet5'"),
    ],
)
def test_options_are_refused_before_any_training(
    folder: Path, others: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words("out", *others)) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out/runs").exists()


def test_images_are_refused_before_any_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*others: str) -> str:
        assert cli.main(words("out", *others)) == 2
        assert not (folder / "out/runs").exists()
        return capsys.readouterr().err

    shutil.copy(folder / "bad/train" / WNIDS[0] / "0.png", folder / "real/test" / WNIDS[0] / "copy.png")
    assert "are in data.train too" in message()
    (folder / "real/test" / WNIDS[0] / "copy.png").unlink()
    broken = folder / "bad/test" / WNIDS[1] / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert f"{WNIDS[1]}/3.png cannot be read" in message()
    broken.unlink()
    (folder / "bad/train/n02012849").mkdir()
    shutil.rmtree(folder / "bad/train" / WNIDS[2])
    assert f"the first one {WNIDS[2]}" in message()
    for wnid in WNIDS:
        for number in range(1, 8):
            (folder / "good/train" / wnid / f"{number}.png").unlink()
    assert "good: good/train has 3 images, density and coverage need 7" in message_of_few(folder, capsys)


def message_of_few(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Of a benchmark of too few images for density and coverage."""
    call = words("out", "--distribution", "--features", "random", sources=("good",))
    assert cli.main(call) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("network", ["resnet50", "vit_tiny", "convnext_tiny", "swin_tiny", "bagnet9"])
def test_a_network_with_cutmix_is_not_refused(network: str, folder: Path) -> None:
    recipe = RECIPE.replace("--model.cutmix false", "--model.cutmix true").replace("--data.size 16", "--data.size 32")
    benchmark = benchmark_of(
        folder / "real",
        (),
        folder / "out",
        networks=(network,),
        classes="classes.tsv",
        overrides=take_overrides(recipe.split())[1],
    )
    refuse_bad(benchmark, benchmark.sweeps(), origins_of())


def test_other_images_of_validation_are_another_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(folder / "val", 2, 50)
    assert cli.main(words("out", "--data.val", "val", sources=())) == 0
    shutil.move(folder / "val", folder / "elsewhere")
    assert cli.main(words("out", "--data.val", "elsewhere", "--list", sources=())) == 0
    assert "done" in capsys.readouterr().out
    fill(folder / "elsewhere", 2, 51)
    assert cli.main(words("out", "--data.val", "elsewhere", sources=())) == 2
    assert "or other images) now describes" in capsys.readouterr().err


def test_a_score_of_other_test_images_is_not_shown(folder: Path) -> None:
    """The test is made again, but the weights of the training are gone."""
    assert cli.main(words("out", sources=("good",))) == 0
    fill(folder / "good/test", 4, 99)
    shutil.rmtree(folder / "out/runs/rgb/rgb-real-test_resnet-all-seed0/version_0/checkpoints")
    assert cli.main(words("out", sources=("good",))) == 1
    assert table("out")["rgb", "good"]["real_synth"] == ""


def test_other_classes_are_not_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "other").mkdir()
    content = {"classes": [*WNIDS[:2], "n02012849"], "trainings": {}}
    (folder / "other/results.json").write_text(json.dumps(content))
    assert cli.main(words("out", "--compare", "other")) == 2
    assert "its classes are others, 2 are in one of the two alone, such as n01641577" in capsys.readouterr().err


def test_a_cell_that_fails_leaves_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = synthreal_cells.run_cell

    def run_cell(sweep: CellsOfView, name: str, *others: object) -> int:
        if "good" in name:
            raise FloatingPointError("no finite loss")
        return cell(sweep, name, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(synthreal_cells, "run_cell", run_cell)
    assert cli.main(words("out")) == 1
    said = capsys.readouterr()
    assert "rgb-good-test_resnet-all-seed0: no finite loss" in said.err and "2 of 3 cells are done" in said.out
    assert "1 trainings are still to be made" in (folder / "out/report.html").read_text()
