"""Overrides from a command line, and from values of Python: what arrives is what was given."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import yaml

from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.merging import Override
from t2ikit.config.overrides import overrides_of, take_overrides
from t2ikit.config.values import to_yaml
from t2ikit.testing.__main__ import main


class Kind(Enum):
    CUTMIX = "cutmix"


@dataclass
class Options:
    size: int = 3


TEXTS = [
    "x\U0001f600",
    "\u00e9",
    "null",
    "3",
    "0100",
    "a #b: c",
    "",
    " x ",
    'say "no" \\',
    "two\nlines\ttab",
    "\x00\x07\x7f",
]
TEXTS += ["\x85\u2028\ufeff\ufffe", "\U0010ffff", "[x", "{", "'", "--x", "~", "/a/b"]


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        *((text, text) for text in TEXTS),
        *(([text], [text]) for text in TEXTS),
        *(([{text: text}], [{text: text}]) for text in TEXTS),
        *((number, number) for number in (0, -3, 10**400, 0.1, 1e-30, 1e22, -0.5, 5e-324)),
        (None, None),
        (True, True),
        ([False, None, [1, "a"], {"b": {"c": 1.5}}], [False, None, [1, "a"], {"b": {"c": 1.5}}]),
        ([{3: "x"}], [{3: "x"}]),
        ((1, (2, 3)), [1, [2, 3]]),
        (Path("/a/b c"), "/a/b c"),
        (Kind.CUTMIX, "cutmix"),
        (np.int64(3), 3),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        ([MappingProxyType({"a": Path("b")})], [{"a": "b"}]),
        ([], []),
        ({}, {}),
    ],
)
def test_a_value_of_python_arrives(given: Any, arrives: Any) -> None:
    (override,) = overrides_of({"model.start": given})
    assert override.key == "model.start" and override.value == arrives and type(override.value) is type(arrives)
    assert yaml.safe_load(to_yaml({"x": override.value}))["x"] == arrives


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (float("nan"), r"a\.b: expected a finite number, got nan"),
        ([1.0, float("inf")], r"a\.b\.1: expected a finite number, got inf"),
        ({"c": {1, 2}}, r"a\.b\.c: an experiment cannot hold a set: give a list"),
        (Options(), r"a\.b: an experiment cannot hold a Options: .*class_path"),
        (Options, r"a\.b: an experiment cannot hold a type: .*class_path"),
        (np.zeros(3), r"a\.b: an experiment cannot hold a ndarray: give numbers"),
        (b"x", r"a\.b: an experiment cannot hold a bytes"),
        ([{None: 1}], r"a\.b\.0: None is no key"),
        ("half \ud83d", r"a\.b: half a character in 'half \\ud83d'"),
    ],
)
def test_a_value_that_cannot_be_written_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overrides_of({"a": {"b": given}})


def test_mappings_are_nested_or_dotted(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("run: {directory: here}\n")
    options = {"trainer": {"max_steps": 3, "devices": (0, 1)}, "run.name": "x\U0001f600", "run.directory": tmp_path}
    config = compose(tmp_path / "e.yaml", overrides_of(options))
    assert config["trainer"] == {"max_steps": 3, "devices": [0, 1]}
    assert config["run"] == {"directory": str(tmp_path), "name": "x\U0001f600"}
    assert overrides_of({}) == ()
    with pytest.raises(ConfigError, match="unknown option ''"):
        compose(tmp_path / "e.yaml", overrides_of({"": 3}))


def test_a_command_line_is_split() -> None:
    words = ["file.yaml", "--a.b", "3", "--jobs", "2", "--c.d=x=y", "--", "-v"]
    rest, overrides = take_overrides(words)
    assert rest == ["file.yaml", "--jobs", "2", "--", "-v"]
    assert overrides == [Override("a.b", "3"), Override("c.d", "x=y")]
    with pytest.raises(ConfigError, match="--trainer.max_steps needs a value: --trainer.max_steps VALUE"):
        take_overrides(["--trainer.max_steps", "--data.root", "x"])
    with pytest.raises(ConfigError, match="unknown option 'trainr'; nearest known: 'trainer'"):
        take_overrides(["--trainr.max_steps"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--width"], "--width needs a value: --width VALUE"),
        (["--width", "--depth", "3"], "--width needs a value"),
        (["width", "3"], "'width' belongs to no option: write --KEY VALUE"),
    ],
)
def test_the_tests_of_a_class_take_its_own_options(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["t2ikit.denoisers.DiTI", *words]) == 2
    assert message in capsys.readouterr().err
