"""The files of experiments: found by name, read over their parents, checked at the top level."""

from __future__ import annotations

import copy
import io
import os
import re
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2ikit.config.errors import ConfigError, first_line, nearest
from t2ikit.config.merging import over
from t2ikit.config.values import Ambiguous, check_file_values

TOP_KEYS = ("extends", "seed_everything", "model", "data", "trainer", "callbacks", "loggers", "stages", "sweep", "run")
RUN_KEYS = ("directory", "name")
SUFFIXES = (".yaml", ".yml")
"""Of the files of experiments."""
MOST_BYTES = 2**20
"""Of an experiment file."""
_LONGEST_KEY = 60  # characters of it in a message


def find_experiment(name: str | Path) -> Path:
    """The file of an experiment, for every command that takes one.

    Args:
        name: a path, or a name such as ``quickstart`` or ``synthreal/rgb``: NAME.yaml of the current folder where there
            is one, else the experiment of this name that comes with the package.

    Raises:
        ConfigError: there is none; with the nearest known one.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in SUFFIXES:
        plain = path.with_suffix("").as_posix().removeprefix("experiments/")
        if (shipped_experiments() / f"{plain}.yaml").is_file():
            raise ConfigError(f"no experiment file {path}; the one that comes with the kit is called {plain}")
        shipped = Path(os.path.relpath(shipped_experiments()))
        if ".." in shipped.parts:
            shipped = shipped.resolve()
        known = [folder / file for folder in (path.parent, shipped) for file in _known_files(folder)]
        known = [file for file in known if file.parent.name != "base"]
        raise ConfigError(f"no experiment file {path}{nearest(str(path), map(str, known))}")
    files = (folder / f"{name}{suffix}" for folder in (Path(), shipped_experiments()) for suffix in SUFFIXES)
    named = next(filter(Path.is_file, files), None)
    if named is not None:
        return named
    names = [str(Path(file).with_suffix("")) for file in _known_files(Path()) if not file.startswith("base/")]
    close = nearest(str(name), [*names, *shipped_names()])
    raise ConfigError(f"no experiment {name}{close}; `t2ikit experiments` lists those that come with the kit")


def shipped_names() -> list[str]:
    """The names of the experiments that come with the package, such as ``quickstart`` and ``synthreal/rgb``."""
    folder = shipped_experiments()
    files = (file.relative_to(folder) for file in [*folder.glob("*.yaml"), *folder.glob("*/*.yaml")])
    return sorted(file.with_suffix("").as_posix() for file in files if file.parent.name != "base")


def shipped_experiments() -> Path:
    """The folder of the experiments that come with the package: inside an installed one, beside it in a clone."""
    package = Path(__file__).parent.parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def load(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """One file over its parents; ``children`` are the files that led here."""
    resolved = path.resolve()
    if resolved in children:
        circle = " -> ".join(child.name for child in (*children[children.index(resolved) :], resolved))
        raise ConfigError(f"extends goes in a circle: {circle}")
    content = _read(path)
    parents = content.pop("extends", None) or []
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends is a list of files, got {parents!r}")
    check_shape(content, str(path))
    config: dict[str, Any] = {}
    for parent in parents:
        if not parent.endswith((".yaml", ".yml")):  # the messages about any other file would show what it holds
            raise ConfigError(f"{path}: extends: {parent!r} is no .yaml file")
        config = over(config, load(_find_parent(parent, path), (*children, resolved)))
    return over(config, content)


def _find_parent(parent: str, path: Path) -> Path:
    for folder in (path.parent, shipped_experiments()):
        if (folder / parent).is_file():
            return folder / parent
    known = {*_known_files(path.parent), *_known_files(shipped_experiments())}
    raise ConfigError(
        f"{path}: extends: no file '{parent}' beside it or among the shipped experiments{nearest(parent, known)}"
    )


def _known_files(folder: Path) -> list[str]:
    """Experiment files of a folder and of its ``base/``, relative to it: YAML files with one of our top keys."""
    if not folder.is_dir():
        return []
    files = [*folder.glob("*.yaml"), *folder.glob("*.yml"), *folder.glob("base/*.yaml")]
    top_key = re.compile(rf"^({'|'.join(TOP_KEYS)})\s*:".encode(), re.MULTILINE)
    files = [file for file in files if file.is_file() and top_key.search(file.read_bytes())]
    return [str(file.relative_to(folder) if folder != Path(".") else file) for file in files]


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: more than {MOST_BYTES:,} bytes: this is no experiment")
        loaded = copy.deepcopy(_parsed(path.read_bytes()))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        kind = "" if isinstance(error, Ambiguous) else "not YAML: "
        raise ConfigError(f"{path}{where}: {kind}{error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {first_line(error)}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: an experiment is a mapping of {', '.join(TOP_KEYS)}")
    return {str(key): value for key, value in loaded.items()}


@lru_cache(maxsize=64)
def _parsed(content: bytes) -> Any:
    """Kept, since every cell of a sweep and every card of a list has the same parents."""
    text = content.decode()
    check_file_values(text)
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))


def check_shape(config: dict[str, Any], where: str) -> None:
    """Checks the top level: known keys, and mappings where mappings are expected."""
    for key in config:
        if key not in TOP_KEYS:
            shown = key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}..."
            raise ConfigError(f"{where}: unknown key '{shown}'{nearest(key, TOP_KEYS)}")
    for key in ("model", "data"):
        if not isinstance(config.get(key, {}), (dict, str)):
            raise ConfigError(f"{where}: {key} is {{class_path: ..., init_args: ...}}, got {config[key]!r}")
    if isinstance(config.get("callbacks"), list):
        raise ConfigError(f"{where}: callbacks is a mapping of names, {{ema: {{class_path: ...}}, ...}}, not a list")
    for key in ("trainer", "callbacks", "loggers", "stages", "sweep", "run"):
        if not isinstance(config.get(key), (dict, NoneType)):
            raise ConfigError(f"{where}: {key} is a mapping, got {config[key]!r}")
    for key in config.get("run") or {}:
        if key not in RUN_KEYS:
            raise ConfigError(f"{where}: unknown key 'run.{key}'{nearest(key, RUN_KEYS)}")
