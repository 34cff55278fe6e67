"""``lightning run X.yaml --help``: the classes of an experiment, their arguments, and which classes may stand there."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any, get_args

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

import t2ikit
from t2ikit import callbacks
from t2ikit.config.class_nodes import accepted, class_parser
from t2ikit.config.imports import find_class
from t2ikit.config.origins import Origins
from t2ikit.diffusion.solvers import SOLVERS, Solver
from t2ikit.run.experiment import PACKAGES, TRAINER_OURS, Plan


def describe(plan: Plan) -> Iterator[str]:
    """Lines of help: every class of the experiment with its arguments, from the docstrings, and the values set now."""
    yield ""
    kinds = {"model": LightningModule, "data": LightningDataModule, "callbacks.NAME": Callback}
    for key, base in kinds.items():
        yield f"{key}: one of {', '.join(alternatives(base))}, or a class of your own"
    yield from _describe_class(Trainer, "trainer", plan.config["trainer"])
    yield from _describe_node(plan.config["model"], "model", plan.origins)
    yield from _describe_node(plan.config["data"], "data", plan.origins)
    for name, node in plan.config["callbacks"].items():
        yield from _describe_node(node, f"callbacks.{name}", plan.origins)


def _describe_node(node: dict[str, Any], short: str, origins: Origins) -> Iterator[str]:
    values = node.get("init_args") or {}
    yield from _describe_class(find_class(node["class_path"], f"{short}.class_path", origins), short, values)
    for name, value in values.items():
        for suffix, below in (
            [(f".{index}", item) for index, item in enumerate(value)] if isinstance(value, list) else [("", value)]
        ):
            if isinstance(below, dict) and "class_path" in below:
                yield from _describe_node(below, f"{short}.{name}{suffix}", origins)


def _describe_class(cls: type, short: str, values: dict[str, Any]) -> Iterator[str]:
    summary = (cls.__doc__ or "").strip().splitlines()
    yield ""
    yield f"{short}: {cls.__module__}.{cls.__qualname__}" + (f". {summary[0]}" if summary else "")
    known = set(accepted(cls)) - (set(TRAINER_OURS) if cls is Trainer else set())
    for action in class_parser(cls)._actions:
        name = action.dest.removeprefix("it.")
        if name.partition(".")[0] not in known or name.endswith(".help"):
            continue
        text = " ".join((action.help or "").split()) if isinstance(action.help, str) else ""
        text = text if cls is not Trainer else text.partition(". ")[0]
        yield f"  --{short}.{name} [{_shown(_value(values, name, action.default))}]" + (f"  {text}" if text else "")
        others = _others(getattr(action, "_typehint", None))
        if others and cls is not Trainer:
            yield f"      one of {others}"


def alternatives(base: type) -> list[str]:
    """Class paths of the kit's own classes of a kind, as an experiment names them."""
    found = [cls for cls in _classes() if issubclass(cls, base) and not inspect.isabstract(cls)]
    return sorted(map(_class_path, found))


def _others(kind: Any) -> str:
    """What may stand where an argument of that type does: classes of the kit, and names that stand for such."""
    bases = list(dict.fromkeys(_bases(kind)))
    names = [name for base in bases if base is Solver for name in SOLVERS]
    classes = [path for base in bases if (paths := alternatives(base)) != [_class_path(base)] for path in paths]
    return ", ".join([*names, *classes, "a class of your own"]) if names or classes else ""


@cache
def _classes() -> tuple[type, ...]:
    """The public classes of the rooms of which an experiment names some."""
    modules = [
        *pkgutil.walk_packages(t2ikit.__path__, "t2ikit."),
        *pkgutil.iter_modules(callbacks.__path__, "t2ikit.callbacks."),
    ]
    names = dict.fromkeys(module.name for module in modules if module.name.startswith(PACKAGES))
    return tuple(
        value
        for name in names
        for value in vars(import_module(name)).values()
        if isinstance(value, type) and value.__module__ == name and not value.__name__.startswith("_")
    )


def _class_path(cls: type) -> str:
    """The shortest path of a class: that of a package which exports it, or of its module."""
    exported = [package for package in PACKAGES if cls.__name__ in getattr(import_module(package), "__all__", ())]
    return f"{min([*exported, cls.__module__], key=len)}.{cls.__name__}"


def _bases(kind: Any) -> Iterator[type]:
    """The classes of the kit that the type of an argument names, at any depth."""
    if isinstance(kind, type) and kind.__module__.startswith("t2ikit."):
        yield kind
    for below in get_args(kind):
        yield from _bases(below)


def _value(values: dict[str, Any], name: str, default: Any) -> Any:
    for key in name.split("."):
        if not isinstance(values, dict) or key not in values:
            return default
        values = values[key]
    return values


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"])
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
