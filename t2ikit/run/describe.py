"""``lightning run X.yaml --help``: the classes of an experiment and their arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer

from t2ikit.config.class_nodes import accepted, class_parser
from t2ikit.config.imports import find_class
from t2ikit.config.origins import Origins
from t2ikit.run.experiment import TRAINER_OURS, Plan


def describe(plan: Plan) -> Iterator[str]:
    """Lines of help: every class of the experiment with its arguments, from the docstrings, and the values set now."""
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
