"""Which modules a class path may name: looked at before anything of them is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from t2ikit.config.compose import LIBRARIES, ConfigError

TRUST_HELP = (
    "lets class paths name the module NAME, which is not ours, of a known library, or in the current folder; importing "
    "it runs its code. Repeatable"
)
"""Of ``--trust``."""


@dataclass(frozen=True)
class Origins:
    """Where the classes of an experiment may come from.

    A class path names a module of the kit, of a known library, or a file that lies in the current folder or in one of
    ``folders``; anything else must be trusted by its name. Importing a module runs its code, so this comes first.

    Attributes:
        packages: searched for a class that is named without its module, to suggest its full path.
        folders: whose files may be named, beside those of the current folder.
        trusted: names of further modules, as ``--trust`` gives them.
    """

    packages: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    trusted: tuple[str, ...] = ()

    def refuse_strange(self, module: str, where: str) -> None:
        """Raises ConfigError for a module that may not be imported; a missing one is the importer's to report.

        Args:
            module: dotted name.
            where: key of the class path, for the message.
        """
        top = module.partition(".")[0]
        names = (*LIBRARIES, *self.trusted)
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return
        home = _home(top)
        if home is None or home in {folder.resolve() for folder in (Path.cwd(), *self.folders)}:
            return
        raise ConfigError(
            f"{where}: '{module}' is neither a module of the kit or of a library that it knows "
            f"({', '.join(LIBRARIES)}), nor a file beside the experiment or in the current folder; importing it runs "
            f"its code. If you trust it: --trust {top}"
        )


NONE_BUT_KNOWN = Origins()
"""The kit, its libraries and the current folder."""


def importable(*folders: Path, packages: Sequence[str] = (), trusted: Sequence[str] = ()) -> Origins:
    """Makes modules of the current folder and of ``folders`` importable; returns where classes may come from."""
    for folder in (Path.cwd(), *folders):
        if str(folder.resolve()) not in sys.path:
            sys.path.append(str(folder.resolve()))
    return Origins(tuple(packages), tuple(folders), tuple(trusted))


def _home(top: str) -> Path | None:
    """The folder that holds a top-level module, found without importing it; None if there is no such module."""
    loaded = sys.modules.get(top)
    try:
        spec: ModuleSpec | None = loaded.__spec__ if loaded is not None else find_spec(top)
    except (ImportError, ValueError):
        return None
    if loaded is not None and spec is None:
        file = getattr(loaded, "__file__", None)
        return None if file is None else Path(file).resolve().parent
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve().parent
    if spec.origin in (None, "built-in", "frozen"):
        return Path(sys.base_prefix)
    return Path(spec.origin).resolve().parent
