"""A run folder is enough: plug-ins, versions and the small text encoder are kept in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import tiny
from t2ikit import cli
from t2ikit.checkpoints.runs import kept_plugins, run_folder_of
from t2ikit.run import kept
from t2ikit.run.kept import processor_name

PART = """
from beside import TAU
from package.deeper import Deeper
from t2ikit.callbacks import AugmentationCallback

class Part(AugmentationCallback):
    tau = TAU

    def register(self, data, module):
        pass
"""
NETWORK = """
from t2ikit.denoisers import CADI

class Mine(CADI):
    pass
"""
FILES = {
    "parts/part.py": PART,
    "parts/beside.py": "TAU = 0.5\n",
    "parts/package/__init__.py": "",
    "parts/package/deeper.py": "class Deeper:\n    pass\n",
    "parts/unused.py": "raise SystemExit\n",
    "parts/network.py": NETWORK,
    "parts/tiny.yaml": tiny.EXPERIMENT,
    "parts/mine.yaml": """
extends: [tiny.yaml]
model:
  init_args:
    denoiser:
      class_path: network.Mine
      init_args:
        {input_size: 16, in_channels: 3, patch_size: 4, text_dim: 64, data_dim: 16, num_latents: 4, latent_dim: 16,
         num_blocks: 1, num_layers: 1, read_write_heads: 2, compute_heads: 2, refine_heads: 2}
callbacks:
  part: {class_path: part.Part}
  val: {init_args: {prompts: {init_args: {limit: 8}}, at_start: false, at_end: false, every_n_steps: 1000}}
  geneval: null
  table: null
""",
}
MODULES = ("part", "beside", "package", "package.deeper", "network", "unused")
RUN = "runs/mine/version_0"
SAMPLE = ["--prompt", "a red circle", "--steps", "2", "--seed", "3"]


def forget(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As a new process in another folder begins."""
    for name in MODULES:
        sys.modules.pop(name, None)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.startswith(str(folder))])


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of two steps with plug-ins, which has been moved away from all that made it."""
    here = tmp_path / "here"
    for name, text in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    tiny.enter(here, monkeypatch, {})
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch, tmp_path)
    assert cli.main(["run", "parts/mine.yaml", "--trainer.max_steps", "2"]) == 0
    return here


def test_what_is_kept(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained / RUN
    plugins = run / "plugins"
    kept = sorted(str(path.relative_to(plugins)) for path in plugins.rglob("*.py"))
    assert kept == ["beside.py", "network.py", "package/__init__.py", "package/deeper.py", "part.py"]
    assert (plugins / "part.py").read_text() == PART
    environment = yaml.safe_load((run / "environment.yaml").read_text())
    assert environment["command"].endswith("run parts/mine.yaml --trainer.max_steps 2")
    assert environment["packages"]["torch"] == version("torch") and environment["python"] and environment["t2ikit"]
    assert (run / "text_encoder" / "tokenizer.json").is_file()
    # A resume says what has changed, and keeps both; a second one that changes nothing keeps no more.
    (trained / "parts/beside.py").write_text("TAU = 0.6\n")
    forget(monkeypatch, trained)
    again = ["run", "parts/mine.yaml", "--trainer.max_steps"]
    assert cli.main([*again, "3", "--resume", "last"]) == 0
    out = capsys.readouterr().out
    assert f"changed: plug-in beside.py: {trained}/parts/beside.py is not what the checkpoint was trained with" in out
    assert "part.py" not in out.replace("plug-in beside.py", "")
    assert kept_plugins(run) == run / "plugins.resume-1"
    assert (run / "plugins.resume-1/beside.py").read_text() == "TAU = 0.6\n"
    assert cli.main([*again, "4", "--resume", "last"]) == 0
    assert "plug-in" not in capsys.readouterr().out
    names = {path.name for path in run.glob("*") if path.name.startswith(("plugins", "environment"))}
    assert names == {
        "environment.yaml",
        "environment.resume-1.yaml",
        "environment.resume-2.yaml",
        "plugins",
        "plugins.resume-1",
    }


def test_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    core = "processor\t: {}\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: Abacus 9\n"
    cpuinfo.write_text(core.format(0) + "\n" + core.format(1))
    assert processor_name(cpuinfo) == "Abacus 9 (family 25, model 1)"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Abacus 9\n")
    assert processor_name(cpuinfo) == "Abacus 9"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")  # ARM names no model
    assert processor_name(cpuinfo) == processor_name(tmp_path / "none") != ""


def test_a_moved_run_is_sampled_and_evaluated_where_nothing_else_is_left(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["sample", RUN, *SAMPLE, "--out", str(tmp_path / "before"), "--trust", "network"]) == 0
    moved = tmp_path / "elsewhere" / "the run"
    moved.parent.mkdir()
    shutil.move(trained / RUN, moved)
    shutil.rmtree(tmp_path / "cache")
    shutil.move(trained, tmp_path / "gone")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.chdir(moved.parent)
    forget(monkeypatch, tmp_path)
    for words in (["sample", "the run", *SAMPLE], ["evaluate", "the run", "--snapshot", "val"]):
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert "'network' is no file of yours here" in error and "    class Mine(CADI):" in error
        assert "the run/plugins/network.py" in error and error.endswith("If you trust it: --trust network\n")
    assert "network" not in sys.modules
    assert cli.main(["sample", "the run", *SAMPLE, "--trust", "network"]) == 0
    before, after = (tmp_path / name / "00000.png" for name in ("before", "elsewhere/samples"))
    assert np.array_equal(np.asarray(Image.open(before)), np.asarray(Image.open(after)))
    words = ["evaluate", "the run", "--snapshot", "val", "--steps", "2", "--trust", "network"]
    assert cli.main(words) == 0


def test_a_plug_in_of_the_current_folder_that_is_another_one(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained / "network.py").write_text(NETWORK + "# changed\n")
    forget(monkeypatch, trained)
    assert cli.main(["sample", RUN, *SAMPLE]) == 0
    assert f"note: network.py is not what the run was trained with, {RUN}/plugins/network.py" in capsys.readouterr().err


def test_an_environment_inside_a_checkout_is_no_part_of_it(tmp_path: Path) -> None:
    from t2ikit.run.kept import _commit

    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "a.py").touch()
    assert _commit(tmp_path) is None
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "a.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    (tmp_path / "b.py").touch()
    commit = _commit(tmp_path / "a.py")
    assert commit is not None and len(commit) == 40 and _commit(tmp_path / "b.py") is None
    (tmp_path / "a.py").write_text("a = 1")
    assert _commit(tmp_path) == f"{commit}, changed"


def test_the_run_folder_of_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name in ("checkpoints/a.ckpt", "checkpoints/left-at-00000002/a.ckpt"):
        assert run_folder_of(run / name) == run
    assert run_folder_of(run / "a.ckpt") == run


def test_versions_are_of_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {"half-1.0": "", "torch-0.1": "Metadata-Version: 2.1\nName: torch\nVersion: 0.1\n"}
    for name, text in left.items():
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(text)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    kept._packages.cache_clear()
    packages = kept.environment("t2ikit run")["packages"]
    kept._packages.cache_clear()
    assert packages["torch"] == version("torch") and None not in packages
