"""What values mean: plain numbers, whole text, paths with a home, and files that read back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from t2ikit.commands.run import read_arguments
from t2ikit.config.class_nodes import parse
from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import Override
from t2ikit.config.origins import NONE_BUT_KNOWN
from t2ikit.config.values import to_yaml
from t2ikit.diffusion import Guidance
from t2ikit.pretrained import cache_folder


class Options:
    def __init__(
        self,
        text: str = "",
        maybe: str | None = None,
        whole: int = 0,
        real: float = 0.0,
        many: list[int] | None = None,
        words: dict[str, Any] | None = None,
        number_or_class: float | Guidance = 0.0,
    ) -> None: ...


def value(key: str, text: str) -> Any:
    return parse(Options, {key: Override(key, text).value}, "it", NONE_BUT_KNOWN).arguments.it[key]


TEXTS = ["My Photos #2", "0100", "12:30", "2026", "1_000", "yes", "a: b", "- x", "nan", "[x", "@a", "?", "%d"]


@pytest.mark.parametrize("key", ["text", "maybe"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_whole(key: str, text: str) -> None:
    assert value(key, text) == text


@pytest.mark.parametrize("text", ["0100", "12:30", "1_000", "0x10", "+5", "1:0:0"])
@pytest.mark.parametrize("key", ["whole", "real"])
def test_a_number_that_is_no_plain_one_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"it.{key}: "):
        value(key, text)


@pytest.mark.parametrize("text", [".nan", "nan", "NaN", ".inf", "-.inf", "inf", "-inf", "Infinity", "1e999"])
@pytest.mark.parametrize("key", ["real", "number_or_class"])
def test_a_number_that_is_not_finite_is_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"it.{key}: expected a finite number, got"):
        value(key, text)


def test_a_whole_number_may_have_many_digits() -> None:
    assert value("whole", "1" + 400 * "0") == 10**400


@pytest.mark.parametrize(("text", "number"), [("3", 3.0), ("-1", -1.0), ("1e-4", 1e-4), ("5.", 5.0), ("2E3", 2000.0)])
def test_plain_numbers_are_numbers(text: str, number: float) -> None:
    assert value("real", text) == number


def test_lists_hold_plain_numbers_too() -> None:
    assert value("many", "[1, 20]") == [1, 20]
    assert value("words", "{a: 1e-3, b: My Photos, c: }") == {"a": 1e-3, "b": "My Photos", "c": None}
    with pytest.raises(ConfigError, match=r"it.many"):
        value("many", "[1, 0100]")


ODD = [
    ("0100", "64"),
    ("010", "8"),
    ("12:30", "750"),
    ("1_000", "1000"),
    ("+5", "5"),
    ("0x10", "16"),
    ("0b11", "3"),
    ("+1.5", "1.5"),
    ("1_0.5", "10.5"),
    ("1:30.5", "90.5"),
    ("+1e3", "1000.0"),
    ("1_0e3", "10000.0"),
    ("-.5", "-0.5"),
    (".5e3", "500.0"),
    ("yes", "true"),
    ("No", "false"),
    ("on", "true"),
    ("OFF", "false"),
]


@pytest.mark.parametrize(("text", "number"), ODD)
@pytest.mark.parametrize("line", ["  max_steps: {}", "  devices: [1, {}]", "  {}: 3", "  a: {{b: {}}}"])
def test_a_value_of_a_file_that_may_be_two_things_is_refused(tmp_path: Path, line: str, text: str, number: str) -> None:
    (tmp_path / "e.yaml").write_text(f"trainer:\n  x: '{text}'\n{line.format(text)}\n")
    with pytest.raises(ConfigError) as refusal:
        compose(tmp_path / "e.yaml")
    assert f"e.yaml, line 3: {text} is {number} to some readers" in str(refusal.value)
    assert f"write {number}, or {text!r} in quotes" in str(refusal.value)
    (tmp_path / "e.yaml").write_text(f"trainer:\n{line.format(repr(text))}\n")
    assert text in str(compose(tmp_path / "e.yaml")["trainer"])
    (tmp_path / "e.yaml").write_text(f"trainer:\n  max_steps: {number}\n")
    assert compose(tmp_path / "e.yaml")["trainer"]["max_steps"] == Override("x", number).value


PLAIN = ["3", "-1", "1e-3", "2E3", "5.", ".5", "0.5", "1e999", "true", "False", "TRUE", "null", "NULL"]
PLAIN += ["1.2.3", "127.0.0.1", "2026-01-01", "a:b", "x_1", "1x", "-", "08", "y", "n", "1e", "e3", "0o17", "a+5"]


@pytest.mark.parametrize("text", PLAIN)
def test_a_plain_value_is_the_same_in_a_file_and_on_the_command_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "e.yaml").write_text(f"trainer: {{a: {text}}}")
    value = compose(tmp_path / "e.yaml")["trainer"]["a"]
    typed = Override("trainer.a", text).value
    assert value == typed and type(value) is type(typed)


@pytest.mark.parametrize("tag", ["!!int 3", "!!float x", "!!timestamp x", "!!binary x", "!!set {a}", "!mine x"])
def test_tags_of_yaml_are_refused(tmp_path: Path, tag: str) -> None:
    (tmp_path / "e.yaml").write_text(f"trainer:\n  a: {tag}\n")
    with pytest.raises(ConfigError, match=r"e\.yaml, line 2: !.*: write the value without its tag"):
        compose(tmp_path / "e.yaml")
    (tmp_path / "e.yaml").write_text("trainer: {a: !!str 0100}")
    assert compose(tmp_path / "e.yaml")["trainer"] == {"a": "0100"}


def test_a_number_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(f"trainer: {{a: {5000 * '1'}}}")
    with pytest.raises(ConfigError, match="cannot be read: .*digits"):
        compose(tmp_path / "e.yaml")
    assert Override("trainer.a", 5000 * "1").value == 5000 * "1"


@pytest.mark.parametrize("name", ["1e-4", "0100", "12:30", "2.50", "1_0", "yes", "null", "~", "a #2", "1.", "\u00e9"])
def test_text_is_the_same_after_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "e.yaml").write_text(to_yaml({"run": {"name": name}, "other": [name]}), encoding="utf-8")
    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "e.yaml")) == {"run": {"name": name}, "other": [name]}


def test_a_home_is_expanded_in_every_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "e.yaml").write_text("data: {init_args: {root: ~/photos, many: [~/a, b]}}\nrun: {directory: ~/runs}")
    config = compose(tmp_path / "e.yaml", [Override("model.start.checkpoint", "~/x.ckpt")])
    home = f"{tmp_path}/home"
    assert config["data"]["init_args"] == {"root": f"{home}/photos", "many": [f"{home}/a", "b"]}
    assert config["run"]["directory"] == f"{home}/runs"
    assert config["model"]["init_args"]["start"]["checkpoint"] == f"{home}/x.ckpt"
    for key in ("data.root", "run.directory"):
        with pytest.raises(ConfigError, match="'~nobody-here/x': this machine knows no user nobody-here"):
            compose(tmp_path / "e.yaml", [Override(key, "~nobody-here/x")])
    kept = compose(tmp_path / "e.yaml", [Override("model.note", "~30 % better/worse")])  # no path
    assert "~30 % better/worse" in str(kept["model"])


def test_a_user_without_a_home_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is started with the number of a user it does not know."""

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("T2IKIT_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    for path in ("~", "~/runs"):
        (tmp_path / "e.yaml").write_text(f"run: {{directory: '{path}'}}")
        with pytest.raises(ConfigError, match=f"'{path}': this user has no home on this machine; set HOME"):
            compose(tmp_path / "e.yaml")
    assert cache_folder() == Path("/.cache/t2ikit")
    with pytest.raises(ConfigError, match="write it in full"):
        read_arguments(["~/e.yaml"], "t2ikit run")
