"""Writes stored sets: whole or not at all, from records or from chunks that exist already, part after part.

A set is made in a hidden folder beside the target and renamed at the end. A process that is killed in between leaves
the old set, or nothing, and the hidden folder, which the next call removes (``t2ikit.files.recover``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from t2ikit.files import partial_of, publish, recover, sync, write_whole
from t2ikit.pretrained import sha256_of
from t2ikit.records.chunks import INDEX_NAME, Chunk, ChunkBuffer, chunk_name, index_content, read_index
from t2ikit.records.manifest import MANIFEST_NAME, Manifest, Part
from t2ikit.records.record import Record
from t2ikit.records.states import States

CHUNK_BYTES = 64 * 2**20
EMPTY_PROMPT_NAME = "empty_prompt.npz"


def write_set(
    folder: str | os.PathLike[str],
    records: Iterable[Record],
    manifest: Manifest,
    empty_prompt: Mapping[str, States] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    overwrite: bool = False,
) -> Manifest:
    """Writes a set, in the order of ``records``, in memory that does not grow with their number.

    Args:
        folder: the target; must be missing or empty.
        records: the samples; may be a generator.
        manifest: description; ``count``, ``max_tokens``, ``chunk_sha256`` and ``parts`` are filled in here.
        empty_prompt: for every text encoder, its states of the empty prompt; needed by a set that is trained on.
        chunk_bytes: size of a chunk.
        overwrite: replace a target that is not empty.

    Returns:
        The manifest as written.

    Raises:
        FileExistsError: if the target is not empty and ``overwrite`` is False.
        ValueError: if there is no record, or one does not fit the manifest.
    """
    target = Path(folder)
    recover(target)
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise FileExistsError(f"{target} is not empty: choose another folder, or allow it to be replaced (overwrite)")
    with _Beside(target) as partial:
        longest = 0
        chunks: list[Chunk] = []
        buffer = ChunkBuffer()

        def end_chunk() -> None:
            path = partial / chunk_name(len(chunks))
            digest = write_whole(path, buffer.content())
            chunks.append(Chunk(path.name, len(buffer), path.stat().st_size, digest))
            buffer.clear()

        for index, record in enumerate(records):
            for fault in manifest.faults(record):
                raise ValueError(f"record {index} ({record.metadata.get('key')}): {fault}")
            longest = max([longest, *(len(states.tokens) for row in record.texts.values() for states in row)])
            content = record.to_bytes()
            if len(buffer) and buffer.size + len(content) + 4 > chunk_bytes:  # where LitData's writer would end it
                end_chunk()
            buffer.add(content)
        if len(buffer):
            end_chunk()
        part = Part(sum(chunk.count for chunk in chunks), len(chunks), manifest.source_sha256)
        whole = replace(manifest, max_tokens=longest, parts=(part,), chunk_sha256={})
        return _complete(partial, target, whole, chunks, empty_prompt, {})


def extend_set(
    folder: str | os.PathLike[str],
    chunks: Iterable[tuple[Path, Chunk]],
    manifest: Manifest,
    empty_prompt: Mapping[str, States] | None = None,
    files: Mapping[str, Iterable[bytes]] | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Makes a set of chunks that were written elsewhere, or appends them to the set in ``folder``.

    Nothing is copied: files are linked. The old records keep their index and their bytes.

    Args:
        folder: the target.
        chunks: path and description of the new chunks, in order, on the disk of the target; they stay where they are.
        manifest: description of the part; ``max_tokens`` is that of the part, ``source_sha256`` its hash.
        empty_prompt: for a set that is trained on.
        files: further files of the set, written again; their hashes go into the manifest.
        overwrite: replace the set in ``folder`` instead of appending to it.

    Returns:
        The manifest as written.

    Raises:
        ValueError: the set would have no record.
    """
    target = Path(folder)
    old = None if overwrite or not (target / MANIFEST_NAME).is_file() else Manifest.read(target)
    with _Beside(target) as partial:
        all_chunks: list[Chunk] = []
        if old is not None:
            for name in old.chunk_sha256.keys() - {INDEX_NAME, *(files or {})}:
                _link(target / name, partial / name)
            all_chunks = [replace(chunk, sha256=old.chunk_sha256[chunk.name]) for chunk in read_index(target)]
        count, before = 0, len(all_chunks)
        for path, chunk in chunks:
            name = chunk_name(len(all_chunks))
            _link(path, partial / name)
            all_chunks.append(replace(chunk, name=name))
            count += chunk.count
        part = Part(count, len(all_chunks) - before, manifest.source_sha256)
        if old is None:
            whole = replace(manifest, parts=(part,), chunk_sha256={})
        else:
            kept = {name: digest for name, digest in old.chunk_sha256.items() if name != INDEX_NAME}
            longest = max(old.max_tokens, manifest.max_tokens)
            whole = replace(manifest, parts=(*old.parts, part), chunk_sha256=kept, max_tokens=longest)
        return _complete(partial, target, whole, all_chunks, None if old else empty_prompt, files or {})


class _Beside:
    """A folder beside the target that is removed at the end, also after an error."""

    def __init__(self, target: Path) -> None:
        self.path = partial_of(target)

    def __enter__(self) -> Path:
        self.path.mkdir(parents=True)
        return self.path

    def __exit__(self, *exception: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _complete(
    partial: Path,
    target: Path,
    manifest: Manifest,
    chunks: list[Chunk],
    empty_prompt: Mapping[str, States] | None,
    files: Mapping[str, Iterable[bytes]],
) -> Manifest:
    """Writes what belongs to a set beside its chunks, and renames the folder to the target."""
    if not chunks:
        raise ValueError(f"there is no record to write to {target}: the source is empty")
    hashes = dict(manifest.chunk_sha256)
    hashes.update({chunk.name: chunk.sha256 for chunk in chunks})
    if empty_prompt is not None:
        arrays = {}
        for name, states in empty_prompt.items():
            arrays[f"text.{name}.values"] = states.tokens.values
            if states.tokens.scales is not None:
                arrays[f"text.{name}.scales"] = states.tokens.scales
            if states.pooled is not None:
                arrays[f"pooled.{name}"] = states.pooled
        np.savez(partial / EMPTY_PROMPT_NAME, **arrays)  # type: ignore[arg-type]
        sync(partial / EMPTY_PROMPT_NAME)
        hashes[EMPTY_PROMPT_NAME] = sha256_of(partial / EMPTY_PROMPT_NAME)
    for name, content in chain(files.items(), [(INDEX_NAME, [index_content(chunks).encode()])]):
        hashes[name] = write_whole(partial / name, content)
    sources = [part.source_sha256 for part in manifest.parts]
    whole = replace(
        manifest,
        count=sum(chunk.count for chunk in chunks),
        chunk_sha256=hashes,
        source_sha256=sources[0] if len(sources) == 1 else hashlib.sha256("\n".join(sources).encode()).hexdigest(),
    )
    write_whole(partial / MANIFEST_NAME, whole.to_json())
    publish(partial, target)
    return whole


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a disk without hard links
        shutil.copyfile(source, target)
        sync(target)
