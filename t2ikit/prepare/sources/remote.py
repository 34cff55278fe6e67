"""Files behind a URL, through fsspec."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

from t2ikit.prepare.sources.files import Entry, Files, SourceLost, require_photo_size
from t2ikit.remote import LASTING, Unreachable, retried

Result = TypeVar("Result")

_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub"}


class RemoteFiles(Files):
    """Files behind a URL, through fsspec and its configuration (credentials, endpoints)."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._held: tuple[int, Any] | None = None
        self._system()

    def __getstate__(self) -> dict[str, Any]:
        return {"protocol": self.protocol, "_held": None}

    def _system(self) -> Any:
        """The file system; one a process, since connections do not survive a fork."""
        if self._held is None or self._held[0] != os.getpid():
            import fsspec

            try:
                self._held = os.getpid(), fsspec.filesystem(self.protocol)
            except ImportError as error:
                package = _PACKAGES.get(self.protocol) or _package_of(self.protocol)
                raise ValueError(
                    f"--source with {self.protocol}:// needs the package {package}, which is not installed: "
                    f"pip install {package}"
                ) from error
            except ValueError as error:
                raise ValueError(
                    f"--source: {self.protocol}:// is no kind of URL that fsspec knows; it knows s3://, gs://, hf://, "
                    "https:// and others"
                ) from error
        return self._held[1]

    def entries(self, folder: str) -> Iterator[Entry]:
        for info in self._tried(folder, lambda system: system.ls(folder, detail=True)):
            path = info["name"].rstrip("/")
            name = path.rpartition("/")[2]
            # Some stores list the folder itself as an empty object.
            if not name.startswith(".") and not folder.rstrip("/").endswith(path):
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
        try:
            return retried(
                lambda: act(self._system()), lambda error: isinstance(error, ValueError) and self._held is None
            )
        except Unreachable as error:
            raise SourceLost(f"{path} cannot be read: {error}") from error.__cause__


def _package_of(protocol: str) -> str:
    from fsspec.registry import known_implementations

    return str(known_implementations[protocol]["class"]).partition(".")[0]
