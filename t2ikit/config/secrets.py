"""Values of the environment in an experiment: which are secrets, and how none of them is written anywhere.

``${oc.env:NAME}`` takes a variable. One that looks like a secret needs ``--trust env:NAME``, since an experiment may
come from a stranger and hand it to a server. What is kept of an experiment holds the expression, not the value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from t2ikit.config.errors import ConfigError

PREFIX = "env:"
"""Of a name of ``--trust`` that stands for a variable of the environment."""
CODE = "code:"
"""Of one that stands for the code of a model's repository."""

_NAME = re.compile(
    r"key|token|passw|passphrase|passcode|secret|credential|private|cookie|webhook|signature|oauth|bearer|conn(ection)?_?str"
    r"|pass(_|$)|(^|_)(pwd|pw|auth|pat|dsn|sas|session|login|netrc|jwt|otp|pin)(_|$)",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"://[^/@\s]*:[^/@\s]+@|[?&](sig|signature|x-(amz|goog)-signature|token|access_token|api_?key|password)=[^&\s]"
    r"|hooks\.slack\.com/|\bbearer +(?=\S*[0-9])[\w.~+/=-]{20}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\"private_key\"|AccountKey=|SharedAccessSignature|(?<!\w)eyJ[\w-]+\.eyJ[\w-]+\."
    r"|(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{30}|gh[pousr]_[A-Za-z0-9]{20}|github_pat_|glpat-|sk-([a-z0-9]+-)*[A-Za-z0-9]{16}"
    r"|xox[abpr]-[0-9]|AKIA[A-Z0-9]{16}|AIza[\w-]{35})",
    re.IGNORECASE,
)
"""Addresses with a password or a signature, and what common services give as keys."""
_OPTION = re.compile(
    r"(^|[_-])(secret|passw(or)?d|passphrase|api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token|authorization"
    r"|cookie)s?([_-]|$)",
    re.IGNORECASE,
)
_OF_STORE = re.compile(r"(^|_)(token|account_key|sas_token|connection_string)$", re.I)
_COOKIES = re.compile(r"(^|[_-])cookies?$", re.I)
_HEADERS = re.compile(r"(^|[_-])headers?$", re.I)
_EXPRESSION = re.compile(r"\$\{oc\.env:[^{}]*\}")
_SHOWN = re.compile(rf"(?:{_VALUE.pattern})[^\s'\"]*", re.IGNORECASE)
_NO_SECRETS = ("", "anon", "cloud", "browser", "cache", "google_default")
"""What gcsfs takes as ``token`` beside a secret."""

_trusted: set[str] = set()
_revealed: dict[str, str] = {}


class Untrusted(ValueError):
    """An experiment asks for a variable that looks like a secret."""


def trust_names(names: Sequence[str]) -> None:
    """Lets experiments of this process have what these names of ``--trust`` say: ``env:NAME``, ``code:MODEL``."""
    _trusted.update(name for name in names if name.startswith((PREFIX, CODE)))


def may_run_code(model: str) -> bool:
    """Whether ``--trust code:MODEL`` lets the code run that a model brings."""
    return f"{CODE}{model}" in _trusted


def is_secret(name: str, value: str = "") -> bool:
    """Whether a variable looks like a secret by its name or by its value, such as an address with a password.

    Example:
        >>> is_secret("HF_TOKEN"), is_secret("DB", "postgres://me:word@host/x"), is_secret("PWD"), is_secret("HOME")
        (True, True, False, False)
    """
    return (name not in ("PWD", "OLDPWD") and bool(_NAME.search(name))) or bool(_VALUE.search(value))


@contextmanager
def variables() -> Iterator[None]:
    """Around the resolution of an experiment: its variables are looked at here.

    Raises:
        Untrusted: it takes one that looks like a secret and is not trusted.
    """
    OmegaConf.register_resolver("oc.env", _variable, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_resolver("oc.env", oc.env, replace=True)


_ABSENT = object()


def _variable(name: str, default: Any = _ABSENT) -> Any:
    """In place of OmegaConf's ``oc.env``."""
    value = os.environ.get(name)
    if value is None and default is _ABSENT:
        raise KeyError(f"Environment variable '{name}' not found")
    if value is None:
        return None if default is None else str(default)
    if is_secret(name, value):
        if f"{PREFIX}{name}" not in _trusted:
            raise Untrusted(
                f"${{oc.env:{name}}} looks like a secret, which this experiment would get. If you trust it with that: "
                f"--trust {PREFIX}{name}"
            )
        if value:
            _revealed[value] = f"${{oc.env:{name}}}"
    return value


def without_secrets(node: Any) -> Any:
    """A copy of a value with the expression in place of every secret that was taken from the environment."""
    if isinstance(node, dict):
        return {without_secrets(key): without_secrets(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_secrets(value) for value in node]
    if isinstance(node, str):
        for value in sorted(_revealed, key=len, reverse=True):
            node = node.replace(value, _revealed[value])
    return node


def hidden(text: str) -> str:
    """A message with ``***`` in the place of what looks like a secret."""
    shown, end = "", 0
    for match in _SHOWN.finditer(_blanked(text)):
        shown, end = f"{shown}{text[end : match.start()]}***", match.end()
    return shown + text[end:]


def _blanked(text: str) -> str:
    """With spaces in the place of expressions, which are no secrets."""
    return _EXPRESSION.sub(lambda match: " " * len(match[0]), text)


def refuse_literal(node: Any) -> None:
    """Refuses an experiment in which a secret stands as it is.

    Args:
        node: with the expression in place of every secret that was taken from the environment.

    Raises:
        ConfigError: names the key, and not the secret.
    """
    if (key := literal_secret(node)) is not None:
        raise ConfigError(
            f"{hidden(key)}: a secret that stands in an experiment ends in its config.yaml and in every checkpoint: "
            "put it into an environment variable with KEY, TOKEN or PASSWORD in its name, write ${oc.env:NAME} here "
            f"and give --trust {PREFIX}NAME"
        )


def literal_secret(node: Any, path: tuple[str, ...] = ()) -> str | None:
    """The key of a secret that stands in an experiment as it is; None if there is none.

    Args:
        node: with the expression in place of every secret that was taken from the environment.
        path: its keys from outside to inside.
    """
    if isinstance(node, str):
        return ".".join(path) if _is_literal(node, path) else None
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = (literal_secret(value, (*path, str(name))) for name, value in pairs)
    return next(filter(None, found), None)


def _is_literal(text: str, path: tuple[str, ...]) -> bool:
    """Whether a text is a secret by what it looks like, or by the name of its option."""
    if _VALUE.search(_blanked(text)):
        return True
    names = [name for name in path if not name.isdecimal()]  # a list is what its option is
    if not names or "${oc.env:" in text or text in _NO_SECRETS or text.startswith(("/", "~")):
        return False
    *outer, name = names
    in_store = any("storage_options" in key for key in outer)
    below = outer[outer.index("init_args") + 1 :] if "init_args" in outer else outer  # not the name of a callback
    as_text = name.lower() == "headers" and ":" in text  # such as "X-Key: ..."
    return bool(
        _OPTION.search(name)
        or as_text
        or (in_store and _OF_STORE.search(name))
        or (any(map(_HEADERS.search, below)) and _NAME.search(name))
        or any(map(_COOKIES.search, below))
    )
