"""A short run that the faults break."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny

EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 8}
callbacks:
  val: null
  geneval: null
  table: null
  cutmix: null
  checkpoint: {init_args: {every_n_steps: 2}}
data: {init_args: {count: 32, settings: []}}
"""  # 4 steps an epoch


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with short.yaml, an experiment of 8 steps and 4 checkpoints on shapes."""
    return tiny.enter(tmp_path, monkeypatch, {"short.yaml": EXPERIMENT})
