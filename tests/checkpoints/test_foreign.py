"""Files of other programs in the place of a checkpoint: every command names the file and says what it holds."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import tiny
from t2ikit import cli
from t2ikit.checkpoints.foreign import refuse_foreign
from t2ikit.config.errors import ConfigError

NAMES = [f"model.diffusion_model.input_blocks.{index}.0.weight" for index in range(200)]
WEIGHTS = {name: torch.zeros(3) for name in NAMES}
FIRST = f"({', '.join(NAMES[:4])}, ...)"
LIGHTNING = {"epoch": 0, "global_step": 5, "pytorch-lightning_version": "2.6.0", "callbacks": {}, "loops": {}}


class Net(torch.nn.Linear):
    """A whole module, pickled with its class."""


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch it_ran",)


def stored(content: Any, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.txt", "b")
    return buffer.getvalue()


# Content of the file, and what is said of it by the commands that need an experiment.
FILES: dict[str, tuple[bytes, str]] = {
    "weights.pt": (stored(WEIGHTS), f"it holds 200 weights alone {FIRST}, no state_dict"),
    "trainer.ckpt": (stored({"model": WEIGHTS, "ema": WEIGHTS, "step": 7}), "it holds 3 entries (model, ema, step)"),
    "list.ckpt": (stored([1, 2]), "holds list"),
    "lightning.ckpt": (
        stored({**LIGHTNING, "state_dict": WEIGHTS, "optimizer_states": []}),
        f"a checkpoint of Lightning, of another module {FIRST}, no experiment",
    ),
    "bare.ckpt": (stored({**LIGHTNING, "state_dict": WEIGHTS}), "of another module"),
    "module.pt": (stored(Net(2, 2)), "it holds objects (test_foreign.Net) of another program"),
    "code.ckpt": (stored({**LIGHTNING, "state_dict": Code()}), f"it holds objects ({os.name}.system)"),
    "old code.ckpt": (stored({"state_dict": Code()}, new=False), "in the format of before torch 1.6"),
    "old.ckpt": (stored(WEIGHTS, new=False), "in the format of before torch 1.6"),
    "weights.safetensors": (save(WEIGHTS), "weights alone, in the format safetensors"),
    "weights.ckpt": (save(WEIGHTS), "weights alone, in the format safetensors"),
    "archive.ckpt": (archive(), "a zip archive, but not of torch"),
    "page.ckpt": (b"<!doctype html>", "a web page"),
    "pointer.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    "empty.ckpt": (b"", "it is empty"),
    "cut.ckpt": (b"\x00\x01", "cut off"),
}
# What is said by a resume, which needs the state of a training; else the same.
RESUMED = {
    "list.ckpt": "it holds a list",
    "bare.ckpt": "no optimizer_states and no experiment",
}


@pytest.mark.long
def test_every_command_names_the_file_and_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "test_foreign", sys.modules[__name__])
    monkeypatch.setattr(Net, "__module__", "test_foreign")
    tiny.enter(tmp_path, monkeypatch, {})
    for name, (_, said) in FILES.items():
        content = stored(Net(2, 2)) if name == "module.pt" else FILES[name][0]
        (tmp_path / name).write_bytes(content)
        commands = [
            (["run", "tiny.yaml", "--resume", name], RESUMED.get(name, said.partition(", no ")[0])),
            (["run", "tiny.yaml", "--model.start", f"{{checkpoint: {name}}}"], said),
            (["sample", name, "--prompt", "a red circle"], said),
            (["evaluate", name, "--snapshot", "val"], said),
        ]
        for words, message in commands:
            assert cli.main(words) == 2, words
            error = capsys.readouterr().err.splitlines()[-1]
            assert name in error and message in error, words
            assert len(error) < 800 and "weights_only" not in error, words
    assert not list(tmp_path.glob("runs/*")) and not (tmp_path / "it_ran").exists()


def test_an_experiment_that_cannot_be_built_and_missing_averages_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.enter(tmp_path, monkeypatch, {})
    short = ["--callbacks.val", "null", "--callbacks.geneval", "null", "--callbacks.table", "null"]
    assert cli.main(["run", "tiny.yaml", *short, "--callbacks.ema", "null", "--trainer.max_steps", "1"]) == 0
    [path] = (tmp_path / "runs").rglob("step-*.ckpt")
    again = ["run", "tiny.yaml", *short, "--trainer.max_steps", "1", "--model.start", f"{{checkpoint: {path}}}"]
    for words in (["sample", str(path), "--prompt", "a"], again):
        assert cli.main(words) == 2
        assert f"{path} holds no averaged weights" in capsys.readouterr().err
    content = torch.load(path, weights_only=True)
    del content["experiment"]["model"]["init_args"]["denoiser"]
    torch.save(content, path)
    assert cli.main(["sample", str(path), "--weights", "raw", "--prompt", "a"]) == 2
    assert f"checkpoint {path}: model.init_args: missing denoiser" in capsys.readouterr().err


def test_weights_of_another_network_are_not_all_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.enter(tmp_path, monkeypatch, {})
    short = ["--callbacks.val", "null", "--callbacks.geneval", "null", "--callbacks.table", "null"]
    assert cli.main(["run", "tiny.yaml", *short, "--trainer.max_steps", "1"]) == 0
    [path] = (tmp_path / "runs").rglob("step-*.ckpt")
    content = torch.load(path, weights_only=True)
    names = list(content["state_dict"])
    torch.save({**content, "state_dict": {}}, path)
    assert cli.main(["run", "tiny.yaml", *short, "--resume", "last", "--trainer.max_steps", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"--resume {path.relative_to(tmp_path)}: its weights are those of another network" in error
    assert f'{names[3]}", ... {len(names)} in all' in error and names[4] not in error


@pytest.mark.fault("folders of other programs among the checkpoints", "named, passed over, and never removed")
def test_folders_in_the_place_of_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.enter(tmp_path, monkeypatch, {})
    short = ["--callbacks.val", "null", "--callbacks.geneval", "null", "--callbacks.table", "null"]
    short += ["--callbacks.checkpoint.every_n_steps", "1", "--callbacks.checkpoint.keep", "1"]
    assert cli.main(["run", "tiny.yaml", *short, "--trainer.max_steps", "2"]) == 0
    [good] = (tmp_path / "runs").rglob("step-*.ckpt")
    folders = [good.with_name(f"step-{step:08d}.ckpt") for step in (1, 4, 9)]
    for folder in folders:
        (folder / "checkpoint").mkdir(parents=True)
        (folder / "checkpoint/mp_rank_00_model_states.pt").write_bytes(b"x")
    for words in (
        ["run", "tiny.yaml", "--resume", str(folders[1])],
        ["run", "tiny.yaml", "--model.start", f"{{checkpoint: {folders[1]}}}"],
        ["sample", str(folders[1]), "--prompt", "a red circle"],
        ["evaluate", str(folders[1]), "--snapshot", "val"],
    ):
        assert cli.main(words) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{folders[1]}: it is a folder, as FSDP and DeepSpeed write" in error, words
        assert f"The newest good one is {good}" in error
    with pytest.warns(UserWarning, match=r"step-00000009.ckpt: it is a folder, .* is taken: .*step-00000002"):
        assert cli.main(["run", "tiny.yaml", *short, "--resume", "last", "--trainer.max_steps", "5"]) == 0
    kept = sorted(path.relative_to(good.parent).as_posix() for path in good.parent.rglob("*.ckpt"))
    aside = "left-at-00000002"
    assert kept == [
        f"{aside}/step-00000004.ckpt",
        f"{aside}/step-00000009.ckpt",
        "step-00000001.ckpt",
        "step-00000005.ckpt",
    ]
    assert len(list(good.parent.rglob("mp_rank_00_model_states.pt"))) == 3


@pytest.mark.parametrize(
    ("written", "refused"), [("0.1.9", False), ("0.0.3", False), ("0.2.0", True), ("1.0", True), (None, False)]
)
def test_a_checkpoint_of_a_later_version_is_refused(
    written: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("t2ikit.__version__", "0.1.0")
    content = {"state_dict": {}, "experiment": {}, "t2ikit": written}
    if not refused:
        assert refuse_foreign(content, Path("a.ckpt"), "--resume") is content
        return
    with pytest.raises(ConfigError, match=f"t2ikit {written} has written it.*pip install 't2ikit>="):
        refuse_foreign(content, Path("a.ckpt"), "--resume")
