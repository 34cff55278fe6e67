"""The name of an evaluation's folder: its step or its pictures, and what the command line changes.

The order of options and where the data lie are no part of it, nor what the experiment says: of which pictures and which
experiment the scores in a folder are stands in ``asked.json``, and others are refused there.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from typing import Any

from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.merging import Override, flatten
from t2ikit.config.sweep import PLACE
from t2ikit.run.search import SEARCH, verifier_options, verifier_title

LONGEST = 180
"""Characters; file systems take 255 bytes."""

_PLAIN = re.compile(r"[\w.+-]{1,24}", re.ASCII)
_STRANGE = re.compile(r"[^\w.+-]", re.ASCII)
_PLACE = [f"data.init_args.{name}" for name in PLACE["data"]]


def evaluation_name(first: str, args: argparse.Namespace, config: dict[str, Any], plain: dict[str, Any]) -> str:
    """Such as ``step-00001320-steps-5-prompts.extended-false``.

    Args:
        first: the step, or the folder of the pictures.
        args: the command line.
        config: the experiment with its overrides.
        plain: the experiment without them.
    """
    name = "-".join([first, *_options(args), *_changes(args.snapshot, config, plain)])
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{_digest(name)}"


def _options(args: argparse.Namespace) -> list[str]:
    words: list[str] = []
    for name in ("weights", "method", "steps", "seed", "limit"):
        if getattr(args, name) is not None:
            words += [name, _word(getattr(args, name))]
    for name in SEARCH:
        if getattr(args, name) is not None:
            words += [name.replace("_", "-"), verifier_title(args) if name == "verifier" else str(getattr(args, name))]
            if name == "verifier" and (options := verifier_options(args)):
                words.append(_digest(json.dumps(options, sort_keys=True, default=str)))
    if args.guidance is not None:
        words += ["guidance", "sweep" if len(args.guidance) > 1 else f"{args.guidance[0]:g}"]
    return words


def _changes(snapshot: str, config: dict[str, Any], plain: dict[str, Any]) -> Iterator[str]:
    """What the overrides have changed: ``prompts.extended-false``; of a value that is no plain word its hash."""
    before, own = dict(_leaves(snapshot, plain)), f"callbacks.{snapshot}.init_args."
    for key, value in sorted(_leaves(snapshot, config)):
        if key not in _PLACE and (key not in before or before[key] != value):
            yield f"{_STRANGE.sub('_', key.removeprefix(own).replace('.init_args', ''))}-{_word(value)}"


def _leaves(snapshot: str, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that an evaluation takes from an experiment."""
    trainer = config.get("trainer") or {}
    taken = {
        "callbacks": {snapshot: (config.get("callbacks") or {}).get(snapshot)},
        "data": config.get("data"),
        "trainer": {"precision": trainer.get("precision")},
    }
    return flatten(taken)


def check_overrides(args: argparse.Namespace, composed: Callable[[Sequence[Override]], dict[str, Any]]) -> None:
    """Refuses an override of a callback that would change nothing of the evaluation.

    Args:
        args: the command line.
        composed: the experiment with some overrides.

    Raises:
        ConfigError: names the override.
    """
    known = composed(()).get("callbacks") or {}
    for override in args.overrides:
        group, _, rest = override.key.partition(".")
        name = rest.partition(".")[0]
        if group == "callbacks" and name not in known and name != args.snapshot:
            raise ConfigError(f"--{override.key}: the experiment has no callback {name}{nearest(name, known)}")
        if group == "callbacks" and name != args.snapshot and rest != name:
            without = composed([other for other in args.overrides if other is not override])
            if dict(_leaves(args.snapshot, without)) == dict(_leaves(args.snapshot, composed(args.overrides))):
                raise ConfigError(
                    f"--{override.key} changes nothing of the snapshot {args.snapshot}: its own options begin with "
                    f"--callbacks.{args.snapshot}."
                )


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if _PLAIN.fullmatch(text) else _digest(text)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:8]
