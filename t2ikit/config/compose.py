"""An experiment is composed once: parents -> file -> command line -> interpolation -> one plain dictionary.

Nothing here imports torch or Lightning; what the keys mean is checked in ``t2ikit.run.experiment``. Longer than other
files, since files, stages, overrides and interpolation are one way.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from t2ikit.config.expansion import bounded
from t2ikit.config.secrets import Untrusted, variables
from t2ikit.config.values import read_value, with_home

_TEXT_KEYS = ("run.name", "run.directory")
TOP_KEYS = ("extends", "seed_everything", "model", "data", "trainer", "callbacks", "loggers", "stages", "sweep", "run")
_OF_THE_FILE = ("stages.", "sweep.")
_LONGEST_KEY = 60  # characters of it in a message
MOST_BYTES = 2**20
"""Of an experiment file."""
RUN_KEYS = ("directory", "name")
SUFFIXES = (".yaml", ".yml")
"""Of the files of experiments."""
CLASS_KEYS = ("class_path", "init_args")
LIBRARIES = ("t2ikit", "lightning", "torch", "torchmetrics", "torchvision", "timm", "diffusers", "transformers")
"""Top-level packages whose classes every experiment may name."""
INHERITED = "inherited"
"""Key of the arguments of a model's former class: the new one takes those of them that it knows."""
# The parent of every experiment.
DEFAULTS: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"class_path": "t2ikit.module.TextToImage"},
    "loggers": {
        "tensorboard": {"class_path": "t2ikit.run.loggers.TensorBoard"},
        "csv": {"class_path": "t2ikit.callbacks.MetricsCSV"},
    },
    "run": {"directory": "runs"},
}


class ConfigError(ValueError):
    """A mistake of the user: the message names the key and what to change. Ends a command with status 2."""


_OPTIONS_OF_A_RUN = ["resume", "fork", "stage", "allow", "trust", "print_config", "debug", "help"]


@dataclass(frozen=True)
class Override:
    """``--key value`` of the command line; :func:`~t2ikit.config.values.read_value` says what the value means."""

    key: str
    text: str

    @property
    def value(self) -> Any:
        """``3`` an int, ``1e-3`` a float, ``[1, 2]`` a list, ``null`` None, anything else text."""
        value = read_value(self.text)
        return value if isinstance(value, str) or self.key not in _TEXT_KEYS else self.text


def compose(
    path: str | Path,
    overrides: Sequence[Override] = (),
    stage: str | None = None,
    overlays: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The resolved experiment: every parent merged in order, then the file, the overrides, and interpolation, once.

    Args:
        path: the experiment file, or the name of one; see :func:`find_experiment`.
        overrides: from left to right; a key below a class node reaches its ``init_args`` (``data.root``).
        stage: name of one of its ``stages``, whose overlay comes over the file and below the overrides.
        overlays: further ones, of a cell of its sweep, in their order.

    Returns:
        Plain dictionaries and lists with the keys of ``TOP_KEYS`` except ``extends``, ``stages`` and ``sweep``; dropped
        callbacks and loggers are gone.

    Raises:
        ConfigError: a missing file, a circle, broken YAML, an unknown top-level key or stage, an interpolation of a
            missing key.
    """
    config, others = _read_whole(path, overrides)
    _check_dropped(config, others)
    stages = config.pop("stages", None) or {}
    config.pop("sweep", None)
    if stage is not None:
        if stage not in stages:
            raise ConfigError(f"--stage {stage}: {path} has no such stage{nearest(stage, stages)}")
        config = _over(config, stages[stage] or {})
    for overlay in overlays:
        config = _over(config, overlay)
    return changed(config, others)


def stages_of(path: str | Path, overrides: Sequence[Override] = ()) -> dict[str, dict[str, Any]]:
    """The stages of an experiment, in their order: overlays by name; empty for an experiment without stages.

    Raises:
        ConfigError: as :func:`compose`; a stage that is no mapping, or whose name is no plain name of a folder.
    """
    stages = _read_whole(path, overrides)[0].get("stages") or {}
    for name, overlay in stages.items():
        if not str(name).isidentifier() or name in ("checkpoints", "samples"):
            raise ConfigError(f"{path}: stages.{name}: the name of a stage is letters, digits and underscores")
        check_overlay(overlay, f"{path}: stages.{name}")
    return {str(name): overlay or {} for name, overlay in stages.items()}


def check_overlay(overlay: Any, where: str) -> None:
    """Refuses an overlay of a stage or a cell that is no part of an experiment."""
    if not isinstance(overlay or {}, dict) or {"extends", "stages", "sweep", "run"} & set(overlay or {}):
        raise ConfigError(f"{where}: expected keys of an experiment but extends, stages, sweep and run")
    _check_shape(overlay or {}, where)


def part_of(path: str | Path, key: str, overrides: Sequence[Override] = ()) -> Any:
    """``stages`` or ``sweep`` of an experiment as its files say it; None without."""
    return _read_whole(path, overrides)[0].get(key)


def _read_whole(path: str | Path, overrides: Sequence[Override]) -> tuple[dict[str, Any], list[Override]]:
    """The experiment with stages and sweep, to which the overrides of these are applied; and the other overrides."""
    path = find_experiment(path)
    config = _over(DEFAULTS, _load(path, ()))
    config["run"].setdefault("name", path.stem)
    for override in overrides:
        if override.key.startswith(_OF_THE_FILE):
            config = _apply(config, override)
    return config, [override for override in overrides if not override.key.startswith(_OF_THE_FILE)]


def changed(config: dict[str, Any], overrides: Sequence[Override] = ()) -> dict[str, Any]:
    """An experiment with overrides over it, resolved; see :func:`compose`."""
    for override in overrides:
        config = _keep_arguments(config, _apply(config, override))
    _check_shape(config, "the experiment")
    for group in ("callbacks", "loggers"):
        config[group] = {name: node for name, node in (config.get(group) or {}).items() if node is not None}
    try:
        return {key: with_home(value) for key, value in _interpolate(config).items()}
    except ValueError as error:
        raise ConfigError(str(error)) from error


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


def merge(base: Any, new: Any) -> Any:
    """``new`` over ``base``: mappings key by key, anything else replaced.

    A changed ``class_path`` drops the old ``init_args``; a class path given as a string is ``{class_path: ...}``.
    """
    if isinstance(base, dict) and "class_path" in base and isinstance(new, str) and "${" not in new:
        new = {"class_path": new}
    if not (isinstance(base, dict) and isinstance(new, dict)):
        return copy.deepcopy(new)
    merged = copy.deepcopy(base)
    if "class_path" in base and "class_path" in new and not _same_class(base["class_path"], new["class_path"]):
        merged.pop("init_args", None)
    for key, value in new.items():
        merged[key] = merge(merged.get(key), value)
    return merged


def _over(base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """One experiment over another."""
    return _keep_arguments(base, merge(base, new))


def _keep_arguments(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Keeps the arguments of a model whose class has changed beside it: the new class takes those that it knows."""
    old, new = (config.get("model") for config in (before, after))
    if not isinstance(old, dict) or not isinstance(new, dict) or old.get("class_path") in (None, new.get("class_path")):
        return after
    if "init_args" in old and not _same_class(old["class_path"], new.get("class_path")):
        kept = merge(old.get(INHERITED) or {}, old["init_args"])
        return {**after, "model": {**new, INHERITED: merge(kept, new.get(INHERITED) or {})}}
    return after


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them where they are few."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; nearest known: '{close[0]}'"
    return f"; known: {', '.join(names)}" if 0 < len(names) <= 20 else ""


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


# ------------------------------------------------------------------ files


def _load(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
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
    _check_shape(content, str(path))
    config: dict[str, Any] = {}
    for parent in parents:
        if not parent.endswith((".yaml", ".yml")):  # the messages about any other file would show what it holds
            raise ConfigError(f"{path}: extends: {parent!r} is no .yaml file")
        config = _over(config, _load(_find_parent(parent, path), (*children, resolved)))
    return _over(config, content)


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
        raise ConfigError(f"{path}{where}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {_first_line(error)}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: an experiment is a mapping of {', '.join(TOP_KEYS)}")
    return {str(key): value for key, value in loaded.items()}


@lru_cache(maxsize=64)
def _parsed(content: bytes) -> Any:
    """Kept, since every cell of a sweep and every card of a list has the same parents."""
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(content.decode())))


def _check_shape(config: dict[str, Any], where: str) -> None:
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
        if not isinstance(config.get(key) or {}, dict):
            raise ConfigError(f"{where}: {key} is a mapping, got {config[key]!r}")
    for key in config.get("run") or {}:
        if key not in RUN_KEYS:
            raise ConfigError(f"{where}: unknown key 'run.{key}'{nearest(key, RUN_KEYS)}")


def _same_class(first: Any, second: Any) -> bool:
    """Whether two class paths mean one class: ``t2ikit.denoisers.CADI`` is also found in the module that defines it.

    A module that is neither of a library nor imported already is left alone: importing it would run its code.
    """
    if first == second or not (isinstance(first, str) and isinstance(second, str)):
        return bool(first == second)
    paths = [path.rpartition(".") for path in (first, second)]
    package = paths[0][0].partition(".")[0]
    if paths[0][2] != paths[1][2] or paths[1][0].partition(".")[0] != package:
        return False
    load = importlib.import_module if package in LIBRARIES else sys.modules.__getitem__
    try:
        classes = [getattr(load(module), name) for module, _, name in paths]
    except Exception:  # find_class reports why the import fails
        return False
    return classes[0] is classes[1]


# ------------------------------------------------------------------ overrides


def _apply(config: dict[str, Any], override: Override) -> dict[str, Any]:
    check_option(override.key)
    return set_below(config, override.key.split("."), override, ())


def check_option(key: str) -> None:
    """Refuses ``--key`` that is no key of an experiment, with the nearest option of a run."""
    names = key.split(".")
    if names[0] not in TOP_KEYS or names[0] == "extends" or "" in names:
        options = [key for key in TOP_KEYS if key != "extends"] + _OPTIONS_OF_A_RUN
        raise ConfigError(f"--{key}: unknown option '{names[0]}'{nearest(names[0], options)}")


def _check_dropped(config: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Refuses ``--callbacks.NAME null`` where file, stages and sweep name no such callback; ``loggers`` likewise."""
    keys = "\n".join([*(key for key, _ in flatten(config)), *(entry.key for entry in overrides if entry.value)])
    for override in overrides:
        group, _, name = override.key.partition(".")
        if group not in ("callbacks", "loggers") or not name or "." in name or override.value is not None:
            continue
        names = set(re.findall(rf"\b{group}\.([^.\s]+)", keys))
        if name not in names:
            kind = group.removesuffix("s")
            raise ConfigError(f"--{override.key} null: the experiment has no {kind} '{name}'{nearest(name, names)}")


def set_below(node: Any, names: Sequence[str], override: Override, path: tuple[str, ...] = ()) -> Any:
    """A copy of ``node`` with the override's value at ``names`` below it."""
    name, rest = names[0], names[1:]
    if isinstance(node, list):
        if not (name.isdigit() and int(name) < len(node)):
            raise ConfigError(
                f"--{override.key}: {'.'.join(path)} is a list of {len(node)}, '{name}' is no index of it"
            )
        index = int(name)
        below = set_below(node[index], rest, override, (*path, name)) if rest else merge(node[index], override.value)
        return [*node[:index], below, *node[index + 1 :]]
    if isinstance(node, str) and "." in node:
        node = {"class_path": node}
    if not isinstance(node, dict):
        node = {}
    if _is_class(node, path) and name not in CLASS_KEYS:
        names = ["init_args", *names]
        name, rest = names[0], names[1:]
    if rest:
        return {**node, name: set_below(node.get(name), rest, override, (*path, name))}
    return merge(node, {name: override.value})


def _is_class(node: dict[str, Any], path: tuple[str, ...]) -> bool:
    path = path[2:] if path[:1] == ("stages",) else path
    always = path in (("model",), ("data",)) or (len(path) == 2 and path[0] in ("callbacks", "loggers"))
    return always or "class_path" in node or "init_args" in node


# ------------------------------------------------------------------ interpolation


def _interpolate(config: dict[str, Any]) -> dict[str, Any]:
    keys = [key for key, _ in flatten(config)]
    try:
        with variables(), bounded():
            resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: must be set (it is '???'): --{error.full_key} VALUE") from None
    except InterpolationKeyError as error:
        wanted = str(error.msg).partition("'")[2].partition("'")[0]
        raise ConfigError(f"{error.full_key}: ${{{wanted}}} names no key{nearest(wanted, keys)}") from None
    except InterpolationResolutionError as error:
        if isinstance(error.__cause__ or error.__context__, Untrusted):
            raise ConfigError(f"{error.full_key}: {error.__cause__ or error.__context__}") from None
        raise ConfigError(f"{error.full_key}: {_first_line(error)}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'the experiment'}: {_first_line(error)}") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
