"""Files behind a URL, through fsspec."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from t2ikit.prepare.sources.files import MAX_FILE_BYTES, Entry, Files, SourceLost, require_photo_size
from t2ikit.remote import LASTING, TooLarge, TooLong, Unreachable, ask, file_system

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_AT_ONCE = 2**22  # bytes of a part where a file is read from front to back

Result = TypeVar("Result")


class RemoteFiles(Files):
    """Files behind a URL, through fsspec and its configuration (credentials, endpoints)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._system()

    def _system(self) -> Any:
        return file_system(self.url, "--source")[0]

    def entries(self, folder: str) -> Iterator[Entry]:
        for info in self._tried(folder, lambda system: system.ls(folder, detail=True)):
            path = info["name"].rstrip("/")
            name = path.rpartition("/")[2]
            # Some stores list the folder itself as an empty object.
            if name not in ("", ".", "..") and not folder.rstrip("/").endswith(path):
                yield Entry(name, info["type"] == "directory", False, int(info.get("size") or 0))

    def is_folder(self, path: str) -> bool:
        return bool(self._tried(path, lambda system: system.isdir(path)))

    def is_file(self, path: str) -> bool:
        return bool(self._tried(path, lambda system: system.isfile(path)))

    def stamp(self, path: str) -> tuple[int, str]:
        info = self._tried(path, lambda system: system.info(path))
        marks = (info.get(name) for name in ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "created"))
        return int(info.get("size") or 0), str(next((mark for mark in marks if mark), ""))

    def read(self, path: str) -> bytes:
        try:
            content = bytes(self._tried(path, lambda system: system.cat_file(path)))
        except SourceLost as error:
            if not isinstance(error.__cause__, TooLarge):
                raise
            raise OSError(errno.EFBIG, str(error.__cause__), path) from error
        require_photo_size(len(content), path)
        return content

    def read_part(self, path: str, offset: int, size: int) -> bytes:
        require_photo_size(size, path)
        if not size:
            return b""
        try:
            content = bytes(self._tried(path, lambda system: system.cat_file(path, start=offset, end=offset + size)))
        except LASTING as error:
            raise SourceLost(f"{path} cannot be read any more: {error}") from error
        if len(content) < size:
            raise OSError(errno.EIO, f"the file ends after {len(content)} of {size} bytes", path)
        if len(content) > size:
            raise SourceLost(
                f"{path}: the server gives {len(content):,} bytes where {size:,} are asked for: does it "
                "serve parts of files (HTTP ranges)?"
            )
        return content

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_Parts(self, path), _AT_ONCE))

    def _tried(self, path: str, act: Callable[[Any], Result]) -> Result:
        system = self._system()  # not kept: connections do not survive a fork
        try:
            return ask(lambda: act(system), path)
        except (Unreachable, TooLong) as error:
            raise SourceLost(f"{path} cannot be read: {error}") from error.__cause__ or error


class _Parts(io.RawIOBase):
    """A file behind a URL, read in parts, each of which has its tries and limits."""

    def __init__(self, files: RemoteFiles, path: str) -> None:
        self._files, self._path, self._position = files, path, 0
        self._size = files.stamp(path)[0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        count = min(len(view), max(0, self._size - self._position), MAX_FILE_BYTES)
        view[:count] = self._files.read_part(self._path, self._position, count)
        self._position += count
        return count
