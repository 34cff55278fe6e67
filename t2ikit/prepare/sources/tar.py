"""The offsets of the members of a tar, so that each can be read by itself, also those of a tar in a tar.

Python's ``tarfile`` reads the headers (ustar, pax, GNU). It takes a damaged header for the end of the archive, and the
photos behind it would be missing without notice: here the listing must end at the end mark.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from t2ikit.prepare.sources.files import Files

_BLOCK = tarfile.BLOCKSIZE
_LARGEST_NAME = 1 << 20


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    offset: int
    size: int


class _Headers:
    """A tar up to its end as ``tarfile`` reads it, which would read a name as long as a damaged header says."""

    def __init__(self, stream: BinaryIO, end: int) -> None:
        self._stream = stream
        self._end = end
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > _LARGEST_NAME:
            raise tarfile.ReadError("a name of more than 1 MB")
        return self._stream.read(max(0, min(size, self._end - self._stream.tell())))


class OpenTar:
    """A tar that is read header by header.

    Args:
        files: how it is read.
        path: the file or its URL.
        size: its bytes, if known.
        moved: called with the number of bytes that each step advanced.
    """

    def __init__(
        self, files: Files, path: str, size: int | None = None, moved: Callable[[int], object] | None = None
    ) -> None:
        self.path = path
        self.size = files.stamp(path)[0] if size is None else size
        self._stream: BinaryIO = files.open(path)
        self._moved = moved or (lambda count: None)

    def __enter__(self) -> OpenTar:
        return self

    def __exit__(self, *details: object) -> None:
        self._stream.close()

    def content(self, member: Member) -> bytes:
        """The bytes of a small member."""
        return self._at(member.offset, member.size)

    def members(self, start: int = 0, end: int | None = None) -> Iterator[Member]:
        """The regular files, in their order.

        Args:
            start: first byte of the tar: 0, or the offset of a member that is a tar itself.
            end: the byte behind it.

        Raises:
            ValueError: damaged, or not complete; says at which byte.
        """
        limit = self.size if end is None else end
        position, reason = start, "its header cannot be read"
        self._stream.seek(start)
        try:
            tar = tarfile.open(  # noqa: SIM115 - the stream stays open
                fileobj=_Headers(self._stream, limit),  # type: ignore[call-overload]
                mode="r:",
                encoding="utf-8",
                errors="surrogateescape",
            )
            while position < limit and (header := tar.next()) is not None:
                tar.members.clear()  # it would keep a million of them
                if header.offset_data + (header.size if header.isreg() else 0) > limit:
                    raise self._broken(position, f"is not complete: it ends in the middle of {header.name}")
                if header.issparse():
                    raise self._broken(position, f"holds a sparse file, {header.name}, which is not supported")
                if header.isreg():
                    yield Member(header.name.removeprefix("./"), header.offset_data, header.size)
                following = min(tar.offset, limit)
                self._moved(following - position)
                position = following
        except tarfile.TarError as error:
            reason = str(error)
        if position == limit and position > start and end is not None:
            return  # a tar in a tar may lack its end mark: where it ends is known
        block = self._at(position, _BLOCK) if position + _BLOCK <= limit else b""
        if not block or reason in ("empty header", "truncated header", "unexpected end of data"):
            raise self._broken(position, "is not complete: the file ends before its end mark")
        if block.strip(b"\0"):  # tarfile ends without an error at a damaged header
            raise self._broken(position, f"is damaged ({reason})" if position else "is no tar")
        self._moved(limit - position)

    def _at(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(size)

    def _broken(self, position: int, fault: str) -> ValueError:
        return ValueError(
            f"{self.path} {fault}, at byte {position:,} of {self.size:,}: download it again, or give another --source"
        )


def first_member(files: Files, path: str) -> Member:
    """The first regular file of a tar.

    Raises:
        ValueError: no tar, or an empty one.
    """
    with OpenTar(files, path) as tar:
        for member in tar.members():
            return member
    raise ValueError(f"{path} is an empty tar: give another --source")
