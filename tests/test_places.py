"""Places that cannot take results, and options that name none, are refused before any work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

import tiny
from t2ikit.cli import main
from t2ikit.commands.sample import _check_output
from t2ikit.commands.sample import add_parser as add_sample
from t2ikit.files import require_folder
from t2ikit.pretrained import cache_folder


def test_a_folder_that_can_be_made_or_written(tmp_path: Path) -> None:
    require_folder(tmp_path, "--out")
    require_folder(tmp_path / "a" / "b", "--out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("a folder that cannot be written", "refused with its option, before any work")
def test_a_folder_that_cannot_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(ValueError, match=r"--out .*file is a file, no folder"):
            require_folder(path, "--out")
    with pytest.raises(ValueError, match="--out .*too long"):
        require_folder(tmp_path / ("x" * 300), "--out")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="run.directory .*may not write to"):
        require_folder(tmp_path / "a", "run.directory")


@pytest.mark.fault("a home without permission, shapes too", "refused with its option, before any work")
def test_a_cache_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.enter(tmp_path, monkeypatch, {})
    monkeypatch.setenv("T2IKIT_CACHE", "")  # as if it were not set
    monkeypatch.setenv("HOME", f"{tmp_path}/home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "t2ikit"
    (tmp_path / "home").touch()
    assert main(["run", "tiny.yaml"]) == 2
    error = capsys.readouterr().err
    assert "data.root (by default below $T2IKIT_CACHE" in error and f"{tmp_path}/home is a file" in error
    assert not list(tmp_path.glob("runs/*"))


def sample_options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_sample(parser.add_subparsers())
    return parser.parse_args(["sample", "x.ckpt", "--prompt", "a cat", *words])


def test_options_of_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample_options("--method", "DDIM").method == "ddim"
    assert sample_options("--method", "mine.Solver").method == "mine.Solver"
    assert sample_options("--out", "~/x").out == Path.home() / "x"
    with pytest.raises(SystemExit):
        sample_options("--out", "~nobody-here/x")
    assert "this machine knows no such user" in capsys.readouterr().err
    for grid in (str(tmp_path), f"{tmp_path}/x.jpg", f"{tmp_path}/x"):
        with pytest.raises(ValueError, match="--grid .* it is a PNG file"):
            _check_output(sample_options("--grid", grid))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--out .* is a file, no folder"):
        _check_output(sample_options("--out", f"{tmp_path}/file"))
    for weight in ("nan", "inf", "-inf"):
        with pytest.raises(SystemExit):
            sample_options(f"--guidance={weight}")
        assert "is no finite number" in capsys.readouterr().err


def test_out_inside_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    for out in ("photos", "photos/out"):
        assert main(["prepare", "images", "--source", f"{tmp_path}/photos", "--out", f"{tmp_path}/{out}"]) == 2
        assert "lies inside --source" in capsys.readouterr().err


def test_prepare_refuses_a_file_as_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["prepare", "images", "--source", str(tmp_path), "--out", f"{tmp_path}/file"]) == 2
    assert "--out" in capsys.readouterr().err
