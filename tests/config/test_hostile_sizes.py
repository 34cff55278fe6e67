"""Experiments of a few lines that stand for more than a machine holds."""

from __future__ import annotations

import string
from pathlib import Path

import pytest

from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.secrets import is_secret
from t2ikit.config.sweep import sweep_of


def written(folder: Path, lines: list[str]) -> Path:
    path = folder / "strange.yaml"
    path.write_text("extends: [quickstart.yaml]\nmodel:\n  init_args:\n    x:\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("first", ["x", "[1, 2]", "{k: 1}"])
@pytest.mark.parametrize("line", ["{name}: '{one}{one}'", "{name}: ['{one}', '{one}', '{one}']"])
def test_interpolations_that_double_are_refused(tmp_path: Path, first: str, line: str) -> None:
    lines = [f"      a: {first}"]
    for before, name in zip(string.ascii_lowercase, string.ascii_lowercase[1:], strict=False):
        lines.append("      " + line.format(name=name, one=f"${{model.init_args.x.{before}}}"))
    with pytest.raises(ConfigError, match="the interpolations of this experiment become more than"):
        compose(written(tmp_path, lines))


def test_a_long_text_is_not_repeated_without_end(tmp_path: Path) -> None:
    lines = ["      a: " + 400_000 * "x", "      b: '" + 20_000 * "${model.init_args.x.a}" + "'"]
    with pytest.raises(ConfigError, match="the interpolations of this experiment become more than"):
        compose(written(tmp_path, lines))


def test_interpolations_of_an_honest_experiment_are_resolved(tmp_path: Path) -> None:
    lines = ["      a: [1, 2]", "      b: ${model.init_args.x.a}", "      c: 'w${model.init_args.x.a.0}'"]
    x = compose(written(tmp_path, lines))["model"]["init_args"]["x"]
    assert x == {"a": [1, 2], "b": [1, 2], "c": "w1"}


def test_a_sweep_of_a_billion_cells_is_refused(tmp_path: Path) -> None:
    axes = "".join(f"        a{axis}: {{{', '.join(f'v{i}: null' for i in range(8))}}}\n" for axis in range(10))
    path = tmp_path / "strange.yaml"
    path.write_text(f"extends: [quickstart.yaml]\nsweep:\n  grids:\n    g:\n      axes:\n{axes}")
    with pytest.raises(ConfigError, match=r"sweep\.grids\.g: 1,073,741,824 cells; a grid has at most 10,000"):
        sweep_of(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSHPASS", "x"),
        ("AZURE_STORAGE_CONNECTION_STRING", "x"),
        ("GITHUB_OAUTH", "x"),
        ("AUTH_BEARER", "x"),
        ("HUB", "hf_" + 34 * "a"),
        ("GITHUB", "ghp_" + 36 * "a"),
        ("OPENAI", "sk-proj-" + 40 * "a"),
        ("AWS", "AKIA" + 16 * "A"),
        ("SSH", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("SIGNED", "https://a.blob.core.windows.net/x?sv=1&sig=abc"),
        ("STORE", "AccountName=a;AccountKey=b=="),
        ("SLACK", "https://hooks.slack.com/services/T0/B0/x"),
    ],
)
def test_more_secrets_are_known(name: str, value: str) -> None:
    assert is_secret(name, value)


@pytest.mark.parametrize(("name", "value"), [("HOME", "/root"), ("DATA", "s3://bucket/a"), ("SLURM_JOB_ID", "3")])
def test_plain_variables_need_no_trust(name: str, value: str) -> None:
    assert not is_secret(name, value)
