"""Which modules a class path may name: looked at before anything of them is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.merging import LIBRARIES
from t2ikit.config.sources import compiled, find_source, names_of

TRUST_HELP = (
    "lets class paths name the module NAME, which is not ours, of a known library, or in the current folder; importing "
    "it runs its code. env:NAME lets ${oc.env:NAME} take that variable, whose name looks like a secret. Repeatable"
)
"""Of ``--trust``."""


SHOWN = 100
"""Lines of a kept source that a refusal shows."""


class Forbidden(ConfigError):
    """A name that may not be used, whatever else would be right with it."""


@dataclass(frozen=True)
class Origins:
    """Where the classes of an experiment may come from.

    A class path names a public module of the kit or of a known library, or a file in the current folder or in one of
    ``folders``; anything else must be trusted by its name. Importing a module runs its code, so this comes first.

    Attributes:
        packages: searched for a class that is named without its module, to suggest its full path.
        folders: whose files may be named, beside those of the current folder.
        trusted: names of further modules, as ``--trust`` gives them.
        kept: folder of the plug-ins that a run has kept, which may come from elsewhere: used where they are trusted.
        strange: a run folder, which may come from elsewhere: nothing in it may be named, wherever it lies.
    """

    packages: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    trusted: tuple[str, ...] = ()
    kept: Path | None = None
    strange: Path | None = None

    def of_library(self, module: str) -> bool:
        """Whether a module is of the kit or of a known library, and not trusted by its name."""
        return _within(module, LIBRARIES) and not _within(module, self.trusted)

    def refuse_strange(self, module: str, where: str) -> None:
        """Refuses a module that may not be imported; a missing one is the importer's to report.

        Args:
            module: dotted name.
            where: key of the class path, for the message.

        Raises:
            Forbidden: neither known, nor in an allowed folder, nor trusted.
        """
        top = module.partition(".")[0]
        if _within(module, self.trusted):
            return
        if _within(module, LIBRARIES):
            private = next((part for part in module.split(".") if part.startswith("_")), None)
            if private is None:
                return
            raise Forbidden(
                f"{where}: '{module}' is inside of a library ({private}). If you trust it: --trust {module}"
            )
        found, allowed = homes(top), self.allowed()
        if self.kept is not None and not (found and found <= allowed):
            self._refuse_kept(self.kept, top, where)
        if found <= allowed:
            self._refuse_link(module, where)
            return
        raise Forbidden(
            f"{where}: '{module}' is neither a module of the kit or of a library that it knows "
            f"({', '.join(LIBRARIES)}), nor a file beside the experiment or in the current folder; importing it runs "
            f"its code. If you trust it: --trust {top}"
        )

    def allowed(self) -> set[Path]:
        """The folders whose files may be named."""
        folders = {folder.resolve() for folder in (Path.cwd(), *self.folders)}
        strange = None if self.strange is None else self.strange.resolve()
        return {folder for folder in folders if strange is None or strange not in (folder, *folder.parents)}

    def look(self, class_path: str, where: str, kind: type = object) -> None:
        """Refuses a class path before anything is imported, as far as the source of its module tells.

        Args:
            class_path: ``module.Class``.
            where: its key, for the message.
            kind: what the class must derive from.

        Raises:
            Forbidden: as :meth:`refuse_strange`; a function; a module without a source.
            ConfigError: the module has no such class, or one that derives from nothing.
        """
        module, _, name = class_path.rpartition(".")
        self.refuse_strange(module, where)
        if _within(module, (*LIBRARIES, *self.trusted)) or module in sys.modules:
            return
        folders = sorted(self.allowed())
        source = find_source(module, folders)
        if source is None:
            if (file := compiled(module, folders)) is not None:
                raise Forbidden(
                    f"{where}: {file} is no source, so nobody can look at what it does. If you trust it: --trust "
                    f"{module.partition('.')[0]}"
                )
            return
        names = names_of(*source)
        if names is None:
            return
        if name in names.functions and name not in (*names.classes, *names.others):
            raise Forbidden(f"{where}: '{class_path}' names a function, not a class")
        if name not in (*names.classes, *names.functions, *names.others) and not names.open:
            raise ConfigError(f"{where}: {module} has no class '{name}'{nearest(name, names.classes)}")
        found = names.classes.get(name)
        if found is not None and kind is not object and not (found.bases or found.keywords or found.decorator_list):
            home = kind.__module__.partition(".")[0]
            raise ConfigError(f"{where}: {class_path} is no {kind.__name__} of {home}")

    def _refuse_link(self, module: str, where: str) -> None:
        """Refuses a part of a package that is a link out of the allowed folders."""
        allowed = self.allowed()
        source = find_source(module, sorted(allowed))
        if source is not None and not any(folder in source[0].resolve().parents for folder in allowed):
            raise Forbidden(
                f"{where}: '{module}' is a link to {source[0].resolve()}, which is neither beside the experiment nor "
                f"in the current folder. If you trust it: --trust {module.partition('.')[0]}"
            )

    def _refuse_kept(self, folder: Path, top: str, where: str) -> None:
        """Refuses a module of which there is only what the run has kept, and shows that."""
        source = _source(folder, top)
        if source is None:
            return
        lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
        more = f"\n    ... and {len(lines) - SHOWN} lines more" if len(lines) > SHOWN else ""
        shown = "\n".join(f"    {printable(line)}" for line in lines[:SHOWN])
        raise Forbidden(
            f"{where}: '{top}' is no file of yours here. The run has kept its source, and importing it "
            f"runs its code:\n{shown}{more}\nThat is {source}, with what it imports beside it. If you trust it: "
            f"--trust {top}"
        )


NONE_BUT_KNOWN = Origins()
"""The kit, its libraries and the current folder."""


def importable(
    *folders: Path,
    packages: Sequence[str] = (),
    trusted: Sequence[str] = (),
    kept: Path | None = None,
    strange: Path | None = None,
) -> Origins:
    """Makes modules of the current folder and of ``folders`` importable; returns where classes may come from.

    Those of ``kept`` come after all others, and only where one of them is trusted.
    """
    plugins = () if kept is None or not any(_source(kept, name) for name in trusted) else (kept,)
    origins = Origins(tuple(packages), tuple(folders), tuple(trusted), kept, strange)
    given = [folder.resolve() for folder in (Path.cwd(), *folders)]
    for folder in (*(folder for folder in given if folder in origins.allowed()), *plugins):
        if str(folder.resolve()) not in sys.path:
            sys.path.append(str(folder.resolve()))
    return origins


def _source(folder: Path, top: str) -> Path | None:
    """The file of a module or a package in a folder of plug-ins."""
    top = top.partition(".")[0]
    return next((path for path in (folder / f"{top}.py", folder / top / "__init__.py") if path.is_file()), None)


def printable(line: str) -> str:
    """A line of a file from elsewhere, without what a terminal would obey."""
    return "".join(character if character.isprintable() or character == "\t" else "\ufffd" for character in line)


def _within(module: str, names: Sequence[str]) -> bool:
    """Whether a module is one of ``names``, or lies in a package of them."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def homes(top: str) -> set[Path]:
    """The folders that hold a top-level module, found without importing it; empty if there is no such module.

    A package without ``__init__.py`` may lie in several.
    """
    loaded = sys.modules.get(top)
    try:
        spec: ModuleSpec | None = loaded.__spec__ if loaded is not None else find_spec(top)
    except (ImportError, ValueError):
        return set()
    if loaded is not None and spec is None:
        file = getattr(loaded, "__file__", None)
        return set() if file is None else {Path(file).resolve().parent}
    if spec is None:
        return set()
    if spec.submodule_search_locations:
        return {Path(folder).resolve().parent for folder in spec.submodule_search_locations}
    if spec.origin in (None, "built-in", "frozen"):
        return {Path(sys.base_prefix)}
    return {Path(spec.origin).resolve().parent}
