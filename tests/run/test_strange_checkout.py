"""A folder whose ``.git`` comes from a stranger: its settings name commands, none of which runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from t2ikit.run.kept import environment

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    done = subprocess.run(["git", *who, "-C", folder, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of one file, which is the current folder."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file").write_text("one\n")
    (folder / ".gitattributes").write_text("* filter=strange\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "file").write_text("two\n")
    monkeypatch.chdir(folder)
    return folder


def test_changed_files_are_seen(checkout: Path) -> None:
    assert environment("t2ikit run")["commit_of_folder"] == f"{git(checkout, 'rev-parse', 'HEAD')}, changed"


@pytest.mark.parametrize("command", ["clean", "process"])
def test_no_filter_runs(checkout: Path, command: str) -> None:
    git(checkout, "config", f"filter.strange.{command}", f"touch {checkout / 'mark'}; cat")
    said = environment("t2ikit run")["commit_of_folder"]
    assert not (checkout / "mark").exists()
    assert said == f"{git(checkout, 'rev-parse', 'HEAD')}, files not compared"


def test_nothing_is_fetched(checkout: Path) -> None:
    """git fetches an object that is missing, by a command that the checkout names."""
    settings = {
        "core.repositoryformatversion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": "ssh://host/there",
        "core.sshCommand": f"touch {checkout / 'mark'};",
    }
    tree = git(checkout, "rev-parse", "HEAD^{tree}")
    for name, value in settings.items():
        git(checkout, "config", name, value)
    (checkout / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    environment("t2ikit run")
    assert not (checkout / "mark").exists()
