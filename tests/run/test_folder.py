"""Run folders: numbering, what is complete, what a resume goes on from, and ranks that agree."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import pytest
import torch

from t2ikit.checkpoints.runs import is_complete, latest_config, newest_checkpoint
from t2ikit.config import ConfigError
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
    torch.save({"global_step": 1}, path)
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
    path = checkpoint(tmp_path / "other" / "version_0", "step-00000003.ckpt")
    for given in (path, path.parent, path.parent.parent):
        chosen = choose(str(tmp_path), "e", str(given))
        assert (chosen.path, chosen.checkpoint, chosen.created) == (path.parent.parent, path, False)


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
