"""Checkpoint files: whole, hashed, refused when they are not as they were written, and what a full disk does."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from t2ikit.checkpoints import files, saving
from t2ikit.checkpoints.runs import find_checkpoint, good_checkpoint
from t2ikit.checkpoints.saving import fault_of, write_checkpoint
from t2ikit.config.errors import ConfigError

MEMORY = """
import resource, sys
from pathlib import Path
import torch
from t2ikit.checkpoints.saving import write_checkpoint
state = {"global_step": 1, "state_dict": {str(index): torch.zeros(2_500_000) for index in range(10)}}
for value in state["state_dict"].values():
    value.add_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_checkpoint(state, Path(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def state(step: int) -> dict[str, Any]:
    return {"global_step": step, "state_dict": {"weight": torch.arange(1000.0) + step, "bias": torch.ones(3)}}


def written(folder: Path, step: int, name: str | None = None) -> Path:
    path = folder / "checkpoints" / (name or f"step-{step:08d}.ckpt")
    write_checkpoint(state(step), path)
    return path


def flip(path: Path, index: int) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 4
    path.write_bytes(content)


def test_a_hashed_file_is_read_as_any_other(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    for mmap in (False, True):
        content = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(content["state_dict"]["weight"], state(3)["state_dict"]["weight"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"t2ikit sha256 ")
    assert fault_of(path) is None


@pytest.mark.fault("a flipped bit in a checkpoint", "refused by name at every load")
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    size, whole = path.stat().st_size, path.read_bytes()
    for index in (*range(0, size - 400, 97), *range(size - 400, size)):
        flip(path, index)
        assert saving._fault_of.__wrapped__(path) is not None, index
        path.write_bytes(whole)
    for changed in (*(whole[:-cut] for cut in range(1, 120)), whole + b"x", whole + bytes(5000)):
        path.write_bytes(changed)
        assert saving._fault_of.__wrapped__(path) is not None, len(changed)
    path.write_bytes(whole)
    flip(path, size // 2)
    with pytest.raises(ValueError, match=r"step-00000003\.ckpt.* the file is damaged"):
        files.read_weights(path)


def test_files_of_others_in_the_folder_are_not_taken(tmp_path: Path) -> None:
    good = written(tmp_path, 3)
    (good.parent / "step-00000009.ckpt").symlink_to("nowhere")
    written(tmp_path, 1, "model-99.ckpt")  # no step in its name
    written(tmp_path, 1, "loss=0.31.ckpt")
    assert good_checkpoint(tmp_path) == good
    torch.save({"weight": torch.ones(3)}, good.parent / "step-00000008.ckpt")
    torch.save({"global_step": 7, "place": good}, good.parent / "step-00000007.ckpt")
    with pytest.warns(UserWarning, match=r"step-00000008.* it is none of a run.*step-00000007.*it holds objects"):
        assert good_checkpoint(tmp_path) == good
    assert fault_of(written(tmp_path, 5, "epoch=1-step=5-v1.ckpt")) is None


def test_files_without_a_hash_are_read_unchecked(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(state(1), path)
    assert fault_of(path) is None
    torch.save(state(1), path, _use_new_zipfile_serialization=False)
    assert files.read_weights(path)["global_step"] == 1


@pytest.mark.fault("a damaged newest checkpoint", "the good one before is taken, with a warning")
def test_the_good_one_before_a_bad_one_is_taken(tmp_path: Path) -> None:
    paths = [written(tmp_path, step) for step in (1, 2, 3)]
    assert good_checkpoint(tmp_path) == paths[2]
    flip(paths[2], 700)
    paths[1].write_bytes(paths[1].read_bytes()[:-300])
    with pytest.warns(UserWarning, match=r"step-00000003\.ckpt: the file is damaged.*step-00000002\.ckpt: not a comp"):
        assert find_checkpoint(tmp_path, "--resume") == paths[0]
    with pytest.raises(ConfigError, match=r"step-00000003\.ckpt: the file is damaged.*good one is .*step-00000001"):
        find_checkpoint(paths[2], "--resume")
    flip(paths[0], 700)
    with pytest.warns(UserWarning, match="no good one"), pytest.raises(ConfigError, match="no complete checkpoint"):
        find_checkpoint(tmp_path, "--resume")


@pytest.mark.fault("two checkpoints swapped", "refused: the step in the name is not the one inside")
@pytest.mark.parametrize(
    "names", [("step-00000001.ckpt", "step-00000002.ckpt"), ("e=0-step=1.ckpt", "e=0-step=2.ckpt")]
)
def test_two_files_swapped_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    first, second = (written(tmp_path, step, name) for step, name in enumerate(names, 1))
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    with pytest.raises(ConfigError, match="its name says step 1, but step 2 is inside"):
        find_checkpoint(first, "--resume")
    copy = tmp_path / "best.ckpt"  # a name without a step says nothing
    copy.write_bytes(first.read_bytes())
    assert find_checkpoint(copy, "--resume") == copy


def test_a_save_makes_no_copy_of_the_state(tmp_path: Path) -> None:
    """100 MB of state; written beside its place, so that $TMPDIR need not exist."""
    command, environment = (
        [sys.executable, "-c", MEMORY, str(tmp_path / "a.ckpt")],
        {**os.environ, "TMPDIR": "/nowhere"},
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 8 * 1024  # KiB


def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on a write beyond 2,000 bytes fails as on a full disk."""
    real, full = saving._HashedFile._put, list[bool]()

    class Disk:
        def __init__(self, stream: Any) -> None:
            self.stream, self.left = stream, 2000

        def write(self, content: memoryview) -> int:
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            size = self.stream.write(content[: self.left])
            self.left -= size
            return int(size)

    def put(file: Any, content: Any) -> None:
        if full and not isinstance(file._stream, Disk):
            file._stream = Disk(file._stream)
        real(file, content)

    monkeypatch.setattr(saving._HashedFile, "_put", put)
    return lambda: full.append(True)


@pytest.mark.fault("no space for a checkpoint", "nothing is left of it, the older ones stay")
def test_a_full_disk_leaves_nothing_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = full_disk(monkeypatch)
    path = written(tmp_path, 1)
    before = path.read_bytes()
    fill()
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(state(2), path)
    assert list(path.parent.iterdir()) == [path] and path.read_bytes() == before


def test_a_limit_of_the_system_on_files_is_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            written(tmp_path, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_callbacks_of_lightning_write_the_same_files_and_outlive_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.demos.boring_classes import BoringModel

    from t2ikit.callbacks import Checkpoint, CheckpointFiles
    from t2ikit.callbacks.checkpoint_files import failure_of

    fill = full_disk(monkeypatch)

    class Fill(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                fill()

    theirs = ModelCheckpoint(tmp_path / "theirs", every_n_train_steps=2, save_top_k=1, filename="{step}")
    ours = Checkpoint(every_n_steps=2, keep=1)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_steps=6,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[Fill(), theirs, ours],
        plugins=[CheckpointFiles()],
        **options,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(BoringModel())
    failures = [warning for warning in caught if "could not be written" in str(warning.message)]
    assert {Path(warning.filename).name for warning in failures} == {"checkpoint_files.py"}  # else it is not shown
    told = [str(warning.message) for warning in failures]
    assert len(told) >= 2 and all("No space left on device" in message for message in told)
    assert "the newest one stays" in told[0] and "step=4.ckpt" in told[0]
    for folder, name in (("theirs", "step=4.ckpt"), ("checkpoints", "step-00000004.ckpt")):
        assert [path.name for path in (tmp_path / folder).iterdir()] == [name]
        assert fault_of(tmp_path / folder / name) is None
    assert "step-00000006.ckpt could not be written" in str(failure_of(trainer))
    flip(tmp_path / "theirs" / "step=4.ckpt", 900)
    with pytest.raises(ValueError, match=r"step=4\.ckpt: the file is damaged"):
        trainer.fit(BoringModel(), ckpt_path=tmp_path / "theirs" / "step=4.ckpt")
