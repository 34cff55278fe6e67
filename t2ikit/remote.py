"""Files behind a URL, through fsspec: opening a file system, and trying a call again where its error may not last."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

Result = TypeVar("Result")

ATTEMPTS = 5
PAUSE = 1.0
"""Seconds before the second attempt; doubled before every further one."""
STALLED = 60.0
"""Seconds without a byte after which an attempt is given up."""
TOTAL = 1800.0
"""Seconds that all attempts at a file may take: a chunk of 64 MB at 36 kB a second."""
SAID = 30.0
"""Seconds between two messages about a file that is not complete."""
MOST_AT_ONCE = 2**28
"""Bytes of an answer that is read into memory, over HTTP: a photo, a listing."""

LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
"""Errors that another attempt does not change."""


_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub"}


class Unreachable(Exception):
    """Every attempt failed; the last error is the cause, and its type and first line are the message."""


def file_system(url: str, option: str, settings: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it; fsspec keeps one file system per process and thread.

    Args:
        url: address of a file or folder.
        option: of the command line that gave the URL, for messages.
        settings: of the file system, such as credentials.

    Raises:
        ValueError: fsspec does not know the protocol, or lacks a package for it, which is named.
    """
    import fsspec  # here: not needed by data that lies on this machine

    protocol, options = url.partition("://")[0], dict(settings or {})
    if protocol in ("http", "https"):
        options["client_kwargs"] = {"response_class": _limited_answer(), **options.get("client_kwargs", {})}
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        from fsspec.registry import known_implementations

        package = _PACKAGES.get(protocol) or str(known_implementations[protocol]["class"]).partition(".")[0]
        raise ValueError(
            f"{option} {url} needs the package {package}, which is not installed: pip install {package}"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{option} {url} cannot be opened ({error}): fsspec knows s3:// and gs:// (pip install "
            '"t2ikit[remote]"), hf://, https:// and others'
        ) from error
    return system, str(path)


def retried(call: Callable[[], Result], is_lasting: Callable[[Exception], bool] = lambda error: False) -> Result:
    """The result of a call that goes over a network, which is tried up to ``ATTEMPTS`` times.

    Args:
        call: the call.
        is_lasting: recognises further errors that another attempt does not change.

    Raises:
        Exception: a lasting error, as it came.
        Unreachable: the last attempt failed, too.

    Example:
        >>> retried(lambda: 3)
        3
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:  # every file system has errors of its own
            if isinstance(error, LASTING) or is_lasting(error):
                raise
            if attempt == ATTEMPTS - 1:
                reason = str(error).splitlines()[0] if str(error) else "no reason given"
                raise Unreachable(f"{type(error).__name__}: {reason}") from error
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError("unreachable")


class TooLong(ValueError):
    """A file that takes longer than all of its tries may."""


class TooLarge(TooLong):
    """A file that brings more bytes than it may."""


@cache
def _limited_answer() -> type:
    """aiohttp's answer, of which at most ``MOST_AT_ONCE`` bytes are taken into memory."""
    import aiohttp

    class Limited(aiohttp.ClientResponse):
        async def read(self) -> bytes:
            if self._body is None:
                body = bytearray()
                while block := await self.content.read(2**16):
                    body += block
                    if len(body) > MOST_AT_ONCE:
                        self.close()
                        raise TooLarge(f"{self.url} brings more than {MOST_AT_ONCE:,} bytes at once")
                self._body = bytes(body)
            return self._body

    return Limited


def copy_file(system: Any, path: str, target: Path, most_bytes: int | None = None) -> None:
    """Copies a file of an fsspec file system to ``target`` on this machine, not atomically.

    Args:
        system: the file system.
        path: of the file.
        target: is written.
        most_bytes: that it may bring, looked at while they come; None where nobody has said it.

    Raises:
        OSError: a lasting error; one of the target (``is_of_target``) is among them.
        TooLarge: it brings more bytes.
        TooLong: it takes more than ``TOTAL`` seconds.
        Unreachable: as ``retried``.
    """
    deadline = time.monotonic() + TOTAL

    def once() -> None:
        try:
            _watched(lambda watch: system.get_file(path, str(target), callback=watch), path, deadline, most_bytes, True)
        except TimeoutError:
            target.unlink(missing_ok=True)  # an attempt that was given up may still write: not into the next one's file
            raise

    retried(once, lambda error: isinstance(error, TooLong) or is_of_target(error, target))


def ask(act: Callable[[], Result], path: str) -> Result:
    """The answer to a short question about ``path``, tried again like a copy, with messages and within ``TOTAL``.

    Raises:
        TooLarge: an answer over HTTP has more than ``MOST_AT_ONCE`` bytes.
        TooLong: it takes more than ``TOTAL`` seconds.
        Exception: as ``retried``.
    """
    deadline = time.monotonic() + TOTAL
    return retried(lambda: _watched(lambda _: act(), path, deadline), lambda error: isinstance(error, TooLong))


def _watched(
    act: Callable[[Any], Result], path: str, deadline: float, most_bytes: int | None = None, stalls: bool = False
) -> Result:
    """Calls ``act`` in a thread, since a server that says nothing holds it; says how far it is, and gives it up.

    Args:
        act: gets a callback of fsspec that counts bytes.
        path: for the messages.
        deadline: of ``time.monotonic()``.
        most_bytes: that it may count.
        stalls: it counts bytes as they come, so it may be given up where none comes.

    Raises:
        TooLarge: more bytes.
        TooLong: the deadline.
        TimeoutError: no byte for ``STALLED`` seconds.
    """
    import fsspec

    state: dict[str, Any] = {"bytes": 0, "moved": time.monotonic(), "stop": None, "error": None, "result": None}

    class Watch(fsspec.callbacks.Callback):  # type: ignore[misc, unused-ignore]
        def relative_update(self, inc: int = 1) -> None:
            state["bytes"], state["moved"] = state["bytes"] + inc, time.monotonic()
            if most_bytes is not None and state["bytes"] > most_bytes:
                state["stop"] = TooLarge(f"{path} brings more than the {most_bytes:,} bytes that it should have")
            if state["stop"] is not None:
                raise state["stop"]

    def run() -> None:
        try:
            state["result"] = act(Watch())
        except BaseException as error:
            state["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    said = time.monotonic()
    while thread.is_alive():
        thread.join(min(SAID, STALLED) / 4)
        now = time.monotonic()
        if not thread.is_alive():
            break
        if now - said > SAID:
            said = now
            seconds = f"{state['bytes']:,} bytes so far, the last {now - state['moved']:.0f} s ago"
            print(f"{path}: {seconds if stalls else 'no answer yet'}", file=sys.stderr)
        if now > deadline:
            state["stop"] = TooLong(f"{path} was not complete after {TOTAL:g} s, {state['bytes']:,} bytes came")
        elif stalls and now - state["moved"] > STALLED:
            state["stop"] = TimeoutError(f"{path}: no byte for {STALLED:g} s")
        if state["stop"] is not None:
            raise state["stop"]
    if state["error"] is not None:
        raise state["error"]
    return cast(Result, state["result"])


def is_of_target(error: Exception, target: Path) -> bool:
    """Whether an error comes from the file that was to be written, not from the network."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return isinstance(error, OSError) and (error.errno in full or error.filename == str(target))
