"""The search that the command line asks for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from t2ikit.config.class_nodes import check_component
from t2ikit.config.errors import ConfigError
from t2ikit.config.origins import Origins
from t2ikit.config.values import read_value
from t2ikit.evaluation import Search
from t2ikit.metrics.base import Metric

# Option -> field of a Search.
_FIELDS = {
    "search": "method",
    "candidates": "candidates",
    "verifier_score": "score",
    "neighbours": "neighbours",
    "similarity": "similarity",
}

SEARCH = (*_FIELDS, "verifier")
"""Options of a search, as argparse names them."""


def verifier_title(args: argparse.Namespace) -> str:
    """The class name of ``--verifier``."""
    node = read_value(args.verifier)
    return str(node.get("class_path") if isinstance(node, dict) else node).rpartition(".")[2]


def verifier_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of ``--verifier``, where it has some."""
    node = read_value(args.verifier)
    return (node.get("init_args") or {}) if isinstance(node, dict) else {}


def find_search(args: argparse.Namespace, origins: Origins, search: Search | None = None) -> Search | None:
    """The search of ``--search``, ``--verifier`` and the options beside them.

    Args:
        args: of the command line.
        origins: which modules the verifier's class path may name.
        search: of the snapshot, whose fields the options replace; None has none.

    Raises:
        ConfigError: an option without ``--search`` or without a verifier, or a class that is no metric.
        ValueError: a number out of range, or a metric that compares sets of images.
    """
    changes: dict[str, Any] = {
        field: getattr(args, option) for option, field in _FIELDS.items() if getattr(args, option) is not None
    }
    if args.verifier is not None:
        node = read_value(args.verifier)
        changes["verifier"] = check_component("--verifier", node, Metric, origins=origins).build()
    if not changes:
        return search
    if search is not None:
        return replace(search, **changes)
    if args.search is None or args.verifier is None:
        raise ConfigError("a search needs --search random or zero-order and --verifier METRIC, a metric that chooses")
    return Search(**changes)
