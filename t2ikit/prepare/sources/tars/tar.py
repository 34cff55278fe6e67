"""The offsets of the members of a tar, so that each can be read by itself, also those of a tar in a tar.

Python's ``tarfile`` reads the headers (ustar, pax, GNU). It takes a damaged or zeroed header for the end of the tar:
the photos behind it would be missing without notice. Here only zeros may follow the end mark.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from t2ikit.prepare.sources.files import Files
from t2ikit.prepare.sources.photos import NO_TARGET

_BLOCK = tarfile.BLOCKSIZE
_LARGEST_NAME = 1 << 20
_ZEROS_AT_ONCE = 1 << 20


class Member(NamedTuple):
    """A file in a tar, or a link to one.

    Attributes:
        name: its path in the tar.
        offset: first byte of the content. Of a link that leads to no file of the tar: the bitwise complement of the
            offset of its header, which is negative.
        size: bytes of the content. Of such a link: bytes of the path that it names, as in a folder.
    """

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
        """The bytes of a small member.

        Raises:
            ValueError: it is a link that leads to no file of the tar.
        """
        self.require_file(member)
        return self._at(member.offset, member.size)

    def require_file(self, member: Member) -> None:
        """Refuses a link that leads to no file of the tar.

        Raises:
            ValueError: it is such a link.
        """
        if member.offset < 0:
            raise ValueError(
                f"{self.path}: {member.name} is {NO_TARGET}: make the tar anew with `tar --dereference`, or give "
                "another --source"
            )

    def members(self, start: int = 0, end: int | None = None) -> Iterator[Member]:
        """The regular files and the links, in their order; a link has the content of the file that it names.

        Args:
            start: first byte of the tar: 0, or the offset of a member that is a tar itself.
            end: the byte behind it.

        Raises:
            ValueError: damaged, or not complete; says at which byte.
        """
        targets: dict[str, Member] | None = None
        for header in self._headers(start, end, self._moved):
            name = header.name.removeprefix("./")
            if header.isreg():
                yield Member(name, header.offset_data, header.size)
            elif _is_link(header):
                if targets is None:
                    targets = self._targets(start, end)
                target = targets.get(posixpath.normpath(header.name))
                if target is not None:
                    yield Member(name, target.offset, target.size)
                else:
                    yield Member(name, ~header.offset, len(os.fsencode(header.linkname)) if header.issym() else 0)

    def _targets(self, start: int, end: int | None) -> dict[str, Member]:
        """The file behind every link, by the link's path. Reads all headers twice, which only tars with links need.

        Raises:
            ValueError: a link to a folder; damaged, or not complete.
        """
        links: dict[str, str] = {}
        for header in self._headers(start, end):
            if _is_link(header):
                folder = posixpath.dirname(header.name) if header.issym() else ""
                links[posixpath.normpath(header.name)] = posixpath.normpath(posixpath.join(folder, header.linkname))
        ends = {link: _end_of(link, links) for link in links}
        wanted, files = set(ends.values()), {}
        for header in self._headers(start, end):
            path = posixpath.normpath(header.name)
            if header.isreg() and path in wanted:
                files[path] = Member(path, header.offset_data, header.size)
            linked = next((folder for folder in (path, *_folders_of(path)) if folder in wanted), path)
            if header.isdir() or linked != path:
                link = next((link for link, target in ends.items() if target == linked), None)
                if link is not None:
                    raise self._broken(header.offset, f"holds a link to a folder, {link}, which is not supported")
        return {link: files[target] for link, target in ends.items() if target in files}

    def _headers(
        self, start: int, end: int | None, moved: Callable[[int], object] | None = None
    ) -> Iterator[tarfile.TarInfo]:
        """Every header up to the end; see ``members``."""
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
                if header.size < 0 or tar.offset <= position:  # tarfile would read the same headers for ever
                    raise self._broken(position, f"is damaged: {header.size} bytes in {header.name!r}")
                if header.offset_data + (header.size if header.isreg() else 0) > limit:
                    raise self._broken(position, f"is not complete: it ends in the middle of {header.name}")
                if header.issparse():
                    raise self._broken(position, f"holds a sparse file, {header.name}, which is not supported")
                yield header
                following = min(tar.offset, limit)
                if moved is not None:
                    moved(following - position)
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
        self._require_zeros(position, limit)
        if moved is not None:
            moved(limit - position)

    def _require_zeros(self, position: int, limit: int) -> None:
        """Refuses a tar that goes on behind the empty block at ``position``: a zeroed header, or a second tar."""
        for offset in range(position, limit, _ZEROS_AT_ONCE):
            content = self._at(offset, min(_ZEROS_AT_ONCE, limit - offset))
            rest = content.lstrip(b"\0")
            if rest:
                byte = offset + len(content) - len(rest)
                raise self._broken(position, f"is damaged: a header is empty, but more follows (byte {byte:,})")

    def _at(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(size)

    def _broken(self, position: int, fault: str) -> ValueError:
        return ValueError(
            f"{self.path} {fault}, at byte {position:,} of {self.size:,}: download it again, or give another --source"
        )


def _is_link(header: tarfile.TarInfo) -> bool:
    return header.islnk() or header.issym()


def _end_of(link: str, links: dict[str, str]) -> str:
    """Where a link leads, through other links; in a circle it ends at a link."""
    passed: set[str] = set()
    while link in links and link not in passed:
        passed.add(link)
        link = links[link]
    return link


def _folders_of(path: str) -> Iterator[str]:
    """The folders above a path, the nearest first."""
    while path := posixpath.dirname(path):
        yield path
