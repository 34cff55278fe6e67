"""What the code never does: it is searched for here."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import t2ikit
from t2ikit.pretrained import load_pretrained

ROOT = Path(t2ikit.__file__).parent
SOURCES = sorted({*ROOT.rglob("*.py"), *(ROOT.parent / "callbacks").glob("*.py")})


@cache
def all_calls() -> list[tuple[Path, str, ast.Call]]:
    """Every call with the dotted name that is called."""
    nodes = ((path, node) for path in SOURCES for node in ast.walk(ast.parse(path.read_bytes())))
    return [(path, ast.unparse(node.func), node) for path, node in nodes if isinstance(node, ast.Call)]


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """Every call whose dotted name ends so."""
    return ((path, call) for path, called, call in all_calls() if called == name or called.endswith(f".{name}"))


@pytest.mark.parametrize("name", ["torch.load", "pl_load", "load_state_dict_from_url", "trainer.fit"])
def test_weights_are_read_without_their_code(name: str) -> None:
    """``trainer.fit`` hands it to the strategy that reads the checkpoint."""
    for path, call in calls(name):
        if ast.unparse(call.func).startswith("safetensors."):
            continue
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name != "trainer.fit" or "ckpt_path" in given:
            assert given.get("weights_only") == "True", f"{path}:{call.lineno}"


@pytest.mark.parametrize("name", ["np.load", "numpy.load"])
def test_arrays_hold_no_pickles(name: str) -> None:
    for path, call in calls(name):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"  # numpy's default


def test_no_code_of_a_model_repository_runs() -> None:
    """Only the metric that needs it sets ``trust_remote_code``, and only with ``--trust code:MODEL``."""
    for path in SOURCES:
        if path.name == "jina_clip.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(r"trust_remote_code\W*[=:]\s*True", line), f"{path}:{number}"


def test_no_library_asks_on_the_terminal_whether_code_may_run() -> None:
    """``trust_remote_code=None``, the default, does."""
    for path, called, call in all_calls():
        if re.search(r"\bAuto[A-Z]\w*\.from_pretrained$", called) and path.name != "jina_clip.py":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("trust_remote_code") == "False", f"{path}:{call.lineno}"


def test_code_beside_a_model_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    mark = tmp_path / "it_ran"
    (tmp_path / "code.py").write_text(f"open({str(mark)!r}, 'w')\n")
    named = {"AutoConfig": "code.Config", "AutoModel": "code.Net"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": named}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match="cannot be loaded as AutoModel"):
        load_pretrained(AutoModel, str(tmp_path), None, "--model")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["eval", "exec", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"])
def test_no_text_is_run(name: str) -> None:
    found = [f"{path}:{call.lineno}" for path, call in calls(name) if ast.unparse(call.func) == name]
    assert found == []


def test_pickles_are_of_our_own_processes_or_looked_at() -> None:
    places = {
        path.relative_to(ROOT.parent).as_posix() for name in ("pickle.load", "pickle.loads") for path, _ in calls(name)
    }
    assert places <= {"t2ikit/prepare/engine/loading.py"}  # an exception that it has just pickled itself


def test_json_is_read_where_deep_brackets_are_refused() -> None:
    """``json.loads`` raises a RecursionError over them, which readers of files do not expect."""
    for path, call in calls("json.loads"):
        own = ast.unparse(call.args[0]).startswith("json.dumps(")
        assert own or path.relative_to(ROOT).as_posix() == "files.py", f"{path}:{call.lineno}: parse_json"
