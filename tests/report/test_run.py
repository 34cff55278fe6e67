"""The page of runs: of a whole run, of several, and of runs that were killed or lack files."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from t2ikit import cli
from t2ikit.config.errors import ConfigError
from t2ikit.metrics.fingerprint import Fingerprint, Score, write_scores
from t2ikit.report import grids, page
from t2ikit.report.curves import seconds_of
from t2ikit.report.published import ROWS, published
from t2ikit.report.run import run_page
from t2ikit.report.run_folder import read_runs, short_names

REPRODUCE = Path(__file__).parents[2] / "docs/reproduce.md"
CONFIG = {
    "model": {"init_args": {"optimizer": {"init_args": {"lr": 0.001}}}},
    "data": {"class_path": "t2ikit.data.DataModule", "init_args": {"batch_size": 1024}},
    "trainer": {"max_steps": 20, "accelerator": "gpu", "devices": 8},
    "run": {"directory": "runs", "name": "dit_i_cmall"},
}


def picture(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(stream, "PNG")
    return stream.getvalue()


def make_run(folder: Path, rate: float = 0.001, guidance: float = 8.0, steps: tuple[int, ...] = (10, 20)) -> Path:
    """A run folder as a run leaves it, with a snapshot at each of the steps."""
    config = json.loads(json.dumps(CONFIG))
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = rate
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.yaml").write_text(
        yaml.safe_dump({"t2ikit": "0.1.0", "machine": {"processor": "Abacus 9", "cores": 4, "gpus": ["H100"] * 8}})
    )
    (folder / "finished").write_text(yaml.safe_dump({"checkpoint": None, "experiment": config}))
    lines = ["step,name,value"]
    for step in (5, 10, 15, 20):
        lines += [f"{step},train/loss,{1 / step}", f"{step},train/loss/raw,{1 / step}", f"{step},train/loss/cmall,0.5"]
        lines += [f"{step},train/loss_t/0.00-0.50,{1 / step}", f"{step},train/loss_t/0.50-1.00,0.5"]
        lines += [f"{step},train/images_per_second,1024.0", f"{step},train/learning_rate,{rate}"]
    for step in steps:
        values = {"loss": 0.4, "loss_fixed_t": 0.3, "loss_fixed_t_train": 0.2, "seconds/sampling": 7.0}
        values["inception/frechet_distance"] = 100 / step
        lines += [f"{step},imagenet_val/{name},{value}" for name, value in values.items()]
        fingerprint = Fingerprint(reference="val", guidance=guidance, num_images=4)
        scores = [Score("inception/frechet_distance", 100 / step, fingerprint, step, 0.5)]
        write_scores(folder / f"samples/imagenet_val/scores/step-{step:08d}", scores)
        (folder / f"samples/imagenet_val/step-{step:08d}.png").write_bytes(picture("red"))
    (folder / "samples/imagenet_val/prompts.txt").write_text("a <red> circle\n") if steps else None
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_whole_run(tmp_path: Path) -> None:
    make_run(tmp_path / "dit_i_cmall/version_0", steps=())
    make_run(tmp_path / "dit_i_cmall/version_1")
    (run,) = read_runs([tmp_path / "dit_i_cmall"])
    assert run.name == "dit_i_cmall/version_1" and run.finished and run.last_step == 20  # the newest version
    text = run_page([run], "Report")
    body = text.partition("<body>")[2]
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", body) and "a &lt;red&gt; circle" in body
    assert body.count('<input type="range"') == 1 and 'data-labels="step 10|step 20"' in body
    assert body.count("data:image/webp") == 2
    for figure in ("frechet_distance against steps", "held-out ones", "by source", "by noise level", "Learning rate"):
        assert figure in body
    # Of the row that the run repeats, every version; 20 steps of 1,024 images at 1,024/s, and two snapshots of 7 s.
    assert "DiT-I TA + CutMix: paper, v1" in body and ">8.52<" in body and ">7.3<" in body
    assert "250,000 (v1), 250,000 (v2)" in body
    assert ">20,480<" in body and ">272<" in body and "Abacus 9" in body and "8 (GPU)" in body
    assert f"5 ± 0.5 [{run.measured[-1].scores['inception/frechet_distance'].fingerprint.hash()[:8]}]" in body


def test_an_evaluation_of_the_last_snapshot_stands_beside_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", steps=(20,))
    evaluated = [Score("inception/frechet_distance", 99.0, Fingerprint(reference="other", num_images=4), 20)]
    write_scores(folder / "evaluations/imagenet_val/step-00000020/scores", evaluated)
    body = run_page(read_runs([folder]), "Report").partition("<body>")[2]
    assert "mine, 20<" in body and "mine, evaluation step-00000020<" in body
    assert ">5 ± 0.5 [" in body and ">99 [" in body and "they differ in reference, guidance" in body


def test_the_cost_of_a_fork_begins_where_it_began() -> None:
    speeds = {"train/images_per_second": [(100_050, 100.0), (100_100, 100.0)], "val/seconds/sampling": [(100_100, 7.0)]}
    assert seconds_of(speeds, 10) == seconds_of(speeds, 10, 50) == (10.0, 7.0)
    assert seconds_of(speeds, 10, 25) == (7.5, 7.0)
    assert seconds_of({"train/images_per_second": [(5, 100.0)]}, 10) == (0.5, 0.0)  # a run of its own
    assert seconds_of({}, 10) == (None, 0.0)


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "first"), make_run(tmp_path / "second", rate=0.5, guidance=2.0)])
    assert [run.name for run in runs] == ["first", "second"]
    body = run_page(runs, "Report").partition("<body>")[2]
    assert "model.init_args.optimizer.init_args.lr" in body and "they differ in guidance" in body
    assert "first: raw" in body and "second: training loss by noise level" in body


def test_what_a_resume_has_changed_is_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["max_steps"] = 40
    (folder / "config.resume-1.yaml").write_text(yaml.safe_dump(config))
    (run,) = read_runs([folder])
    assert run.option("trainer.max_steps") == 40  # the last one
    body = run_page([run], "Report").partition("<body>")[2]
    assert "what its resumes have changed" in body and "config.resume-1.yaml" in body


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    killed = make_run(tmp_path / "killed")
    (killed / "finished").unlink()
    metrics = (killed / "metrics.csv").read_bytes()
    (killed / "metrics.csv").write_bytes(metrics[:-3])
    (bare,) = read_runs([make_run(tmp_path / "bare", steps=())])
    for name in ("environment.yaml", "finished", "metrics.csv"):
        (bare.folder / name).unlink()
    runs = read_runs([killed, bare.folder])
    said = " ".join(runs[0].missing)
    assert "not come to its end" in said and "cut off" in said and runs[0].series["train/loss"]
    said = " ".join(runs[1].missing)
    assert all(word in said for word in ("metrics.csv", "environment.yaml", "no scores", "no grids", "no complete"))
    alone = run_page(runs[1:], "Report")
    assert "None of these runs has scores" in alone and "No loss was logged" in alone and "Plotly.newPlot" not in alone
    (bare.folder / "metrics.csv").write_text("step,name,value\n1,a,b\n2,a,1.0\n")
    assert "line 2 is damaged" in " ".join(read_runs([bare.folder])[0].missing)


def test_a_classifier_and_stages(tmp_path: Path) -> None:
    for stage in ("shallow", "frozen"):
        make_run(tmp_path / "grow/version_0" / stage)
    assert [run.name for run in read_runs([tmp_path / "grow"])] == ["grow/version_0/frozen", "grow/version_0/shallow"]
    folder = make_run(tmp_path / "rgb/version_0", steps=())
    content = {"tests": {"real": {"accuracy": 0.73, "images": 50}}, "selected": {"rule": "lowest", "step": 20}}
    (folder / "classification.json").write_text(json.dumps(content))
    (run,) = read_runs([folder])
    assert not run.missing[1:] and ">0.73<" in run_page([run], "Report")  # but no checkpoint


def test_the_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = read_runs([make_run(tmp_path / "long", steps=tuple(range(1, 20)))])
    monkeypatch.setattr(grids, "MOST_STEPS", 5)
    (shown, _) = grids.slides(runs)
    assert isinstance(shown, page.Slides) and shown.positions[0] == "step 1" and shown.positions[-1] == "step 19"
    assert len(shown.positions) == 5 and "14 of 19 grids are left out" in shown.notes[0]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "mine/version_0")
    assert cli.main(["report", str(run), "--paper", "CAD-I TA", "--title", "Mine"]) == 0
    text = (run / "report.html").read_text()
    assert "<title>Mine</title>" in text and "CAD-I TA: paper, v2" in text
    assert "1 run" in capsys.readouterr().out
    for words in ([str(tmp_path / "none")], [str(run), "--paper", "CAD-I TAA"], [str(run), "--out", str(tmp_path)]):
        assert cli.main(["report", *words]) == 2
    said = capsys.readouterr().err
    assert "no folder" in said and "CAD-I TA'" in said and "is a folder" in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no run"):
        read_runs([tmp_path / "empty"])


def test_names_are_short_and_differ() -> None:
    folders = [Path("/a/runs/x/version_0"), Path("/b/runs/x/version_0"), Path("/a/runs/y/version_1/frozen")]
    assert short_names(folders) == ["a/runs/x/version_0", "b/runs/x/version_0", "y/version_1/frozen"]


def test_published_numbers_are_those_of_the_docs() -> None:
    rows: dict[str, str] = {}
    for line in REPRODUCE.read_text().splitlines():
        if line.startswith("| "):
            name = re.split(r" \|", line[2:])[0].partition(", v")[0]
            rows[name] = rows.get(name, "") + line
    assert {entry.row for entry in published()} == {*ROWS.values()}
    for entry in published():
        label = entry.row.partition(" TA + CutMix")[0] if entry.score.startswith("dpg/") else entry.row
        numbers = re.findall(r"\d+\.\d+", rows[label])
        assert entry.value in map(float, numbers), entry
