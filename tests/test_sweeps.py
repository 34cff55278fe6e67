"""Sweeps: cells killed inside and between, two schedulers at once, scores that count as done, the table."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from t2ikit import cli
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import Override
from t2ikit.config.sweep import sweep_of
from t2ikit.lock import LOCK, is_locked
from t2ikit.metrics.fingerprint import read_score
from t2ikit.run import sweeps
from t2ikit.run.experiment import Plan, check, origins_of
from t2ikit.run.folder import RunFolder
from t2ikit.run.sweep_scores import CellScores, mean_and_interval, table
from t2ikit.run.sweeps import ELSEWHERE, place_of
from t2ikit.run.workers import children, environment_of

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 3}
callbacks:
  val:
    init_args: {prompts: {init_args: {limit: 4}}, metrics: [t2ikit.shapes.LargestColorShare], at_start: false, steps: 2}
  geneval: null
  table: null
  cutmix: null
  checkpoint: {init_args: {every_n_steps: 1}}
  stop: stop.Stop
data: {init_args: {settings: []}}
sweep:
  scores: [val/loss, val/largest_color_share]
  grids:
    rate:
      seeds: [0, 1]
      axes: {rate: {low: {model: {init_args: {optimizer: {init_args: {lr: 0.0001}}}}}, same: null}}
"""
TO_SWEEP = """
import os, signal, time
from lightning import Callback
from t2ikit import stopping


class Stop(Callback):
    '''Ends the sweep after the step in the variable KILL, and that step once the sweep has passed the signal on.'''

    def on_train_batch_end(self, trainer, *args):
        if os.environ.get("KILL") == str(trainer.global_step):
            os.kill(os.getppid(), signal.SIGTERM)
            until = time.monotonic() + 60
            while stopping.asked() is None and time.monotonic() < until:
                time.sleep(0.01)
"""
NAMES = ["rate-low-seed0", "rate-low-seed1", "rate-same-seed0", "rate-same-seed1"]
RUNS = Path("runs") / "recipe"
SCORES = Path("recipe.scores")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny.enter(tmp_path, monkeypatch, {"recipe.yaml": EXPERIMENT, "stop.py": tiny.STOP})


def versions(cell: str) -> list[str]:
    return sorted(path.name for path in (RUNS / cell).glob("version_*"))


def finish(cell: str, experiment: str) -> None:
    """The scores of a cell, as if it had been trained elsewhere."""
    CellScores(experiment, {"val/loss": 0.5}, {}, {}, 3, 1.0, {}, "").write(SCORES / f"{cell}.json")


def digests() -> dict[str, str]:
    sweep = sweep_of(Path("recipe.yaml"))
    return {name: sweep.digest(sweep.compose(cell)) for name, cell in sweep.cells.items()}


@pytest.mark.long
def test_a_signal_to_the_sweep_saves_the_step_of_its_cell(folder: Path) -> None:
    every_third = EXPERIMENT.replace("every_n_steps: 1", "every_n_steps: 3")
    Path("recipe.yaml").write_text(every_third)
    Path("stop.py").write_text(TO_SWEEP)
    command = [sys.executable, "-m", "t2ikit", "sweep", "recipe.yaml"]
    done = subprocess.run(command, env={**os.environ, "KILL": "2"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-3000:]
    place = place_of(sweep_of(Path("recipe.yaml")), sweep_of(Path("recipe.yaml")).cell(NAMES[0]))
    assert place.state() == "left at step 2" and f"--cell {NAMES[0]}" in done.stderr
    assert cli.main(["sweep", "recipe.yaml", "--cell", NAMES[0]]) == 0
    trained = read_metrics(RUNS / NAMES[0] / "version_0" / "metrics.csv")["train/loss"]
    assert [step for step, _ in trained] == [1, 2, 3]


@pytest.mark.fault("SIGKILL in a sweep", "the cell goes on, no cell is trained twice")
@pytest.mark.long
def test_a_killed_cell_goes_on_and_the_missing_ones_are_trained(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.killed("2", "sweep", "recipe.yaml", "--cell", NAMES[0])
    assert versions(NAMES[0]) == ["version_0"] and not SCORES.exists()
    assert cli.main(["sweep", "recipe.yaml", "--list"]) == 0
    assert f"{NAMES[0]}   left at step 1\n{NAMES[1]}   missing" in capfd.readouterr().out
    (RUNS / NAMES[1]).mkdir()
    with tiny.locked(RUNS / NAMES[1]):
        assert cli.main(["sweep", "recipe.yaml", "--cell", NAMES[1]]) == ELSEWHERE
        assert cli.main(["sweep", "recipe.yaml", "--list"]) == 0
        assert f"{NAMES[1]}   running" in capfd.readouterr().out
    finish(NAMES[1], digests()[NAMES[1]])
    finish(NAMES[3], digests()[NAMES[3]])
    assert cli.main(["sweep", "recipe.yaml", "--jobs", "2"]) == 0
    assert versions(NAMES[0]) == versions(NAMES[2]) == ["version_0"] and not versions(NAMES[3])
    trained = read_metrics(RUNS / NAMES[0] / "version_0" / "metrics.csv")["train/loss"]
    assert [step for step, _ in trained] == [1, 2, 3]  # it went on
    assert json.loads((SCORES / f"{NAMES[0]}.json").read_text())["cpu_seconds"] is None
    content = json.loads((SCORES / f"{NAMES[2]}.json").read_text())
    assert content["cpu_seconds"] > 0 and content["step"] == 3
    assert content["scores"].keys() >= {"val/loss", "val/largest_color_share"}
    assert content["fingerprints"].keys() >= {"val/loss", "val/largest_color_share"}
    conditions = read_score(next(RUNS.glob(f"{NAMES[0]}/*/samples/val/scores/*/loss.json"))).fingerprint
    # The validation loss is keyed by the run's seed, which a sweep varies.
    assert content["fingerprints"]["val/loss"] == replace(conditions, seeds=None).hash() != conditions.hash()
    shown = capfd.readouterr().out
    assert "4 of 4 cells are done" in shown and "rate same" in shown
    assert "output in" in shown and (RUNS / NAMES[2] / "output.log").is_file()


def test_processes_beside_each_other_train_no_cell_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(plan: Plan, text: str, run: RunFolder, *others: object) -> int:
        with Path("trained").open("a") as file:
            file.write(f"{plan.name}\n")
        time.sleep(0.2)
        (run.path / "metrics.csv").write_text("step,name,value\n3,val/loss,0.5\n")
        return 0

    monkeypatch.setattr(sweeps, "train", train)
    sweep, origins = sweep_of(Path("recipe.yaml")), origins_of(folder)
    for cell in sweep.cells.values():
        check(sweep.compose(cell), origins)  # loads what the processes would each load
        assert sweeps.place_of(sweep, cell).state() == "missing"
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            while any(sweeps.run_cell(sweep, name, None, origins, "") for name in NAMES):
                pass
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert sorted(Path("trained").read_text().split()) == NAMES
    assert {path.stem for path in SCORES.iterdir()} == {*NAMES}


@pytest.mark.parametrize(
    ("gpus", "visible", "devices", "dealt"),
    [
        (4, None, "auto", ["0,1", "2,3"]),
        (2, "GPU-a,GPU-b", "1", ["GPU-a", "GPU-b"]),
        (1, None, "1", [None, None]),
        (4, None, "3", ["0,1,2", "3,0,1"]),  # more than its share
        (2, None, "4", [None, None]),  # the cell says that there are too few
        (4, "4,5,6,7", "[2, 3]", ["4,5,6,7", "4,5,6,7"]),  # their numbers are those of all
        (4, None, "2,3", [None, None]),
    ],
)
def test_cells_beside_each_other_share_the_gpus(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str | None, devices: str, dealt: list[str | None]
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given: list[str | None] = []

    class Process:
        """Two run beside each other, and end together."""

        returncode = ELSEWHERE

        def __init__(self, command: list[str], env: dict[str, str], **options: object) -> None:
            given.append(env.get("CUDA_VISIBLE_DEVICES"))

        def poll(self) -> int:
            return ELSEWHERE

    monkeypatch.setattr("subprocess.Popen", Process)
    sweep = sweep_of(Path("recipe.yaml"), [Override("trainer.devices", devices)])
    assert sweeps.run_missing(sweep, None, origins_of(folder), 2, ["sweep", "recipe.yaml"]) == 0
    assert given == dealt * 2


@pytest.mark.parametrize(("devices", "jobs", "threads"), [("1", 2, 8), ("2", 2, 4), ("2", 3, 2), ("[0, 1]", 2, 8)])
def test_ranks_of_a_cell_share_its_cores(
    folder: Path, monkeypatch: pytest.MonkeyPatch, devices: str, jobs: int, threads: int
) -> None:
    monkeypatch.setattr("t2ikit.launch.cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep = sweep_of(Path("recipe.yaml"), [Override("trainer.devices", devices)])
    place = place_of(sweep, sweep.cell(NAMES[0]))
    assert environment_of(0, jobs, place.devices)["OMP_NUM_THREADS"] == str(threads)


def test_what_is_written_down_before_any_step_is_no_claim(folder: Path) -> None:
    place = place_of(sweep_of(Path("recipe.yaml")), sweep_of(Path("recipe.yaml")).cell(NAMES[0]))
    place.folder.mkdir(parents=True)
    replace(place, digest="too large a batch").claim()
    place.claim()  # it ended before its first step
    checkpoints = place.folder / "version_0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({}, checkpoints / "step-00000001.ckpt")
    with pytest.raises(ConfigError, match="is of another experiment"):
        replace(place, digest="another").claim()


def test_a_folder_that_cannot_be_written_to_is_not_taken_for_a_running_cell(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (RUNS / NAMES[0] / LOCK).mkdir(parents=True)  # as one of another user
    assert not is_locked(RUNS / NAMES[0])
    assert cli.main(["sweep", "recipe.yaml", "--cell", NAMES[0]]) == 2
    assert "this folder cannot be written to" in capfd.readouterr().err


def test_a_cell_that_is_done_ends_on_every_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(NAMES[0], digests()[NAMES[0]])
    monkeypatch.setattr(sweeps, "first_rank", lambda: False)
    assert sweeps.run_cell(sweep_of(Path("recipe.yaml")), NAMES[0], None, origins_of(folder), "") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--loggers.csv null", "keep loggers.csv"),
        ("--loggers.csv null --cell rate-low-seed0", "keep loggers.csv"),
        ("--list --cell rate-low-seed0", "leave out --list"),
        ("--jobs 2 --cell rate-low-seed0", "leave out --jobs"),
        ("--list --jobs 2", "--list trains nothing: leave out --jobs"),
    ],
)
def test_options_that_would_lose_work_or_do_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert cli.main(["sweep", "recipe.yaml", *words.split()]) == 2
    assert message in capfd.readouterr().err and not RUNS.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_no_process_outlives_a_signal(number: signal.Signals) -> None:
    with pytest.raises(SystemExit), children() as running:
        running["one"] = subprocess.Popen(["sleep", "60"])
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert running["one"].poll() == -signal.SIGTERM and signal.getsignal(number) not in (None, signal.SIG_IGN)


def test_committed_scores_count_as_done_until_the_experiment_changes(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, digest in digests().items():
        finish(name, digest)
    assert cli.main(["sweep", "recipe.yaml"]) == 0
    assert not RUNS.exists() and "4 of 4 cells are done" in capfd.readouterr().out
    # Where it runs does not matter, what it trains does.
    moved = ["--data.root=elsewhere", "--trainer.devices=2", "--data.num_workers=3", "--run.directory=other"]
    moved += ["--data.pin_memory=false", "--data.cache_dir=scratch"]
    assert cli.main(["sweep", "recipe.yaml", "--list", *moved]) == 0
    assert cli.main(["sweep", "recipe.yaml", "--trainer.max_steps", "4"]) == 2
    assert "is of another experiment than the file (or an override, or other images)" in capfd.readouterr().err


@pytest.mark.long
def test_a_cell_that_fails_leaves_the_others(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = EXPERIMENT.replace("same: null", "same: {trainer: {max_steps: -1}}").replace("seeds: [0, 1]", "seeds: [0]")
    Path("recipe.yaml").write_text(text)
    finish(NAMES[0], digests()[NAMES[0]])
    assert cli.main(["sweep", "recipe.yaml"]) == 1
    shown = capfd.readouterr()
    assert "rate-same-seed0: ended with status 2" in shown.err and "the run would never end" in shown.err
    assert "1 of 2 cells are done" in shown.out


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seeds: [0, 1]", "seeds: 3", r"sweep.grids.rate.seeds: expected numbers"),
        ("axes: {rate: {low:", "axes: {rate: {0.1:", r"axes.rate.0.1: names of grids"),
        ("same: null", "same: {run: {name: x}}", r"axes.rate.same: expected keys of an experiment"),
        ("same: null", "same: {modle: {}}", r"unknown key 'modle'"),
        ("    rate:\n", "    rate:\n      seed: 1\n", r"sweep.grids.rate: unknown key 'seed'.*seeds"),
        ("same: null", "same: {seed_everything: 1}", r"axes.rate.same.seed_everything: set `seeds` of the grid"),
        ("same: null", "same: []", r"axes.rate.same: expected keys of an experiment"),
        ("axes: {rate:", "axes: [] #", r"sweep.grids.rate.axes: expected axes by name, got \[\]"),
        (
            "same: null",
            "same: null, again: {}",
            r"rate: the cells 'rate same' and 'rate again' train the same: .*overlays",
        ),
        (
            "same: null",
            "same: {trainer: {devices: 2}}, again: null",
            r"'rate again' train the same: .*the axis rate say",
        ),
        (
            "same: null}}",
            "same: null}, steps: {one: {model: {init_args: {optimizer: {init_args: {lr: 1.0}}}}}}}",
            r"the cells 'rate low one' and 'rate same one' train the same: .*the axis rate .*set again by a later axis",
        ),
        ("sweep:", "stages: {a: null}\nsweep:", r"`stages` and `sweep`"),
        ("  grids:", "  paper: [6.13]\n  grids:", r"sweep.paper: expected \{columns"),
        (
            "  grids:",
            "  paper: {columns: [FID], rows: {rate high: [1]}}\n  grids:",
            r"no cells 'rate high'; known: rate low, rate same",
        ),
        (
            "  grids:",
            "  paper: {columns: [FID], rows: {rate low: 1}}\n  grids:",
            r"paper.rows.rate low: expected an entry for each",
        ),
    ],
)
def test_refusals(folder: Path, before: str, after: str, message: str) -> None:
    assert before in EXPERIMENT
    Path("recipe.yaml").write_text(EXPERIMENT.replace(before, after, 1))
    with pytest.raises(ConfigError, match=message):
        sweep_of(Path("recipe.yaml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed_everything": "5"}, r"^--seed_everything: .*--sweep.grids.NAME.seeds"),
        (
            {"model.optimizer.lr": "0.1"},
            "'rate low' and 'rate same' train the same: --model.optimizer.lr comes over what the axis rate sets",
        ),
        (
            {"trainer.max_steps": "2", "model.init_args.optimizer": "{init_args: {lr: 0.1}}", "data.batch_size": "2"},
            "train the same: --model.init_args.optimizer comes over",
        ),
        (
            {"model.optimizer.lr": "0.1", "model.init_args.optimizer.lr": "0.2"},  # each alone would do
            "train the same: --model.optimizer.lr --model.init_args.optimizer.lr comes over",
        ),
    ],
)
def test_an_override_that_makes_cells_equal_is_refused(folder: Path, overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(Path("recipe.yaml"), [Override(key, text) for key, text in overrides.items()])


def test_seeds_and_axes_may_be_overridden_where_they_stand(folder: Path) -> None:
    seeds = sweep_of(Path("recipe.yaml"), [Override("sweep.grids.rate.seeds", "[5]")])
    assert {seeds.compose(cell)["seed_everything"] for cell in seeds.cells.values()} == {5}
    lr = Override("sweep.grids.rate.axes.rate.low.model.init_args.optimizer.init_args.lr", "0.2")
    sweep = sweep_of(Path("recipe.yaml"), [lr, Override("trainer.max_steps", "2")])
    assert len({sweep.digest(sweep.compose(cell)) for cell in sweep.cells.values()}) == 4
    rates = {
        cell.row: sweep.compose(cell)["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        for cell in sweep.cells.values()
    }
    assert rates["rate low"] == 0.2 != rates["rate same"]


def test_short_forms_of_the_data_make_cells_too(folder: Path) -> None:
    sweep = sweep_of(Path("recipe.yaml"))
    whole = {"data": {"class_path": "t2ikit.shapes.ShapesData", "init_args": {}}}
    for data in ("t2ikit.shapes.ShapesData", {"class_path": "t2ikit.shapes.ShapesData", "init_args": None}):
        assert sweep.digest({"data": data}) == sweep.digest(whole)
    with pytest.raises(ConfigError, match=r"data.init_args: expected a mapping, got \['x'\]"):
        sweep.digest({"data": {"init_args": ["x"]}})
    assert sweep.digest({"model": {1: 2, "b": 3}}) == sweep.digest({"model": {"1": 2, "b": 3}})


def test_an_experiment_without_a_sweep_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "tiny.yaml"]) == 2
    assert "has no `sweep`" in capfd.readouterr().err
    assert cli.main(["sweep", "recipe.yaml", "--seed_everything", "5"]) == 2
    assert "--seed_everything: the cells of a sweep take their seeds from its grids" in capfd.readouterr().err
    assert cli.main(["sweep", "recipe.yaml", "--cell", "rate-lwo-seed0"]) == 2
    assert "nearest known: 'rate-low-seed0'" in capfd.readouterr().err


def test_the_table_gives_means_with_intervals_and_keeps_unlike_scores_apart(folder: Path) -> None:
    assert mean_and_interval([1.0]) == (1.0, None)
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(2.4841, abs=1e-4)  # 4.3027 / sqrt(3), Student's t of 2 degrees
    sweep = sweep_of(Path("recipe.yaml"))
    share = "val/largest_color_share"
    done = {
        name: CellScores(
            "", {"val/loss": float(index), share: 0.5}, {}, {share: "x" if index < 2 else "y"}, 3, None, {}, ""
        )
        for index, name in enumerate(NAMES)
    }
    lines = [[entry.strip() for entry in line.strip("|").split("|")] for line in table(sweep, done).splitlines()]
    assert lines[0] == ["cell", "seeds", "val/loss", share]
    assert lines[2] == ["rate low", "2", "0.5 ± 6.35", "0.5 ± 0 a"]
    assert lines[3] == ["rate same", "2", "2.5 ± 6.35", "0.5 ± 0 b"]
    assert "not comparable" in lines[-1][0]
    done[NAMES[1]] = CellScores("", {share: 0.5}, {}, {share: "z"}, 3, None, {}, "")
    assert "measured otherwise between seeds" in table(sweep, done)


def test_the_numbers_of_a_paper_stand_beside_those_that_are_not_measured(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paper = 'sweep:\n  paper: {columns: [loss, FID], rows: {rate low: ["0.50", 6.13]}}'
    Path("recipe.yaml").write_text(EXPERIMENT.replace("sweep:", paper, 1))
    finish(NAMES[2], digests()[NAMES[2]])
    assert cli.main(["sweep", "recipe.yaml", "--list"]) == 0
    lines = [[entry.strip() for entry in line.strip("|").split("|")] for line in capfd.readouterr().out.splitlines()]
    assert ["cell", "seeds", "val/loss", "val/largest_color_share", "paper: loss", "paper: FID"] in lines
    assert ["rate low", "0", "unmeasured", "unmeasured", "0.50", "6.13"] in lines
    assert ["rate same", "1", "0.5", "-", "-", "-"] in lines


def test_every_cell_is_a_plain_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "recipe.yaml", "--commands"]) == 2
    assert "--list --commands" in capfd.readouterr().err
    assert cli.main(["sweep", "recipe.yaml", "--list", "--commands", "--data.root", "a b", "--trust", "mine"]) == 0
    lines = [shlex.split(line) for line in capfd.readouterr().out.splitlines()]
    assert [words[-1] for words in lines] == NAMES and all(
        words[:3] == ["t2ikit", "sweep", "recipe.yaml"] for words in lines
    )
    ran: list[tuple[object, ...]] = []
    monkeypatch.setattr(sweeps, "run_cell", lambda sweep, name, *_: ran.append((name, sweep.overrides)) or 0)
    assert [cli.main(words[1:]) for words in lines] == [0] * 4
    assert [name for name, _ in ran] == NAMES and {overrides[0].value for _, overrides in ran} == {"a b"}
