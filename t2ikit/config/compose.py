"""An experiment is composed once: parents -> file -> command line -> interpolation -> one plain dictionary.

Nothing here imports torch or Lightning; what the keys mean is checked in ``t2ikit.run.experiment``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from t2ikit.config.errors import ConfigError, first_line, nearest
from t2ikit.config.expansion import bounded
from t2ikit.config.files import TOP_KEYS, check_shape, find_experiment, load
from t2ikit.config.merging import Override, flatten, keep_arguments, over, set_below
from t2ikit.config.secrets import Untrusted, variables
from t2ikit.config.values import with_home

_OF_THE_FILE = ("stages.", "sweep.")
_OPTIONS_OF_A_RUN = ["resume", "fork", "stage", "allow", "trust", "print_config", "debug", "help"]
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
        config = over(config, stages[stage] or {})
    for overlay in overlays:
        config = over(config, overlay)
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
    if not isinstance(overlay, (dict, NoneType)) or {"extends", "stages", "sweep", "run"} & set(overlay or {}):
        raise ConfigError(f"{where}: expected keys of an experiment but extends, stages, sweep and run")
    check_shape(overlay or {}, where)


def part_of(path: str | Path, key: str, overrides: Sequence[Override] = ()) -> Any:
    """``stages`` or ``sweep`` of an experiment as its files say it; None without."""
    return _read_whole(path, overrides)[0].get(key)


def _read_whole(path: str | Path, overrides: Sequence[Override]) -> tuple[dict[str, Any], list[Override]]:
    """The experiment with stages and sweep, to which the overrides of these are applied; and the other overrides."""
    path = find_experiment(path)
    config = over(DEFAULTS, load(path, ()))
    config["run"] = {**DEFAULTS["run"], **(config["run"] or {})}
    config["run"].setdefault("name", path.stem)
    for override in overrides:
        if override.key.startswith(_OF_THE_FILE):
            config = _apply(config, override)
    return config, [override for override in overrides if not override.key.startswith(_OF_THE_FILE)]


def changed(config: dict[str, Any], overrides: Sequence[Override] = ()) -> dict[str, Any]:
    """An experiment with overrides over it, resolved; see :func:`compose`."""
    for override in overrides:
        config = keep_arguments(config, _apply(config, override))
    check_shape(config, "the experiment")
    if config.get("run", {}) is None:
        raise ConfigError("run: expected {directory: ..., name: ...}, got null: leave it out")
    for group in ("callbacks", "loggers"):
        config[group] = {name: node for name, node in (config.get(group) or {}).items() if node is not None}
    try:
        return {key: with_home(value) for key, value in _interpolate(config).items()}
    except ValueError as error:
        raise ConfigError(str(error)) from error


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
        raise ConfigError(f"{error.full_key}: {first_line(error)}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'the experiment'}: {first_line(error)}") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
