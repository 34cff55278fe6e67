"""The source of a module that an experiment names, read before anything of it runs: does it define that class?"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SUFFIX = ".py"
_COMPILED = (".pyc", ".so", ".pyd")


@dataclass(frozen=True)
class Names:
    """What the top of a module, or the body of a class, binds.

    Attributes:
        classes: by name.
        functions: names.
        others: names that are imported or assigned: what they are is known when the module runs.
        open: whether it may bind further names: ``import *``, or a ``__getattr__``.
    """

    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    open: bool = False


def find_source(module: str, folders: Sequence[Path]) -> tuple[Path, tuple[str, ...]] | None:
    """The file of a module in one of the folders, and the names of classes behind it (``mine.Holder`` of mine.py).

    Args:
        module: dotted name.
        folders: where it may lie.

    Returns:
        None where no folder holds it as a source.
    """
    words = module.split(".")
    for folder in folders:
        for count in range(len(words), 0, -1):
            path = folder.joinpath(*words[:count])
            for file in (path / "__init__.py", path.with_name(path.name + _SUFFIX)):
                if file.is_file():
                    return file, tuple(words[count:])
    return None


def compiled(module: str, folders: Sequence[Path]) -> Path | None:
    """The file of a module that only holds machine code or byte code, which cannot be looked at."""
    for folder in folders:
        path = folder.joinpath(*module.split("."))
        for file in sorted(path.parent.glob(f"{path.name}.*")) if path.parent.is_dir() else ():
            if file.suffix in _COMPILED:
                return file
    return None


def names_of(file: Path, classes: Sequence[str] = ()) -> Names | None:
    """What a source binds, or the body of a class in it; None where it cannot be parsed, which its import reports.

    Args:
        file: the source.
        classes: names of nested classes from outside to inside.
    """
    try:
        body: Sequence[ast.stmt] = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return None
    names = _bound(body)
    for name in classes:
        if name not in names.classes:
            return None
        names = _bound(names.classes[name].body)
    return names


def _bound(body: Sequence[ast.stmt]) -> Names:
    classes, functions, others, unknown = {}, set(), set(), False
    for statement in _statements(body):
        if isinstance(statement, ast.ClassDef):
            classes[statement.name] = statement
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.add(statement.name)
            unknown |= statement.name == "__getattr__"
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                unknown |= alias.name == "*"
                others.add((alias.asname or alias.name).partition(".")[0])
        else:
            others |= {
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
    return Names(classes, functions, others, unknown)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a body, and of what stands in its ``if``, ``try``, ``with`` and loops."""
    for statement in body:
        yield statement
        if not isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.iter_child_nodes(statement):
                if isinstance(node, ast.stmt):
                    yield from _statements([node])
                elif isinstance(node, (ast.ExceptHandler, ast.match_case)):
                    yield from _statements(node.body)
