"""Where the members of a tar lie, so that each can be read by itself, also those of a tar in a tar.

Format: POSIX.1-1988 (ustar) and POSIX.1-2001 (pax), and GNU's long names. Python's ``tarfile`` takes a damaged header
for the end of the archive, and a photo less would go unnoticed; here it is an error.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from t2ikit.prepare.sources.files import Files

_BLOCK = tarfile.BLOCKSIZE
_REGULAR = {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
_NO_CONTENT = {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE}
_LARGEST_NAME = 1 << 20


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    offset: int
    size: int


class OpenTar:
    """A tar that is read header by header.

    Args:
        files: how it is read.
        path: the file or its URL.
        size: its bytes, if known.
        moved: is told by how many bytes each step went on.
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
        position = start
        long_name: str | None = None
        pax: dict[str, str] = {}
        while True:
            if position == limit and position > start and end is not None:
                return  # a tar in a tar may lack its end mark: where it ends is known
            block = self._at(position, _BLOCK) if position + _BLOCK <= limit else b""
            if len(block) < _BLOCK:
                raise self._broken(position, "is not complete: the file ends before its end mark")
            if not block.strip(b"\0"):
                self._moved(limit - position)
                return
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                what = "is no tar" if position == 0 else f"is damaged ({error})"
                raise self._broken(position, what) from error
            data, size = position + _BLOCK, int(pax.get("size", header.size))
            if header.type in _NO_CONTENT:
                size = 0
            following = data + -(-size // _BLOCK) * _BLOCK
            if data + size > limit:
                raise self._broken(position, f"is not complete: it ends in the middle of {header.name}")
            if header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                if size > _LARGEST_NAME:
                    raise self._broken(position, "is damaged (a name of more than 1 MB)")
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    long_name = self._at(data, size).rstrip(b"\0").decode("utf-8", "surrogateescape")
                else:
                    pax = _pax(self._at(data, size))
            elif header.type == tarfile.GNUTYPE_SPARSE:
                raise self._broken(position, f"holds a sparse file, {header.name}, which is not supported")
            elif header.type not in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
                if header.type in _REGULAR:
                    name = pax.get("path") or long_name or header.name
                    yield Member(name.removeprefix("./"), data, size)
                long_name, pax = None, {}
            self._moved(min(following, limit) - position)
            position = min(following, limit)

    def _at(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(size)

    def _broken(self, position: int, what: str) -> ValueError:
        return ValueError(
            f"{self.path} {what}, at byte {position:,} of {self.size:,}: download it again, or give another --source"
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


def _pax(content: bytes) -> dict[str, str]:
    """Records ``length key=value``, the length of the whole record in front."""
    records = {}
    while content:
        length, space, _ = content.partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(content):
            break
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]
    return records
