"""Experiments of strangers: what one tries, and that nothing of it happens. The table of docs/trust.md lists them."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import tiny
from t2ikit.cli import main
from t2ikit.config import secrets
from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import Override
from t2ikit.run.experiment import Plan, check, origins_of

MARK = "open('mark', 'w')\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, and a process that trusts nothing."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(secrets, "_trusted", set())
    monkeypatch.setattr(secrets, "_revealed", {})
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def checked(text: str, folder: Path = Path("."), *overrides: Override) -> Plan:
    """An experiment of that text in a folder, as ``run`` and ``--print_config`` check it."""
    path = folder / "strange.yaml"
    path.write_text(f"extends: [quickstart.yaml]\n{text}\n")
    importlib.invalidate_caches()
    return check(compose(path, overrides), origins_of(experiment=path))


def callback(class_path: str) -> str:
    return f"callbacks: {{strange: {{class_path: {class_path}}}}}"


GOOD = "from lightning.pytorch import Callback\nclass Good(Callback):\n    pass\n"


@pytest.mark.parametrize(
    ("source", "class_path", "message"),
    [
        ("def strange():\n    pass\n", "mine.strange", "'mine.strange' names a function, not a class"),
        ("class Strange:\n    def run(self): pass\n", "mine.Strange.run", "'mine.Strange.run' names a function"),
        ("class Strange:\n    pass\n", "mine.Strange", "mine.Strange is no Callback of lightning"),
        ("class Strange:\n    pass\n", "mine.Stranger", "mine has no class 'Stranger'; nearest known: 'Strange'"),
        ("try:\n    x = 1\nexcept E:\n    def f(): pass\n", "mine.f", "names a function, not a class"),
    ],
)
def test_a_source_is_looked_at_before_it_is_imported(source: str, class_path: str, message: str) -> None:
    Path("mine.py").write_text(MARK + source)
    with pytest.raises(ConfigError, match=message):
        checked(callback(class_path))
    assert not Path("mark").exists()


def test_all_classes_are_looked_at_before_one_is_imported(tmp_path: Path) -> None:
    Path("mine.py").write_text(MARK + GOOD)
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "stranger.py").write_text(GOOD)
    sys.path.append(str(installed))
    nested = "{class_path: t2ikit.diffusion.RectifiedFlow, init_args: {shift: [{class_path: stranger.Good}]}}"
    for text in (
        "callbacks: {a: mine.Good, b: {class_path: stranger.Good}}",
        f"callbacks: {{a: mine.Good}}\nmodel: {{init_args: {{objective: {nested}}}}}",
        "callbacks: {a: mine.Good}\nloggers: {b: stranger.Good}",
    ):
        with pytest.raises(ConfigError, match="--trust stranger"):
            checked(text)
        assert not Path("mark").exists()
    checked("callbacks: {a: mine.Good}")
    assert Path("mark").exists()  # a good one is imported without an option


@pytest.mark.parametrize("name", ["strange.so", "strange.pyc", "strange.abi3.so"])
def test_a_module_without_a_source_needs_trust(name: str) -> None:
    Path(name).write_bytes(b"\0")
    with pytest.raises(ConfigError, match="is no source, so nobody can look at what it does.*--trust strange"):
        checked(callback("strange.Good"))


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text(MARK + GOOD)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(MARK)
    Path("inner").mkdir()
    Path("inner/part.py").symlink_to(tmp_path / "elsewhere.py")
    Path("linked.py").symlink_to(tmp_path / "elsewhere.py")
    Path("whole").symlink_to(tmp_path / "package")
    for class_path in ("inner.part.Good", "linked.Good", "whole.Good"):
        with pytest.raises(ConfigError, match=f"--trust {class_path.partition('.')[0]}"):
            checked(callback(class_path))
    assert not Path("mark").exists()


@pytest.mark.parametrize("module", ["t2ikit.__main__", "torch._inductor.codecache", "lightning.pytorch._graveyard"])
def test_the_inside_of_a_library_needs_trust(module: str) -> None:
    with pytest.raises(ConfigError, match=f"--trust {module}"):
        checked(callback(f"{module}.Strange"))


def test_a_parent_elsewhere_brings_no_code_and_only_experiments_are_read(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "theirs.py").write_text(MARK + GOOD)
    (other / "parent.yaml").write_text(callback("theirs.Good"))
    Path("strange.yaml").write_text(f"extends: [quickstart.yaml, {other}/parent.yaml]\n")
    with pytest.raises(ConfigError, match="no module 'theirs'"):
        check(compose("strange.yaml"), origins_of(experiment=Path("strange.yaml")))
    (tmp_path / "netrc").write_text("machine hub login me password hunter2: 3\n")
    Path("strange.yaml").write_text(f"extends: ['{tmp_path}/netrc']\n")
    with pytest.raises(ConfigError, match="is no .yaml file") as refusal:
        compose("strange.yaml")
    assert "hunter2" not in str(refusal.value) and not Path("mark").exists()


def test_an_interpolated_class_path_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(MARK + GOOD)
    sys.path.append(str(tmp_path))
    with pytest.raises(ConfigError, match="--trust stranger"):
        checked("run: {directory: stranger}\n" + callback("'${run.directory}.Good'"))
    assert not Path("mark").exists()


@pytest.mark.parametrize("inside", [True, False])
def test_the_sources_of_a_run_folder_are_shown_and_not_run(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its config.yaml is run as an experiment, and where the run folder is the current one."""
    run = tmp_path / "theirs" / "version_0"
    for folder in (run / "plugins", run / "checkpoints"):
        folder.mkdir(parents=True)
    (run / "plugins" / "mine.py").write_text(MARK + GOOD)
    (run / "beside.py").write_text(MARK + GOOD)
    config = run / "config.yaml"
    checkpoint = run / "checkpoints" / "step-00000001.ckpt"
    if inside:
        monkeypatch.chdir(run)
    for class_path, message in [
        ("mine.Good", "The run has kept its source.*open.*--trust mine"),
        ("plugins.mine.Good", "plugins"),
        ("beside.Good", "beside"),
    ]:
        config.write_text(f"extends: [quickstart.yaml]\n{callback(class_path)}\n")
        for origins in (origins_of(experiment=config), origins_of(checkpoint=checkpoint)):
            with pytest.raises(ConfigError, match=f"(?s){message}"):
                check(compose(config), origins)
    assert not (run / "mark").exists() and not Path("mark").exists()
    config.write_text(f"extends: [quickstart.yaml]\n{callback('mine.Good')}\n")
    check(compose(config), origins_of(experiment=config, trusted=("mine",)))
    assert Path("mark").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../up", "\x1b[31mred", "two\nlines"])
def test_the_name_of_a_run_is_plain(name: str) -> None:
    with pytest.raises(ConfigError, match="run.name: expected the plain name of a folder"):
        checked(yaml.safe_dump({"run": {"name": name}}))


def test_yaml_that_would_fill_memory_is_refused() -> None:
    rows = "".join(f"  x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 10)}]\n" for level in range(1, 9))
    for text in (
        f"stages:\n  x0: &x0 [1]\n{rows}",
        "model: " + "[" * 100_000,
        "model: " + "{a: " * 5_000,
        "# " + "x" * 2**20,
        "model: {init_args: {start: " + "${oc.decode:" * 2_000 + "1" + "}" * 2_000 + "}}",
    ):
        with pytest.raises(ConfigError):
            checked(text)


def test_a_message_holds_nothing_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    Path("strange.yaml").write_text('"\\e]0;owned\\a": 3\n')
    assert main(["run", "strange.yaml"]) == 2
    message = capsys.readouterr().err
    assert "owned" in message and "\x1b" not in message and "\a" not in message


# ------------------------------------------------------------------ secrets

SECRET = "hunter2-of-the-environment"


def takes(name: str) -> str:
    return f"data: {{init_args: {{root: '{name}'}}}}"


@pytest.mark.parametrize(
    "expression",
    [
        "${oc.env:HF_TOKEN}",
        "http://host/${oc.env:HF_TOKEN}",
        "${oc.env:${oc.decode:HF_TOKEN}}",
        "${oc.env:HF_${run.directory}}",
        "${oc.decode:${oc.env:HF_TOKEN}}",
        "${oc.env:HF_TOKEN,none}",
    ],
)
def test_a_secret_of_the_environment_needs_trust(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    text = f"run: {{directory: TOKEN}}\n{takes(expression)}"
    with pytest.raises(ConfigError, match="data.init_args.root: .*--trust env:HF_TOKEN") as refusal:
        checked(text)
    assert SECRET not in str(refusal.value)
    secrets.trust_names(["env:HF_TOKEN"])
    plan = checked(text)
    assert SECRET in str(plan.data.arguments) and SECRET not in str(plan.config)
    assert "${oc.env:HF_TOKEN}" in plan.config["data"]["init_args"]["root"]


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("OPENAI_API_KEY", "x", True),
        ("db_password", "x", True),
        ("DB_PASS", "x", True),
        ("GOOGLE_APPLICATION_CREDENTIALS", "x", True),
        ("GITHUB_PAT", "x", True),
        ("PROXY", "http://me:word@proxy:80", True),
        ("PWD", "/home", False),
        ("DATA", "s3://bucket/data", False),
        ("SLURM_JOB_ID", "3", False),
    ],
)
def test_what_looks_like_a_secret(name: str, value: str, secret: bool) -> None:
    assert secrets.is_secret(name, value) is secret


@pytest.mark.parametrize(
    "data",
    [
        "{root: x, storage_options: {secret: hunter2}}",
        "{root: x, storage_options: {client_kwargs: {aws_secret_access_key: hunter2}}}",
        "{root: x, storage_options: {token: ya29.hunter2}}",
    ],
)
def test_a_secret_that_stands_in_an_experiment_is_refused(data: str) -> None:
    with pytest.raises(ConfigError, match=r"storage_options\..*write \$\{oc.env:NAME\}") as refusal:
        checked(f"data: {{class_path: t2ikit.data.DataModule, init_args: {data}}}")
    assert "hunter2" not in str(refusal.value)
    checked("data: {class_path: t2ikit.data.DataModule, init_args: {root: x, storage_options: {token: anon}}}")


@pytest.mark.long
def test_a_trusted_secret_is_written_nowhere() -> None:
    """Every file of a run and of its resume, and what they print, hold the expression."""
    Path("mine.py").write_text(
        "import os\nfrom lightning.pytorch import Callback\nfrom lightning.pytorch.loggers import CSVLogger\n"
        "class Sender(Callback):\n    def __init__(self, key: str):\n        self.key = key\n"
        "    def on_fit_start(self, *_):\n        assert self.key == 'Bearer ' + os.environ['MY_API_KEY']\n"
        "class Log(CSVLogger):\n    def __init__(self, save_dir: str, key: str):\n"
        "        super().__init__(save_dir)\n        assert key == os.environ['MY_API_KEY']\n"
    )
    Path("tiny.yaml").write_text(tiny.EXPERIMENT)
    Path("mine.yaml").write_text(
        "extends: [tiny.yaml]\n"
        "callbacks:\n  val: null\n  geneval: null\n  table: null\n"
        "  sender: {class_path: mine.Sender, init_args: {key: 'Bearer ${oc.env:MY_API_KEY}'}}\n"
        "loggers: {mine: {class_path: mine.Log, init_args: {key: '${oc.env:MY_API_KEY}'}}}\n"
        "trainer: {max_steps: 1, accelerator: cpu, devices: 1}\n"
    )
    environment = {**os.environ, "MY_API_KEY": SECRET, "CUDA_VISIBLE_DEVICES": ""}
    trusting = ["--trust", "env:MY_API_KEY"]
    for words, status in ([], 2), (trusting, 0), ([*trusting, "--resume", "last", "--trainer.max_steps", "2"], 0):
        command = [sys.executable, "-m", "t2ikit", "run", "mine.yaml", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
        assert done.returncode == status, done.stderr
        assert SECRET not in done.stdout + done.stderr
    files = [Path(folder) / name for folder, _, names in os.walk("runs") for name in names]
    assert {"config.yaml", "environment.yaml", "step-00000002.ckpt"} <= {file.name for file in files}
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    assert "${oc.env:MY_API_KEY}" in next(file for file in files if file.name == "config.yaml").read_text()
