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
    r"://[^/@\s]*:[^/@\s]+@|[?&](sig|signature|x-amz-signature|token|access_token|api_?key)=|hooks\.slack\.com/"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|\"private_key\"|AccountKey=|SharedAccessSignature|^eyJ[\w-]+\.eyJ[\w-]+\."
    r"|(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{20}|gh[pousr]_[A-Za-z0-9]{20}|github_pat_|glpat-|sk-[\w-]{20}|xox[abpr]-|AKIA[A-Z0-9]{16})",
    re.IGNORECASE,
)
"""Addresses with a password or a signature, and what common services give as keys."""
_OPTION = re.compile(r"(^|_)(secret|passw(or)?d|passphrase|api_?key|secret_?key|access_?token|auth_?token)(_|$)", re.I)
_OF_STORE = re.compile(r"(^|_)(token|account_key|sas_token|connection_string)$", re.I)
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


def literal_secret(node: Any, key: str = "") -> str | None:
    """The key of a secret that stands in an experiment as it is; None if there is none.

    Args:
        node: with the expression in place of every secret that was taken from the environment.
        key: its path.
    """
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in pairs:
        path = f"{key}.{name}" if key else str(name)
        of_store = "storage_options" in path and _OF_STORE.search(str(name)) is not None
        if isinstance(value, str) and (of_store or _OPTION.search(str(name))):
            if "${oc.env:" not in value and value not in _NO_SECRETS and not value.startswith(("/", "~")):
                return path
        elif (found := literal_secret(value, path)) is not None:
            return found
    return None
