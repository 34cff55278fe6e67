"""Makes the cells of SynthReal that are missing, one after the other, and the tests of sources that come later."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from t2ikit import stopping
from t2ikit.classify.aggregate import REAL, Trained
from t2ikit.classify.results import FILE, ClassificationResults, TestScore, read_results
from t2ikit.config.errors import ConfigError
from t2ikit.config.origins import Origins
from t2ikit.config.sweep import Cell
from t2ikit.files import parse_json, write_whole
from t2ikit.lock import is_locked, lock, unlock
from t2ikit.run.classifier_tests import test_of_run
from t2ikit.run.sweeps import ELSEWHERE, Place, place_of, run_cell
from t2ikit.run.synthreal import Benchmark, CellsOfView, Source

FAILED = 1
"""Exit status where a cell has failed."""


@dataclass(frozen=True)
class Item:
    """A cell with where it is.

    Attributes:
        sweep: of its view.
        cell: the cell.
        place: its folder and its file of scores.
    """

    sweep: CellsOfView
    cell: Cell
    place: Place


def items_of(benchmark: Benchmark, sweeps: Sequence[CellsOfView]) -> list[Item]:
    """Every cell, in the order in which they are made."""
    scores = benchmark.out / "scores"
    items = [Item(sweep, cell, place_of(sweep, cell, scores)) for sweep in sweeps for cell in sweep.cells.values()]
    return sorted(items, key=lambda item: item.cell.seed)


def make_missing(benchmark: Benchmark, items: Sequence[Item], origins: Origins, command: str) -> int:
    """Makes the cells that are missing, one after the other in this process, but those that another process makes.

    Args:
        benchmark: whose cells they are.
        items: the cells.
        origins: which modules an experiment may name.
        command: as the user would type it again.

    Returns:
        The exit status: 0, 1 where a cell has failed, or that of a run that a signal has stopped.
    """
    failed = 0
    for item in items:
        name = item.cell.name
        try:
            if item.place.finished() is None:
                if is_locked(item.place.folder):
                    continue
                with stopping.handled():  # a signal saves the state of a training
                    status = run_cell(item.sweep, name, benchmark.out / "scores", origins, command)
                if status == stopping.STATUS:
                    return status
                if status not in (0, ELSEWHERE):
                    failed += 1
                    print(f"{name}: ended with status {status}", file=sys.stderr, flush=True)
                    continue
            if item.place.finished() is not None:
                _make_tests(benchmark, item, origins)
        except (ConfigError, ValueError, OSError, FloatingPointError, stopping.Failed) as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    return FAILED if failed else 0


def missing(benchmark: Benchmark, items: Sequence[Item]) -> list[Item]:
    """The cells that are not done, or lack a test."""
    return [
        item for item in items if item.place.finished() is None or any(True for _ in _missing_tests(benchmark, item))
    ]


def trained_of(benchmark: Benchmark, items: Sequence[Item]) -> Iterator[tuple[str, Trained]]:
    """What every cell that is done has scored on the present images, by its name, with tests that were made later."""
    for item in items:
        if item.place.finished() is None:
            continue
        results = _results(item.place)
        tests, fingerprint = dict(results.tests), dict(results.fingerprint)
        for source in _missing_tests(benchmark, item):  # the scores of other images than the present ones
            tests.pop(source.name, None)
        for name in _tests_of(benchmark, item):
            test = _later(benchmark, item, name)
            if test is not None:
                tests[name] = test
                described = {"images": test.images, "sha256": _hash_of_test(benchmark, name)}
                fingerprint["tests"] = {**fingerprint["tests"], name: described}
        if REAL not in tests:
            continue
        cell, count = item.cell, item.cell.values["images"]
        merged = ClassificationResults(fingerprint, results.selected, tests, results.validation)
        per_class = None if count == "all" else int(count)
        yield (
            cell.name,
            Trained(cell.values["source"], cell.grid, cell.values["network"], cell.seed, per_class, merged),
        )


def _run_folder(place: Place) -> Path:
    for folder in place.versions():
        if (folder / FILE).is_file():
            return folder
    raise ConfigError(
        f"{place.scores} says that this cell is done, but {place.folder} holds no {FILE}: remove the first to train it"
    )


def _results(place: Place) -> ClassificationResults:
    return read_results(_run_folder(place))


def _tests_of(benchmark: Benchmark, item: Item) -> list[str]:
    """Names of the tests that a cell needs."""
    source = item.cell.values["source"]
    return [other.name for other in benchmark.sources] if source == REAL else [REAL, source]


def _missing_tests(benchmark: Benchmark, item: Item) -> Iterator[Source]:
    """The sources on which a finished cell is still to be tested: new ones, and those with other images than before."""
    known = _results(item.place).fingerprint["tests"]
    sources = {source.name: source for source in benchmark.sources}
    for name in _tests_of(benchmark, item):
        wanted = benchmark.hashes[str(sources[name].test)]
        if known.get(name, {}).get("sha256") != wanted and _later(benchmark, item, name) is None:
            yield sources[name]


def _later_file(benchmark: Benchmark, item: Item, name: str) -> Path:
    return benchmark.out / "tests" / item.cell.name / f"{name}.json"


def _hash_of_test(benchmark: Benchmark, name: str) -> str:
    return benchmark.hashes[str(next(source.test for source in benchmark.sources if source.name == name))]


def _later(benchmark: Benchmark, item: Item, name: str) -> TestScore | None:
    """The score of a test that was made after the training, of the present images."""
    path = _later_file(benchmark, item, name)
    if not path.is_file():
        return None
    stored = parse_json(path.read_text(encoding="utf-8"))
    if stored["experiment"] != item.place.digest or stored["sha256"] != _hash_of_test(benchmark, name):
        return None
    score = stored["score"]
    per_class = {key: (int(correct), int(count)) for key, (correct, count) in score["per_class"].items()}
    return TestScore(float(score["accuracy"]), int(score["images"]), per_class)


def _make_tests(benchmark: Benchmark, item: Item, origins: Origins) -> None:
    """Tests the weights of a finished cell on the sources that came after its training."""
    wanted = list(_missing_tests(benchmark, item))
    if not wanted:
        return
    now = item.sweep.compose(item.cell)["data"]["init_args"]  # the pictures may have moved since the training
    try:
        lock(item.place.folder)
    except ConfigError:  # another process makes them
        return
    try:
        for source in _missing_tests(benchmark, item):
            run, train, val = _run_folder(item.place), now["train"], now.get("val")
            score = test_of_run(run, source.name, source.test, train, val, origins)
            content = {
                "experiment": item.place.digest,
                "sha256": benchmark.hashes[str(source.test)],
                "score": asdict(score),
            }
            write_whole(_later_file(benchmark, item, source.name), json.dumps(content, indent=1) + "\n")
            print(f"{item.cell.name}: tested on {source.name}", flush=True)
    finally:
        unlock(item.place.folder)
