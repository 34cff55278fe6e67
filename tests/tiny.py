"""The networks and the experiment of the tests: every part of the real ones, in the smallest size that has it."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from t2ikit.denoisers import CADI, Denoiser, DiTI, Levels, Shallow, UViT
from t2ikit.denoisers.uvit import Core
from t2ikit.files import write_whole
from t2ikit.records.chunks import Chunk, ChunkBuffer
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.writing import extend_set

Network = TypeVar("Network", bound=Denoiser)
EXPERIMENT = """
extends: [base/shapes_pixels.yaml]
model:
  init_args:
    denoiser:
      init_args: {data_dim: 16, num_latents: 4, latent_dim: 16, num_blocks: 1, num_layers: 1, patch_size: 4}
data: {init_args: {count: 64, val_count: 16, batch_size: 8}}
trainer: {accelerator: cpu, log_every_n_steps: 1}
"""
STOP = """
import os, signal
from lightning import Callback


class Stop(Callback):
    '''Kills the process after the step in the variable KILL.'''

    def on_train_batch_end(self, trainer, *args):
        if os.environ.get("KILL") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
"""
PROJECTED = """
from torch import nn

from t2ikit.diffusion.terms import Term


class Projected(Term):
    '''Error of a linear map of the output; the map is trained.'''

    def __init__(self, weight: float = 1.0, until: int | None = None):
        super().__init__(weight, until)
        self.layer = nn.Linear(3, 3)

    def forward(self, main):
        mapped = self.layer(main.output.movedim(1, -1).to(self.layer.weight.dtype))
        return (mapped - main.target.movedim(1, -1)).square().flatten(1).mean(1)
"""


def cad_i(**options: Any) -> CADI:
    """CAD-I of 16 patches, for x [B, 4, 8, 8] and text states of width 24: two blocks of two layers."""
    sizes = {"input_size": 8, "data_dim": 32, "num_latents": 6, "latent_dim": 64, "num_blocks": 2, "num_layers": 2}
    heads = {"read_write_heads": 4, "compute_heads": 4}
    return CADI(**{**sizes, **heads, "text_dim": 24, "num_registers": 3, **options})


def dit_i(**options: Any) -> DiTI:
    """DiT-I of 16 patches, for x [B, 4, 8, 8] and text states of width 24: three blocks."""
    sizes = {"input_size": 8, "hidden_size": 64, "depth": 3, "num_heads": 4}
    return DiTI(**{**sizes, "text_dim": 24, "num_registers": 3, **options})


def shallow_cad_i(**options: Any) -> CADI:
    """CAD-I of 4 patches, for x [B, 4, 4, 4] and text states of width 8: one block of one layer."""
    sizes = {"input_size": 4, "data_dim": 16, "num_latents": 4, "latent_dim": 32, "num_blocks": 1, "num_layers": 1}
    heads = {"read_write_heads": 2, "compute_heads": 2, "refine_heads": 2}
    return CADI(**{**sizes, **heads, "text_dim": 8, "num_registers": 2, **options})


def shallow_dit_i(**options: Any) -> DiTI:
    """DiT-I of 4 patches, for x [B, 4, 4, 4] and text states of width 8: one block."""
    sizes = {"input_size": 4, "hidden_size": 32, "depth": 1, "num_heads": 2}
    return DiTI(**{**sizes, "text_dim": 8, "num_registers": 2, **options})


def uvit(**options: Any) -> UViT:
    """Shallow-UViT of 16 tokens, for x [B, 3, 8, 8] and text states of width 24: two blocks of width 32."""
    sizes = {"input_size": 8, "core": Core(32, 2, 2, 16), "shell": Shallow(2, 16)}
    return UViT(**{**sizes, "text_dim": 24, **options})


def grown_uvit(**options: Any) -> UViT:
    """The same core in a shell of two levels, for x [B, 3, 32, 32]."""
    return uvit(**{"input_size": 32, "shell": Levels(2, (8, 16), (1, 2), 8), **options})


def awake(denoiser: Network) -> Network:
    """The same with every parameter moved off its initial value, so that nothing is switched off."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return denoiser


def assert_same(first: Any, second: Any, name: str = "") -> None:
    """Two batches, or two parts of them, hold the same, bit for bit."""
    if is_dataclass(first):
        first, second = vars(first), vars(second)
    if isinstance(first, dict):
        assert list(first) == list(second), name
        for key, value in first.items():
            assert_same(value, second[key], f"{name} {key}")
    elif isinstance(first, np.ndarray):
        assert first.dtype == second.dtype and np.array_equal(first, second), name
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second, name


def leaves(node: Any, name: str = "") -> dict[str, Any]:
    """Whatever nested mappings and sequences hold, by its path in them."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else None
    if items is None:
        return {name: node}
    return {key: leaf for part, below in items for key, leaf in leaves(below, f"{name}/{part}").items()}


def record_of_version_1(record: Record) -> bytes:
    """As the first version of the format wrote an image without states."""
    details = json.dumps({"captions": list(record.captions), "metadata": record.metadata}).encode()
    offset = 40 + record.image.nbytes
    codes = (0, 0, len(record.captions), 0, 0)
    header = struct.pack("<4sHBBHHI4III", b"T2IR", 1, *codes, *record.image.shape, 0, offset, len(details))
    return header + record.image.tobytes() + details


def to_version_1(folder: Path) -> dict[str, Any]:
    """Turns a set of images into one of the first version of the format; the content of its manifest."""
    records = RecordSet(folder)
    path = folder.with_name("shard.bin")
    digest = write_whole(path, ChunkBuffer(record_of_version_1(record) for record in records).content())
    chunk = Chunk("", len(records), path.stat().st_size, digest)
    written = extend_set(folder, [(path, chunk)], records.manifest, overwrite=True)
    path.unlink()
    manifest: dict[str, Any] = {**json.loads(written.to_json()), "version": 1, "text_dim": 0, "text_encoder": None}
    for name in ("image_codec", "texts", "further", "parts"):
        del manifest[name]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


def enter(folder: Path, patch: pytest.MonkeyPatch, files: dict[str, str]) -> Path:
    """Makes ``folder`` the current one, outside the repository, with these files beside tiny.yaml, the experiment.

    Args:
        folder: an existing folder.
        patch: undoes the change of folder, and what a run adds to ``sys.path``.
        files: their text by name; experiments say ``extends: [tiny.yaml]``.
    """
    for name, text in {"tiny.yaml": EXPERIMENT, **files}.items():
        (folder / name).write_text(text)
    return current(folder, patch)


def packed(path: Path, members: dict[str, bytes | str]) -> Path:
    """Writes a tar of these members, by name; text as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            facts = tarfile.TarInfo(name)
            content = content.encode() if isinstance(content, str) else content
            facts.size = len(content)
            tar.addfile(facts, io.BytesIO(content))
    return path


def current(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Makes an existing ``folder`` the current one; ``patch`` undoes that, and what a run adds to ``sys.path``.

    Modules of its names that an earlier test has imported from another folder are forgotten.
    """
    for path in folder.glob("*.py"):
        loaded = getattr(sys.modules.get(path.stem), "__file__", None)
        if loaded is not None and Path(loaded).resolve() != path.resolve():
            del sys.modules[path.stem]
    patch.chdir(folder)
    patch.setattr(sys, "path", list(sys.path))
    return folder


def killed(variable: str, *words: str) -> None:
    """A command in a process of its own, in the current folder, which must end by SIGKILL.

    Args:
        variable: value of KILL in its environment, at which a callback of the test kills it.
        words: of the command line.
    """
    environment = {**os.environ, "KILL": variable, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "t2ikit", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process trains in a run folder meanwhile."""
    program = (
        "import sys, time; from pathlib import Path; from t2ikit.lock import lock\n"
        "lock(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()
