"""Files of this machine, read in whole or in part, and the interface that files behind a URL share with them.

Reading fails in two ways. A single file that is missing, locked, or no regular file is an ``OSError``: a bad photo, and
work continues. Everything else (no network, a tar or a whole folder that is missing, too many open files) is a
``SourceLost``: to continue would take good photos for bad ones, so work stops, and a later call continues from there.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, TypeVar

from t2ikit.prepare.sources.left_out import is_of_system

Result = TypeVar("Result")

MAX_FILE_BYTES = 2**28
"""Larger files are no photos: 268 MB; they are not read into memory."""

_OPEN_FILES = 64
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT, errno.EINTR}
"""Errors of the machine, not of a file."""


class SourceLost(RuntimeError):
    """The source cannot be read any more, for a reason that says nothing about a single photo."""


class Entry(NamedTuple):
    """A file or folder in a folder."""

    name: str
    is_folder: bool
    is_link: bool
    size: int


class Files(ABC):
    """A way to list and read files; goes to loader processes, where it opens what it needs."""

    @abstractmethod
    def entries(self, folder: str) -> Iterator[Entry]:
        """What a folder holds, in no order."""

    def visible(self, folder: str) -> Iterator[Entry]:
        """What a folder holds, in no order, without what systems put there."""
        return (entry for entry in self.entries(folder) if not is_of_system(entry.name))

    @abstractmethod
    def is_folder(self, path: str) -> bool: ...

    @abstractmethod
    def is_file(self, path: str) -> bool: ...

    @abstractmethod
    def stamp(self, path: str) -> tuple[int, str]:
        """Bytes of a file, and a word that changes with its content."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """A whole file.

        Raises:
            OSError: this file cannot be read.
            SourceLost: nothing can be read.
        """

    @abstractmethod
    def read_part(self, path: str, offset: int, size: int) -> bytes:
        """``size`` bytes of a file that holds many photos.

        Raises:
            OSError: the file ends before.
            SourceLost: the file cannot be read.
        """

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """A file to be read from front to back, with skips."""


class LocalFiles(Files):
    """Files of this machine."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_descriptors": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def entries(self, folder: str) -> Iterator[Entry]:
        with os.scandir(folder) as listed:
            for entry in listed:
                # A link that leads nowhere is listed, too: it appears among the bad files instead of being left out.
                link = entry.is_symlink()
                try:
                    folder_too = os.path.isdir(entry.path) if link else entry.is_dir()
                    size = entry.stat(follow_symlinks=not link or os.path.exists(entry.path)).st_size
                except FileNotFoundError:  # removed just now
                    folder_too, size = False, 0
                yield Entry(entry.name, folder_too, link, size)

    def is_folder(self, path: str) -> bool:
        return os.path.isdir(path)

    def is_file(self, path: str) -> bool:
        return os.path.isfile(path)

    def stamp(self, path: str) -> tuple[int, str]:
        status = os.stat(path)
        return status.st_size, str(status.st_mtime_ns)

    def read(self, path: str) -> bytes:
        try:
            # A pipe would block until someone writes to it.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise of_machine(path, error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "no regular file", path)
            require_photo_size(status.st_size, path)
            return _whole(descriptor, 0, status.st_size)
        finally:
            os.close(descriptor)

    def read_part(self, path: str, offset: int, size: int) -> bytes:
        require_photo_size(size, path)
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise SourceLost(f"{path} cannot be read any more: {error.strerror}") from error
            self._descriptors[path] = descriptor
            if len(self._descriptors) > _OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
        else:
            self._descriptors.move_to_end(path)
        content = _whole(descriptor, offset, size)
        if len(content) < size:
            raise OSError(errno.EIO, f"the file ends after {len(content)} of {size} bytes", path)
        return content

    def open(self, path: str) -> BinaryIO:
        return open(path, "rb", buffering=0)


def require_photo_size(size: int, path: str) -> None:
    """Refuses to take the place of many photos in memory.

    Raises:
        OSError: ``size`` bytes are too many for a photo.
    """
    if size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"{size:,} bytes, more than {MAX_FILE_BYTES:,}", path)


def _whole(descriptor: int, offset: int, size: int) -> bytes:
    """Up to ``size`` bytes; position by position, so that processes may share the descriptor."""
    content = os.pread(descriptor, size, offset)
    if len(content) == size:
        return content
    parts = io.BytesIO()
    while content:
        parts.write(content)
        content = os.pread(descriptor, size - parts.tell(), offset + parts.tell())
    return parts.getvalue()


def of_machine(path: str, error: OSError) -> Exception:
    """The error itself, if it is one of the file; else that the machine has lost the source."""
    if error.errno in _OURS:
        return SourceLost(f"{path} cannot be read: {error.strerror}")
    return error
