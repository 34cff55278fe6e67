"""A table of what broke and what happened: fault, outcome, evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tiny

ROWS = pytest.StashKey[list[tuple[str, str, str]]]()
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


@pytest.fixture
def evidence(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """Adds a row to the table that ends the session: the fault, what the kit did, and how that was seen."""
    rows = request.config.stash.setdefault(ROWS, [])

    def add(fault: str, outcome: str, seen: str) -> None:
        rows.append((fault, outcome, " ".join(seen.split())))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("faults")
        terminalreporter.line("| fault | outcome | evidence |\n|---|---|---|")
        for row in rows:
            terminalreporter.line(f"| {' | '.join(row)} |")
