"""The one door between the values of an experiment and the import of modules.

Every class that a value names is found by :func:`find_class`. jsonargparse would import by itself whatever a string
names where an argument takes a class or a function, at any depth. Around each of its calls an :class:`ImportGuard`
sends those imports here.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from jsonargparse import Namespace, _typehints

from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.merging import LIBRARIES
from t2ikit.config.origins import NONE_BUT_KNOWN, Forbidden, Origins

# What jsonargparse 4 does without a guard.
_import_object, _get_import_path = _typehints.import_object, _typehints.get_import_path
_adapt_classes_any = _typehints.adapt_classes_any
_check_type, _instantiate_classes = (
    _typehints.ActionTypeHint._check_type,
    _typehints.ActionTypeHint.instantiate_classes,
)


def find_class(class_path: Any, key: str, origins: Origins = NONE_BUT_KNOWN) -> type:
    """The class that ``class_path`` names.

    Args:
        class_path: ``module.Class``.
        key: of the class path in the experiment.
        origins: which modules may be named.

    Raises:
        ConfigError: no such module or class, with the nearest known one.
        Forbidden: a module that may not be imported, or a function.
    """
    if not is_path(class_path):
        raise ConfigError(f"{key}: expected module.Class, got {class_path!r}")
    module_name, _, name = class_path.rpartition(".")
    if not module_name:
        raise _without_module(name, key, origins)
    origins.look(class_path, key)
    module = _import_module(module_name, key)
    named = getattr(module, name, None)
    if not isinstance(named, type):
        if inspect.isroutine(named):
            raise Forbidden(f"{key}: '{class_path}' names a function, not a class")
        top = module_name.partition(".")[0]
        classes = [
            other
            for other, value in vars(module).items()
            if isinstance(value, type) and value.__module__.partition(".")[0] == top
        ]
        raise ConfigError(f"{key}: {module_name} has no class '{name}'{nearest(name, classes)}")
    if origins.of_library(module_name):  # a library also holds classes that it imports for its own use: Popen
        origins.refuse_strange(named.__module__, key)
    return named


def is_path(value: Any) -> bool:
    """Whether a value is words with dots between them."""
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))


def _without_module(name: str, key: str, origins: Origins) -> ConfigError:
    homes = (package for package in origins.packages if hasattr(importlib.import_module(package), name))
    home = next(homes, None)
    hint = "" if home is None else f"; did you mean {home}.{name}?"
    wanted = "module.Class" if key.endswith("class_path") else "{class_path: module.Class, init_args: {...}}"
    return ConfigError(f"{key}: '{name}' names no module: write {wanted}{hint}")


def _import_module(module_name: str, key: str) -> Any:
    """The module, or the class that holds a nested one."""
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(missing + "."):
            raise ConfigError(f"{key}: importing {module_name} needs the missing module '{missing}'") from error
        parent, _, name = module_name.rpartition(".")
        outer = getattr(sys.modules.get(parent), name, None)
        if isinstance(outer, type):
            return outer
        raise ConfigError(f"{key}: no module '{missing}'{_nearest_module(missing)}") from None
    except (Exception, SystemExit) as error:  # sys.exit() at its top would end the command without a word
        raise ConfigError(f"{key}: importing {module_name} fails: {type(error).__name__}: {error}") from error


class ImportGuard:
    """Watches what jsonargparse imports for the arguments of one class.

    Allowed are the classes that :func:`find_class` finds, and what the code itself names: the kinds and the defaults of
    arguments. Refusals are kept, since jsonargparse tries one kind of a union after the other and forgets the errors.
    """

    def __init__(self, cls: type, arguments: Mapping[str, Any], key: str, origins: Origins) -> None:
        self.cls, self.arguments, self.key, self.origins = cls, arguments, key, origins
        self._refusals: list[tuple[str, ConfigError | None]] = []
        self._known: set[str] = set()
        self._found: dict[str, type] = {}
        self._defaults: list[Any] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around every call of jsonargparse: its imports lead to this guard."""
        with ExitStack() as stack:
            for owner, name, ours in (
                (_typehints, "import_object", self._find),
                (_typehints, "check_import_path", self._refuse_module),
                (_typehints, "get_import_path", self._path_of),
                (_typehints, "adapt_classes_any", self._adapt_classes_any),
                # Without this, a name without a module would mean any class that some library has derived.
                (_typehints, "resolve_class_path_by_name", lambda kind, name: name),
                (_typehints.ActionTypeHint, "_check_type", self._with_default(_check_type)),
                (_typehints.ActionTypeHint, "instantiate_classes", self._with_default(_instantiate_classes)),
            ):
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, ours)
            yield

    def raise_refusal(self, message: str = "") -> None:
        """Raises what was refused.

        Args:
            message: of jsonargparse where it failed; a class that was not found is the reason if it names it.

        Raises:
            ConfigError: with the key of the value.
        """
        for _, refusal in self._refusals:
            if isinstance(refusal, Forbidden):
                raise refusal
        for name, refusal in self._refusals:
            if re.search(rf"(Got|Given) value: .*\b{name}\b", message):
                raise refusal or _without_module(name, self._key_of(name), self.origins)

    def reason(self, message: str) -> ConfigError | None:
        """Why a class path that was left as text, where a name is taken too, is none of the classes that fit there.

        Args:
            message: of what refuses the text, in which it stands in quotes.
        """
        for name, refusal in self._refusals:
            if refusal is not None and repr(name) in message:
                return refusal
        for name, found in self._found.items():
            if repr(name) in message:
                fault = "is abstract" if inspect.isabstract(found) else "is not of the kind that is wanted here"
                return ConfigError(f"{self._key_of(name)}: {name} {fault}: {message}")
        return None

    def _find(self, name: Any, check_path: bool = True) -> Any:
        """In place of jsonargparse's ``import_object``."""
        if name in self._known or any(name in _strings(default) for default in self._defaults):
            return _import_object(name, check_path=False)
        if not is_path(name):
            raise ValueError(f"{name!r} is no class path")
        if "." not in name:  # a word, which another kind of the union may take
            self._refusals.append((name, None))
            raise ValueError(f"{name!r} names no module")
        try:
            found = find_class(name, self._key_of(name), self.origins)
        except ConfigError as error:
            self._refusals.append((name, error))
            raise
        self._known.add(name)
        self._found[name] = found
        return found

    def _path_of(self, value: Any) -> Any:
        """In place of ``get_import_path``: the class is there already, so its other names may be used as well."""
        path = _get_import_path(value)
        if path is not None:
            self._known.add(path)
        return path

    def _refuse_module(self, path: str) -> None:
        """In place of ``check_import_path``, which comes before a module is imported for an argument that takes one."""
        refusal = Forbidden(f"{self._key_of(path)}: '{path}' names a module, not a class")
        self._refusals.append((path, refusal))
        raise refusal

    def _adapt_classes_any(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of ``adapt_classes_any``, which builds class nodes where an argument takes anything.

        Only for classes of the user's own: in a library this would build any class, of no kind that the place wants.
        """
        named = isinstance(value, (dict, Namespace)) and "class_path" in value
        if named and self.origins.of_library(self.cls.__module__):
            path = str(value["class_path"])
            refusal = Forbidden(f"{self._key_of(path)}: no class can be named here, got {path}")
            self._refusals.append((path, refusal))
            raise refusal
        return _adapt_classes_any(value, *args, **kwargs)

    def _with_default(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A method of an argument's action during which the default of this argument is known."""

        def method(action: Any, *args: Any, **kwargs: Any) -> Any:
            self._defaults.append(action.default)
            try:
                return original(action, *args, **kwargs)
            finally:
                self._defaults.pop()

        return method

    def _key_of(self, name: Any) -> str:
        """The key of the value that names a class."""
        keys = (key for key, value in leaves(self.arguments, self.key) if value == name)
        return next(keys, self.key)


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of everything below a value that is neither a mapping nor a list."""
    if isinstance(value, (Mapping, Namespace)):
        for name, below in value.items():
            yield from leaves(below, f"{key}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, below in enumerate(value):
            yield from leaves(below, f"{key}.{index}")
    else:
        yield key, value


def _strings(value: Any) -> set[str]:
    return {leaf for _, leaf in leaves(value, "") if isinstance(leaf, str)}


def _nearest_module(missing: str) -> str:
    parent, _, _ = missing.rpartition(".")
    try:
        search = importlib.import_module(parent).__path__ if parent else None
    except (ImportError, AttributeError):
        return ""
    if not parent:
        places = "beside the experiment of a run and in the current folder"
        return f"{nearest(missing, LIBRARIES)}; a file {missing}.py is looked for {places}"
    return nearest(missing, [f"{parent}.{module.name}" for module in pkgutil.iter_modules(search)])
