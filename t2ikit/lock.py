"""One writer at a time in a folder: a lock that ends with its process, however that ends.

It is a POSIX record lock and no ``flock``: the workers of a loader, which are forked and outlive a killed run by some
seconds, do not inherit it. Only the first rank of a run, or of a step of ``prepare``, takes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from t2ikit.config.errors import ConfigError

LOCK = ".lock"
TRAINS = "trains in this run folder. Wait until it ends, or leave out --resume to begin another run"
SAMPLES = "samples into this folder. Wait until it ends, or give another folder with --out"
PREPARES = "prepares the same data here. Wait until it ends, or give another folder with --out"
_locks: dict[Path, IO[bytes]] = {}


class Locked(ConfigError):
    """Another process works in a folder."""


def lock(folder: Path, work: str = TRAINS) -> None:
    """Locks a folder until ``unlock`` or the end of this process; a folder that it has locked stays so.

    A file system without locks gives none, and the work goes on.

    Args:
        folder: exists.
        work: what another process does there, and what to do then.

    Raises:
        Locked: another process works there.
        ConfigError: the folder cannot be written to.
    """
    key = folder.resolve()
    if key in _locks:
        if _is_at(_locks[key], folder / LOCK):
            return
        unlock(folder)  # the folder was removed, and made again
    while True:
        try:
            file = (folder / LOCK).open("ab")
        except OSError as error:
            raise ConfigError(f"{folder}: this folder cannot be written to ({error.strerror})") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return
            raise Locked(f"{folder}: another process {work}") from error
        if _is_at(file, folder / LOCK):
            _locks[key] = file
            return
        file.close()


def unlock(folder: Path) -> None:
    """Ends the lock of this process on a folder, if it has one."""
    file = _locks.pop(folder.resolve(), None)
    if file is not None:
        file.close()


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still there: who had locked it may have removed it before it was locked here."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def is_locked(folder: Path) -> bool:
    """Whether another process works in a folder; false where that cannot be seen."""
    if folder.resolve() in _locks:
        return False
    try:
        file = (folder / LOCK).open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False
