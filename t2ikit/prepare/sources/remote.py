"""Files behind a URL, through fsspec."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from t2ikit.prepare.sources.files import Entry, Files, SourceLost, require_photo_size
from t2ikit.remote import LASTING, Unreachable, file_system, retried

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
        return bytes(self._tried(path, lambda system: system.cat_file(path)))

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
        return content

    def open(self, path: str) -> BinaryIO:
        opened: BinaryIO = self._tried(path, lambda system: system.open(path, "rb"))
        return opened

    def _tried(self, path: str, act: Callable[[Any], Result]) -> Result:
        system = self._system()  # not kept: connections do not survive a fork
        try:
            return retried(lambda: act(system))
        except Unreachable as error:
            raise SourceLost(f"{path} cannot be read: {error}") from error.__cause__
