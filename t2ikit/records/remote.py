"""Data roots behind an address: ``s3://``, ``gs://``, ``hf://``, ``https://`` and every other protocol of fsspec.

The manifest, the index and the empty prompt are downloaded first. A chunk is downloaded when it is needed, or a little
before (see ``data/prefetch.py``), into a cache folder that looks like a local data root. It gets its name there only
after its SHA-256 was compared with the manifest. The processes of a machine share the cache; one of them downloads a
chunk.

LitData's reader is not used: it has its own order of records and no checksums, takes a chunk that was cut short for a
download that hangs, and resumes combined streams inexactly. Its downloaders ignore a taken lock and a missing file, and
do not know ``https://``. The chunks are in its format, so its ``StreamingDataset`` reads the same remote folder.

Longer than other files, since cache, download and locks must agree in every order of events: they are read together.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from t2ikit.files import below, partial_of, publish, write_whole
from t2ikit.pretrained import cache_folder, sha256_of
from t2ikit.records.checked import CheckedFiles, Verify
from t2ikit.records.chunks import read_index
from t2ikit.records.manifest import MANIFEST_NAME, PREPARE_COMMANDS, Manifest
from t2ikit.records.record_set import RecordSet
from t2ikit.remote import ATTEMPTS, TooLong, Unreachable, ask, copy_file, file_system, is_of_target

_SPARED = 60.0  # seconds for which a chunk that was just used is not deleted
_FREE = 2**30  # bytes that are left to others on the disk of the cache
_MOST_SMALL = 2**30  # bytes of a manifest, an index or an empty prompt
_MOST_OF_FOLDER = 2**35  # bytes of a file of a text encoder
_SMALL_FILES = ("index.json", "empty_prompt.npz")


def is_remote(root: str) -> bool:
    """Whether a data root is an address rather than a folder."""
    return "://" in root


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind an address, and its copy in the cache.

    ``folder / "train"`` is the folder below it, ``str(folder)`` its address, and ``Path(folder)`` the copy, which holds
    only the files that were downloaded.

    Attributes:
        url: address, without a slash at its end.
        copy: folder of the downloaded files.
        options: of the file system, as fsspec takes them; credentials are better left to its environment variables.
    """

    url: str
    copy: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str, cache: str | Path | None = None, options: Mapping[str, Any] | None = None) -> RemoteFolder:
        """The folder at an address, with its copy below ``cache`` (default: ``data`` in the cache of the user)."""
        url = url.rstrip("/")
        below = Path(cache).expanduser() if cache is not None else cache_folder() / "data"
        name = re.sub(r"[^A-Za-z0-9.]+", "-", url)[-40:].strip("-.")
        return cls(url, below / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}", dict(options or {}))

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}", self.copy / name, self.options)

    def __str__(self) -> str:
        return self.url

    def __fspath__(self) -> str:
        return str(self.copy)

    def get(self, name: str, target: Path, most_bytes: int | None = None) -> None:
        """Copies a file of the folder to ``target``, which is not atomic; tries again after errors that may pass.

        Raises:
            ValueError: fsspec does not know the protocol, or lacks a package for it; the cache cannot take the file.
            FileNotFoundError: the file does not exist or cannot be reached.
        """
        system, path = self._system(name)
        address = f"{self.url}/{name}"
        try:
            copy_file(system, path, target, most_bytes)
        except (OSError, NotImplementedError, Unreachable, TooLong) as error:
            if isinstance(error, OSError) and is_of_target(error, target):
                raise self._no_place(error) from error
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(f"{address} does not exist") from error
            reason = f"{error}; {ATTEMPTS} attempts" if isinstance(error, Unreachable) else repr(error)
            reason = str(error) if isinstance(error, TooLong) else reason
            raise FileNotFoundError(
                f"{address} cannot be read ({reason}): look at the network, the credentials, --data.root and "
                "--data.storage_options"
            ) from error

    def bring(self, name: str) -> bytes:
        """Downloads a small file into the copy, again in every run; returns its content."""
        self._make_copy()
        partial = partial_of(self.copy / name)
        try:
            self.get(name, partial, _MOST_SMALL)
            content = partial.read_bytes()
        finally:
            partial.unlink(missing_ok=True)
        path = self.copy / name
        if not path.is_file() or path.read_bytes() != content:
            write_whole(path, content)
        return content

    def bring_folder(self, name: str, fits: Callable[[Path], bool]) -> Path:
        """Downloads a folder with everything in it into the copy, once; returns its path there.

        Args:
            name: of the folder.
            fits: whether a copy is what is wanted; another one is downloaded again.

        Raises:
            FileNotFoundError: the folder does not exist or cannot be reached.
            ValueError: the address lists a file that is not in the folder.
        """
        target = self.copy / name
        self._make_copy()
        with FileLock(self.copy / f".{name}.lock"):
            if not target.is_dir() or not fits(target):
                system, path = self._system(name)
                partial = partial_of(target)
                try:
                    files = ask(lambda: system.find(path), path)
                    if not files:
                        raise FileNotFoundError("there is no such folder, or it cannot be listed")
                except Exception as error:  # as above
                    raise FileNotFoundError(f"{self.url}/{name} cannot be read ({error})") from error
                copies = {file: below(partial, file.removeprefix(f"{path}/")) for file in files}
                try:
                    for file, copy in copies.items():
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        copy_file(system, file, copy, _MOST_OF_FOLDER)
                    publish(partial, target)
                except Exception as error:  # as above
                    raise FileNotFoundError(f"{self.url}/{name} cannot be read ({error})") from error
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        return target

    def _make_copy(self) -> None:
        try:
            self.copy.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._no_place(error) from error

    def _no_place(self, error: OSError) -> ValueError:
        return ValueError(
            f"the cache {self.copy} cannot take what {self.url} holds ({error.strerror}): make room there, choose "
            "another folder with --data.cache_dir (default: data below $T2IKIT_CACHE), or let chunks take less with "
            "--data.cache_gb"
        )

    def _system(self, name: str) -> tuple[Any, str]:
        return file_system(f"{self.url}/{name}", "--data.root", self.options)


class RemoteChunks(CheckedFiles):
    """The chunks of a remote set: what the cache lacks, or holds damaged, is downloaded.

    Args:
        remote: the set.
        digests: SHA-256 of every file, by name.
        sizes: bytes of every chunk, by name.
        verify: as in :class:`CheckedFiles`; what arrives is always compared.
        cache: folder that ``limit`` holds for.
        limit: bytes that the chunks in the cache may have; None: all but 2^30 bytes of the disk.
    """

    def __init__(
        self,
        remote: RemoteFolder,
        digests: Mapping[str, str],
        sizes: Mapping[str, int],
        verify: Verify = "once",
        cache: Path | None = None,
        limit: int | None = None,
    ) -> None:
        # The copy may hold files of an older version of the set, so every file is checked.
        super().__init__(remote.copy, digests, "once" if verify == "never" else verify, notes=remote.copy / ".verified")
        self.remote = remote
        self.sizes = sizes
        self.cache = cache or remote.copy
        self.limit = limit

    def ready(self, name: str, wait: bool = True) -> bool:
        path = self.folder / name
        with suppress(FileNotFoundError):  # another process may delete it to make room: then it is downloaded again
            if path.is_file() and (self.is_good(name) or (self.verify == "always" and not wait)):
                self._used(path)
                return True
        with self.alone_with(name, wait) as mine:
            if mine and not self._intact(name):
                self._download(name)
            if mine:
                self._used(path)
        return mine

    def _intact(self, name: str) -> bool:
        path = self.folder / name
        if path.is_file() and not self.is_good(name):
            try:
                self.check(name)
            except ValueError:
                path.unlink()
        return path.is_file()

    def _download(self, name: str) -> None:
        path = self.folder / name
        for leftover in path.parent.glob(f".{name}.*.partial"):  # of a process that was killed: we hold the lock now
            leftover.unlink(missing_ok=True)
        make_room(self.cache, self.sizes.get(name, 0), self.limit)
        for _ in range(2):  # the second time in case the bytes changed on their way
            partial = partial_of(path)
            try:
                self.remote.get(name, partial, self.sizes.get(name))
                size = partial.stat().st_size
                if sha256_of(partial) == self.digests.get(name):
                    publish(partial, path)
                    self.remember(name)
                    return
            finally:
                partial.unlink(missing_ok=True)
        raise ValueError(
            f"{self.remote.url}/{name} differs from its manifest (SHA-256; {size:,} bytes arrived).\n"
            "See what is damaged where the set was made: t2ikit prepare check DIR\n"
            "Then copy that file to its place again"
        )

    @staticmethod
    def _used(path: Path) -> None:
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # also where the disk is mounted with noatime


def make_room(cache: Path, wanted: int, limit: int | None) -> None:
    """Deletes the chunks whose last use is the longest ago until ``wanted`` more bytes fit below ``cache``.

    A chunk used within the last minute stays, since a process may be about to map it; a mapped one stays readable.
    """
    with FileLock(cache / ".room.lock"):
        chunks = []
        for path in cache.rglob("chunk-*.bin"):
            with suppress(FileNotFoundError):  # another process has just removed it as damaged
                stat = path.stat()
                chunks.append((stat.st_atime, stat.st_size, path))
        used = sum(size for _, size, _ in chunks)
        allowed = used + shutil.disk_usage(cache).free - _FREE
        allowed = allowed if limit is None else min(allowed, limit)
        for last_use, size, path in sorted(chunks):
            if used + wanted <= allowed or last_use > time.time() - _SPARED:
                return
            path.unlink(missing_ok=True)
            used -= size


def read_manifest(remote: RemoteFolder) -> Manifest:
    """The manifest of a remote set.

    Raises:
        FileNotFoundError: it does not exist or cannot be reached; names ``--data.root``.
        ValueError: it cannot be used.
    """
    try:
        remote.bring(MANIFEST_NAME)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no prepared set in {remote}: {error}.\n"
            "Point --data.root at an address that holds train/ and val/ (of aspect buckets, such as train/1.00/, their "
            "names belong in data.buckets); prepare them on a machine of yours and copy "
            f"DIR there:\n{PREPARE_COMMANDS}"
        ) from error
    return Manifest.read(remote)


def open_remote_set(
    remote: RemoteFolder, verify: Verify = "once", cache: Path | None = None, limit: int | None = None
) -> RecordSet:
    """A remote set: its small files are downloaded now, its chunks when they are needed.

    Raises:
        FileNotFoundError: as :func:`read_manifest`.
        ValueError: a file differs from its manifest; names it.
    """
    manifest = read_manifest(remote)
    for name in _SMALL_FILES:
        digest = manifest.chunk_sha256.get(name)
        if digest is not None and hashlib.sha256(remote.bring(name)).hexdigest() != digest:
            raise ValueError(
                f"{remote}/{name} differs from its manifest (SHA-256): copy it there again from where the set was made"
            )
    records = RecordSet(remote)
    records.address = remote.url
    # LitData's own index leaves the header of a chunk out.
    sizes = {chunk.name: chunk.size + 4 * (chunk.count + 2) for chunk in read_index(remote.copy)}
    records.files = RemoteChunks(remote, manifest.chunk_sha256, sizes, verify, cache, limit)
    return records
