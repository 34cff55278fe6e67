"""Run folders: numbering, what is complete, what a resume goes on from, and ranks that agree."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch

from t2ikit.checkpoints.runs import finish, is_finished, latest_config, newest_checkpoint
from t2ikit.checkpoints.saving import is_complete, step_in_name
from t2ikit.config.errors import ConfigError
from t2ikit.lock import LOCK, is_locked, lock, unlock
from t2ikit.run import folder as run_folder
from t2ikit.run.folder import choose, write_config

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _lone_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*RANKS, "TORCHELASTIC_RUN_ID", run_folder.FOLDER_VARIABLE, run_folder.CHECKPOINT_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


def checkpoint(folder: Path, name: str) -> Path:
    path = folder / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": max(0, step_in_name(path))}, path)
    write_config(folder, "a: 1", resumed=False)
    return path


def test_versions_count_up(tmp_path: Path) -> None:
    names = [choose(str(tmp_path), "e", None).path.name for _ in range(3)]
    assert names == ["version_0", "version_1", "version_2"]
    (tmp_path / "e" / "version_10").mkdir()
    (tmp_path / "e" / "version_x").mkdir()
    assert choose(str(tmp_path), "e", None).path.name == "version_11"


def test_complete(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "step-00000002.ckpt")
    assert is_complete(path)
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert not is_complete(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", "x")
    assert not is_complete(path)
    assert not is_complete(tmp_path / "nowhere.ckpt")


def test_newest_is_of_the_highest_step(tmp_path: Path) -> None:
    ten = checkpoint(tmp_path, "step-00000010.ckpt")
    checkpoint(tmp_path, "step-00000009.ckpt")
    checkpoint(tmp_path, "last.ckpt")
    torn = checkpoint(tmp_path, "step-00000011.ckpt")
    torn.write_bytes(torn.read_bytes()[:50])
    checkpoint(tmp_path, "step-00000012.ckpt.partial")
    assert newest_checkpoint(tmp_path) == ten


def test_last_is_the_newest_version_by_number_with_a_checkpoint(tmp_path: Path) -> None:
    runs = tmp_path / "e"
    for number in (2, 9):
        checkpoint(runs / f"version_{number}", "step-00000001.ckpt")
    ten = checkpoint(runs / "version_10", "step-00000001.ckpt")
    (runs / "version_11" / "checkpoints").mkdir(parents=True)
    chosen = choose(str(tmp_path), "e", "last")
    assert (chosen.path, chosen.checkpoint, chosen.created) == (ten.parent.parent, ten, False)


def test_last_never_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    for name, message in (("quickstart", "holds a complete checkpoint$"), ("quikstart", "nearest known: 'quickstart'")):
        with pytest.raises(ConfigError, match=message):
            choose(str(tmp_path), name, "last")
    assert list((tmp_path / "quickstart").iterdir()) == []
    with pytest.raises(ConfigError, match="--resume last: no version"):
        choose(str(tmp_path / "none"), "e", "last")


def test_a_path_goes_on_in_its_run(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "e" / "version_0", "step-00000003.ckpt")
    for given in (path, path.parent, path.parent.parent):
        chosen = choose(str(tmp_path), "e", str(given))
        assert (chosen.path, chosen.checkpoint, chosen.created) == (path.parent.parent, path, False)


@pytest.mark.parametrize(("inside", "given"), [("checkpoints", "step-00000003.ckpt"), ("checkpoints", "."), (".", ".")])
def test_a_path_from_inside_of_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str, given: str
) -> None:
    path = checkpoint(tmp_path / "e" / "version_0", "step-00000003.ckpt")
    monkeypatch.chdir(path.parents[1] / inside)
    chosen = choose(str(tmp_path), "e", given)
    assert chosen.checkpoint is not None and chosen.checkpoint.samefile(path)
    assert chosen.path.samefile(path.parents[1]) and not chosen.created


def test_a_run_of_another_name_is_forked_or_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "e" / "version_0", "step-00000003.ckpt")
    for directory, name in ((tmp_path, "fork"), (tmp_path / "elsewhere", "e")):
        with pytest.raises(ConfigError, match="Add --fork to go on in a new version"):
            choose(str(directory), name, str(path))
        assert not (directory / name / "version_0" / "config.yaml").exists()
        fork = choose(str(directory), name, str(path), fork=True)
        assert fork == run_folder.RunFolder(directory / name / "version_0", path, True)
    assert choose(str(tmp_path), "e", "last", fork=True).path.name == "version_1"


def test_a_run_folder_that_was_moved_goes_on_where_it_is(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "e" / "version_0", "step-00000003.ckpt")
    (path.parents[1] / "config.yaml").write_text("run: {directory: runs, name: e}")
    assert choose("runs", "e", str(path)).path == path.parents[1]


def test_auto_goes_on_with_the_newest_unfinished_version_or_begins_one(tmp_path: Path) -> None:
    runs = tmp_path / "e"
    assert choose(str(tmp_path), "e", "auto") == run_folder.RunFolder(runs / "version_0", None, True)
    for number in (0, 9, 10):
        checkpoint(runs / f"version_{number}", "step-00000001.ckpt")
    (runs / "version_11" / "checkpoints").mkdir(parents=True)
    finish(runs / "version_10", {})
    assert choose(str(tmp_path), "e", "auto").path.name == "version_9"
    checkpoint(runs / "version_10", "step-00000002.ckpt")  # it was given more steps
    assert choose(str(tmp_path), "e", "auto").path.name == "version_10"
    for number in (0, 9, 10):
        finish(runs / f"version_{number}", {})
    assert choose(str(tmp_path), "e", "auto") == run_folder.RunFolder(runs / "version_12", None, True)


def test_auto_says_that_a_version_has_no_good_checkpoint_any_more(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / "e" / f"version_{number}", "step-00000001.ckpt") for number in (0, 1)]
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"version_1.*not a complete checkpoint.*There is no good one"):
        assert choose(str(tmp_path), "e", "auto").checkpoint == paths[0]


@pytest.mark.parametrize("content", ["", "garbage: [", "- 1", "checkpoint: step-00000001.ckpt", "\xff"])
def test_a_broken_record_of_the_end_is_none(tmp_path: Path, content: str) -> None:
    checkpoint(tmp_path, "step-00000001.ckpt")
    (tmp_path / "finished").write_bytes(content.encode("latin-1"))
    assert not is_finished(tmp_path)
    finish(tmp_path, {"a": 1})
    assert is_finished(tmp_path)


def test_no_resume_takes_a_trial_for_a_run(tmp_path: Path) -> None:
    trial = choose(str(tmp_path), "e", None, kind=run_folder.TRIAL)
    checkpoint(trial.path, "step-00000001.ckpt")
    assert choose(str(tmp_path), "e", "auto").path.name == "version_0"
    assert choose(str(tmp_path), "e", None, kind=run_folder.TRIAL).path.name == "fast_dev_run_1"


def test_a_folder_of_runs_says_which_ones(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "e" / "version_0", "step-00000003.ckpt")
    with pytest.raises(ConfigError, match=rf"name one of the runs in it, such as {path.parents[1]}"):
        choose(str(tmp_path), "e", str(tmp_path / "e"))


@pytest.mark.fault("two processes in one run folder", "the second is refused")
def test_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    """The lock ends with its process, though a child that was forked from it lives on, as a loader's worker does."""
    program = (
        "import os, sys, time; from pathlib import Path; from t2ikit.lock import lock\n"
        "lock(Path(sys.argv[1]))\nchild = os.fork()\nif child: print(child, flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert is_locked(tmp_path)
        with pytest.raises(ConfigError, match=f"{tmp_path}: another process trains in this run folder"):
            lock(tmp_path)
        process.kill()
        process.wait()
        assert not is_locked(tmp_path)
        lock(tmp_path)
        lock(tmp_path)
        (tmp_path / LOCK).unlink()
        lock(tmp_path)
        assert (tmp_path / LOCK).exists()
        unlock(tmp_path)
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_a_path_elsewhere_gets_a_new_version(tmp_path: Path) -> None:
    path = tmp_path / "downloaded.ckpt"
    torch.save({}, path)
    chosen = choose(str(tmp_path / "runs"), "e", str(path))
    assert (chosen.path.name, chosen.checkpoint, chosen.created) == ("version_0", path, True)


def test_bad_paths(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "step-00000001.ckpt")
    with pytest.raises(ConfigError, match="no such file; nearest known: '.*step-00000001.ckpt'"):
        choose(str(tmp_path), "e", str(path.with_name("step-0000001.ckpt")))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="not a complete checkpoint"):
        choose(str(tmp_path), "e", str(path))
    with pytest.raises(ConfigError, match="no complete checkpoint in"):
        choose(str(tmp_path), "e", str(tmp_path))


def test_config_is_never_overwritten_by_a_resume(tmp_path: Path) -> None:
    assert write_config(tmp_path, "a: 1", resumed=False).name == "config.yaml"
    assert [write_config(tmp_path, f"a: {i}", resumed=True).name for i in (2, 3)] == [
        "config.resume-1.yaml",
        "config.resume-2.yaml",
    ]
    assert (tmp_path / "config.yaml").read_text() == "a: 1"
    assert latest_config(tmp_path).read_text() == "a: 3"
    assert not list(tmp_path.glob("*.partial"))


def test_a_rank_of_lightning_takes_the_choice_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(run_folder.FOLDER_VARIABLE, str(tmp_path / "chosen"))
    assert choose(str(tmp_path), "e", "last") == run_folder.RunFolder(tmp_path / "chosen", None, False)
    assert not (tmp_path / "e").exists()


def test_ranks_from_outside_follow_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path / "e" / "version_4", "step-00000001.ckpt")
    monkeypatch.setenv("MASTER_ADDR", "host")
    monkeypatch.setenv("MASTER_PORT", "1234")
    (tmp_path / "e" / "version_5").mkdir()
    (tmp_path / "e" / "version_5" / run_folder.MARKER).write_text("host:9")  # another launch
    monkeypatch.setenv("RANK", "1")
    found: list[Path] = []
    follower = threading.Thread(target=lambda: found.append(choose(str(tmp_path), "e", None).path))
    follower.start()
    follower.join(0.3)
    assert follower.is_alive()
    monkeypatch.setenv("RANK", "0")
    chosen = choose(str(tmp_path), "e", None)
    follower.join(10)
    assert found == [chosen.path] and chosen.path.name == "version_6"


def test_a_rank_that_finds_nobody_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(run_folder, "WAIT_SECONDS", 0.1)
    with pytest.raises(ConfigError, match="this rank found no run folder of rank 0"):
        choose(str(tmp_path), "e", None)
