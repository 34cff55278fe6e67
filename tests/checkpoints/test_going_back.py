"""What is set aside of a run that goes on from an earlier step, what stays, and that it can be put back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import tiny
from t2ikit.checkpoints.going_back import put_back, set_aside
from t2ikit.checkpoints.runs import finish, is_finished

EARLIER = [
    "checkpoints/step-00000002.ckpt",
    "checkpoints/notes.ckpt",
    "samples/val/step-00000002.png",
    "samples/val/scores/step-00000002/loss.json",
    "samples/val/step-00000004.sampling/0.npy",
    "samples/val/newest.json",
    "samples/val/overfitting.png",
    "evaluations/val/step-00000002-guidance-sweep/scores.csv",
    "evaluations/val/step-00000004-steps-9/images/0.npy",
]
LATER = {
    "checkpoints/step-00000004.ckpt": "checkpoints/left-at-00000002/step-00000004.ckpt",
    "checkpoints/epoch=1-step=6-v1.ckpt": "checkpoints/left-at-00000002/epoch=1-step=6-v1.ckpt",
    "checkpoints/last.ckpt": "checkpoints/left-at-00000002/last.ckpt",
    "finished": "checkpoints/left-at-00000002/finished",
    "samples/val/step-00000004.png": "left-at-00000002/samples/val/step-00000004.png",
    "samples/val/step-00000004/0.png": "left-at-00000002/samples/val/step-00000004/0.png",
    "samples/val/scores/step-00000004/loss.json": "left-at-00000002/samples/val/scores/step-00000004/loss.json",
    "samples/other/newest.json": "left-at-00000002/samples/other/newest.json",
    "samples/val/details/step-00000004/a.jsonl": "left-at-00000002/samples/val/details/step-00000004/a.jsonl",
    "evaluations/val/step-00000004/grid.png": "left-at-00000002/evaluations/val/step-00000004/grid.png",
}


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != ".lock"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has ended at step 6."""
    for name in (*EARLIER, *LATER):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name, step in {"step-00000002": 2, "step-00000004": 4, "epoch=1-step=6-v1": 6, "last": 6}.items():
        torch.save({"global_step": step}, tmp_path / "checkpoints" / f"{name}.ckpt")
    (tmp_path / "samples/val/newest.json").write_text(json.dumps({"step": 2}))
    (tmp_path / "samples/other/newest.json").write_text(json.dumps({"step": 4}))
    (tmp_path / "finished").unlink()
    finish(tmp_path, {"a": 1})
    return tmp_path


def test_all_of_later_steps_is_kept_aside_and_nothing_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run)
    assert before.keys() == {*EARLIER, *LATER} and is_finished(run)
    with tiny.locked(run / "evaluations/val/step-00000004-steps-9"):  # an evaluation that is under way
        moved = set_aside(run, 2)
    places = {**{name: name for name in EARLIER}, **LATER}
    assert files(run) == {places[name]: content for name, content in before.items()}
    assert not is_finished(run)
    assert f"going on at step 2: {len(moved)} files and folders of later steps moved to" in capsys.readouterr().out
    for said in (f"no step was made: {len(moved)} files and folders of later steps are back", ""):  # and once more
        put_back(moved)
        assert files(run) == before and capsys.readouterr().out.startswith(said)
    assert not list(run.rglob("left-at-*"))


def test_what_was_kept_is_never_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_aside(run, 4)
    capsys.readouterr()
    assert set_aside(run, 4) == [] and capsys.readouterr().out == ""
    for number in (2, 3):
        before = files(run)
        torch.save({"global_step": 5}, run / "checkpoints" / "step-00000005.ckpt")
        set_aside(run, 4)
        after = files(run)
        assert before.items() < after.items()
        assert after.keys() - before.keys() == {f"checkpoints/left-at-00000004-{number}/step-00000005.ckpt"}


@pytest.mark.parametrize("content", ["", "a", "[]", "{}", '{"step": null}', "\udcff"])
def test_a_strange_file_of_the_newest_snapshot_is_left_alone(run: Path, content: str) -> None:
    path = run / "samples/val/newest.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    set_aside(run, 2)
    assert path.is_file()


@pytest.mark.parametrize("error", [OSError("full"), SystemExit("a signal")])
def test_what_ends_half_way_leaves_everything_in_its_place(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before, replace, calls = files(run), os.replace, list[Path]()

    def third_fails(old: Path, new: Path) -> None:
        calls.append(old)
        if len(calls) == 3:
            raise error
        replace(old, new)

    monkeypatch.setattr(os, "replace", third_fails)
    with pytest.raises(type(error)):
        set_aside(run, 2)
    assert files(run) == before and not list(run.rglob("left-at-*"))
