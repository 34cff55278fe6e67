"""How a step of ``t2ikit prepare`` makes a stored set: part by part, each by the engine, never twice.

A set has the parts of its input: the photos as they were first, then what was appended. Each part has a hash of all
that decides its records. A set whose parts are the first of those wanted is completed; one with other parts is refused,
or replaced where that is allowed. Shards of the engine become chunks of the set without being rewritten.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from t2ikit.files import recover
from t2ikit.launch import first_rank
from t2ikit.prepare.engine.engine import run_work
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.engine.shards import Entry, Results
from t2ikit.prepare.engine.work import Work
from t2ikit.records.chunks import Chunk
from t2ikit.records.manifest import MANIFEST_NAME, Manifest, OtherVersion, identity
from t2ikit.records.states import States
from t2ikit.records.writing import CHUNK_BYTES, extend_set

MOST_IN_A_SHARD = 4096
"""Records of a shard, however small they are: a killed call loses no more."""


def parts_done(
    folder: Path,
    wanted: Manifest,
    hashes: Sequence[str],
    overwrite: bool,
    options: Mapping[str, str],
    inputs: Callable[[], str],
) -> int:
    """How many of the wanted parts ``folder`` holds already; repairs what a killed call left.

    Args:
        folder: where the set goes.
        wanted: what would be written.
        hashes: ``source_sha256`` of its parts, in order.
        overwrite: allows another set to be replaced.
        options: for the error message, the option that decides each field of the manifest by which sets are compared;
            an option is named once, for the first of its fields that differs.
        inputs: says, for the error message, what decides the hashes of the parts; called if those differ.

    Returns:
        From 0 (nothing, or another set that is to be replaced) to ``len(hashes)`` (there is nothing to do).

    Raises:
        FileExistsError: the folder holds another set (or none, but other files), and it may not be replaced.
    """
    if first_rank():
        recover(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return 0
    if not (folder / MANIFEST_NAME).is_file():
        raise FileExistsError(f"{folder} holds files that are no prepared set: choose another --out")
    try:
        existing = Manifest.read(folder)
    except OtherVersion:
        if overwrite:
            return 0
        raise
    differences: dict[str, str] = {}
    for name, option in options.items():
        before, now = getattr(existing, name), getattr(wanted, name)
        if identity(before) != identity(now):
            differences.setdefault(option, _difference(option, before, now))
    differing = list(differences.values())
    hashes_before = [part.source_sha256 for part in existing.parts]
    if hashes_before != list(hashes[: len(hashes_before)]):
        differing.append(inputs())
    if differing and not overwrite:
        raise FileExistsError(
            f"{folder} was made from other inputs: {'; '.join(differing)}. Give the same as before, choose another "
            "--out, or replace it with --overwrite"
        )
    done = 0 if differing else len(hashes_before)
    if first_rank():
        for part_index in range(done):  # killed after the set was in place
            work = work_folder(folder, part_index)
            # Of the passes over this part, and not of part 10 where this is part 1.
            passes = folder.parent.glob(f"{glob.escape(work.stem)}.*{work.suffix}")
            for leftover in (work, *passes):
                shutil.rmtree(leftover, ignore_errors=True)
    return done


def work_folder(folder: Path, part: int, encoder: str = "") -> Path:
    """Where the unfinished shards of a part, or of a pass of one text encoder over it, are: beside the set."""
    return folder.with_name(f".{folder.name}.part-{part}{encoder and '.'}{encoder}.work")


def shard_size_of(bytes_each: float, shard_size: int | None) -> int:
    """Records of a shard, and so of a chunk: as given, or as many as make about 64 MB."""
    if shard_size is not None and shard_size < 1:
        raise ValueError(f"--shard-size must be at least 1; got {shard_size}")
    return shard_size or max(1, min(int(CHUNK_BYTES / bytes_each), MOST_IN_A_SHARD))


def run_part(
    work: Work, folder: Path, part: int, launch: Launch, shard_size: int, label: str, overwrite: bool
) -> Results:
    """Computes a part of a set, by its index."""
    return run_work(work, work_folder(folder, part), launch, label, shard_size=shard_size, overwrite=overwrite)


def add_part(
    results: Results,
    folder: Path,
    part: int,
    wanted: Manifest,
    source_sha256: str,
    empty_prompt: Mapping[str, States] | None = None,
    files: Mapping[str, Iterable[bytes]] | None = None,
) -> Manifest:
    """Adds results to the set as one part, and discards them; every process calls it, the chief writes.

    Args:
        results: of the work of this part.
        folder: of the set.
        part: index of the part; 0 for a new set, which replaces an existing one.
        wanted: description of the set.
        source_sha256: of this part.
        empty_prompt, files: see ``extend_set``.

    Raises:
        FileExistsError: another call has added this part since ``parts_done`` was asked.
    """
    if results.chief:
        if part and len(Manifest.read(folder).parts) != part:
            results.ledger.discard()
            raise FileExistsError(f"another call has added to {folder} meanwhile: give the command again")
        description = replace(wanted, source_sha256=source_sha256)
        chunks = ((results.ledger.path(entry.shard), _chunk(entry)) for entry in results.entries() if entry.count)
        extend_set(folder, chunks, description, empty_prompt, files, overwrite=part == 0)
    results.discard()
    return Manifest.read(folder)


def _chunk(entry: Entry) -> Chunk:
    return Chunk("", entry.count, entry.size, entry.sha256)


def _difference(option: str, before: object, now: object) -> str:
    """That an option differs, with its values where they are those of the command line."""
    if isinstance(before, (str, int)) and isinstance(now, (str, int)):
        shown = ["raw" if value == "" else value for value in (before, now)]  # pictures without a codec
        return f"{option} was {shown[0]} and is {shown[1]} now"
    return f"{option} differs"
