"""What a run has made after the step from which it goes on again: kept, and no longer taken for its own.

    checkpoints/left-at-00000002/                      checkpoints of later steps, and ``finished``
    left-at-00000002/samples/NAME/                     scores, details, grids and images of later snapshots, and a
                                                       ``newest.json`` of one of them
    left-at-00000002/evaluations/NAME/                 later evaluations of the run's checkpoints

A second time at the same step is ``left-at-00000002-2``: nothing that was kept is ever replaced. ``metrics.csv`` and
TensorBoard leave out what was logged of later steps by themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from t2ikit.checkpoints.runs import FINISHED, finish_record
from t2ikit.checkpoints.saving import step_in_name
from t2ikit.files import parse_json
from t2ikit.lock import is_locked

# Not the images of an unfinished snapshot, step-*.sampling: a hash of the weights says whether they can be used.
_OF_SNAPSHOT = re.compile(r"step-(\d+)(?:\.png)?")
_OF_EVALUATION = re.compile(r"step-(\d+)(?:-.*)?")


def set_aside(folder: Path, step: int) -> list[tuple[Path, Path]]:
    """Moves what is of later steps away; called by the first rank, before anything new is written.

    Neither ``--resume`` nor the removal of older checkpoints, nor a reader of the newest scores, may take it for what
    this run makes. If an error or a signal ends this half-way, everything is put back.

    Args:
        folder: of the run.
        step: from which it goes on.

    Returns:
        Old and new place of everything that was moved.
    """
    checkpoints = list(_later_checkpoints(folder / "checkpoints", step))
    later = list(_later_results(folder, step))
    record = finish_record(folder)
    if record is not None and record["checkpoint"] in {path.name for path in checkpoints}:
        checkpoints.append(folder / FINISHED)
    label = _free_label(folder, step)
    moved = [(path, folder / "checkpoints" / label / path.name) for path in checkpoints]
    moved += [(path, folder / label / path.relative_to(folder)) for path in later]
    try:
        for old, new in moved:
            new.parent.mkdir(parents=True, exist_ok=True)
            os.replace(old, new)
    except BaseException:
        put_back(moved)
        raise
    if moved:
        places = " and ".join(
            str(place)
            for place, some in ((folder / "checkpoints" / label, checkpoints), (folder / label, later))
            if some
        )
        print(f"going on at step {step}: {len(moved)} files and folders of later steps moved to {places}")
    return moved


def put_back(moved: Sequence[tuple[Path, Path]]) -> None:
    """Undoes :func:`set_aside` for a run that has made no step; a second time, it does nothing."""
    back = 0
    for old, new in moved:
        if new.exists():
            os.replace(new, old)
            back += 1
        for parent in new.parents:
            try:
                parent.rmdir()
            except OSError:  # it holds something else, or is gone
                break
    if back:
        print(f"no step was made: {back} files and folders of later steps are back in their places")


def _free_label(folder: Path, step: int) -> str:
    label, number = f"left-at-{step:08d}", 1
    while True:
        name = label if number == 1 else f"{label}-{number}"
        if not (folder / name).exists() and not (folder / "checkpoints" / name).exists():
            return name
        number += 1


def _later_checkpoints(folder: Path, step: int) -> Iterator[Path]:
    """The newest first: until it is moved, a killed process would leave it in charge."""
    dated = [(_step_of(path), path) for path in folder.glob("*.ckpt")]
    return (path for at, path in sorted(dated, reverse=True) if at > step)


def _step_of(checkpoint: Path) -> int:
    """The step in the name or, of ``last.ckpt``, that inside; -1 where there is none."""
    named = step_in_name(checkpoint)
    if named >= 0:
        return named
    import torch  # here: looking for checkpoints needs none

    with suppress(Exception):  # a file of any other kind: it is left alone
        return int(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"])
    return -1


def _later_results(folder: Path, step: int) -> Iterator[Path]:
    """Of snapshots and evaluations, but not of an evaluation that is under way."""
    places = [
        (path, _OF_SNAPSHOT) for inside in ("", "scores/", "details/") for path in folder.glob(f"samples/*/{inside}*")
    ]
    places += [(path, _OF_EVALUATION) for path in folder.glob("evaluations/*/*") if not is_locked(path)]
    for path, pattern in sorted(places, key=lambda place: place[0]):
        named = pattern.fullmatch(path.name)
        if named is not None and int(named[1]) > step:
            yield path
    for path in sorted(folder.glob("samples/*/newest.json")):  # else a snapshot of that step would not be made again
        with suppress(OSError, ValueError, TypeError, AttributeError):  # a file of any other kind: it is left alone
            if parse_json(path.read_text()).get("step", -1) > step:
                yield path
