"""Fixtures of the whole suite: one thread, and the folder of sample data if there is one."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from t2ikit.config import origins

sys.path.append(str(Path(__file__).parents[1]))  # for benchmarks/, which is not installed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: at the end, the other processes would wait for it."""
    items.sort(key=lambda item: item.path.name != "test_kill.py")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Notes the faults that a test is about, for the table of :func:`pytest_terminal_summary`."""
    report = (yield).get_result()  # type: ignore[misc]
    if report.when == "call" or report.outcome != "passed":
        rows = [(*mark.args, report.outcome) for mark in reversed(list(item.iter_markers("fault")))]
        report.user_properties += [("fault", row) for row in rows]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With ``-m fault``: a table of fault, outcome, and the tests that saw it."""
    if config.getoption("-m") != "fault":
        return
    rows: dict[tuple[str, str], Counter[str]] = {}
    seen: dict[tuple[str, str], str] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for fault, outcome, verdict in (
                row for name, row in getattr(report, "user_properties", ()) if name == "fault"
            ):
                rows.setdefault((fault, outcome), Counter())[verdict] += 1
                seen[fault, outcome] = report.nodeid.partition("[")[0]
    terminalreporter.section("faults")
    terminalreporter.line("| fault | outcome | evidence |\n|---|---|---|")
    for key in sorted(rows):
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in rows[key].items())
        terminalreporter.line(f"| {' | '.join(key)} | `{seen[key]}`: {verdicts} |")


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the kit remembers of the tests' files does not stay in the cache of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T2IKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _parts_of_the_tests() -> Iterator[None]:
    """Experiments of the tests may name the classes of tests/run/tiny_parts.py, wherever the test runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origins, "LIBRARIES", (*origins.LIBRARIES, "tiny_parts"))
        yield


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real photos, embeddings and check vectors named by T2IKIT_TEST_DATA; skips without."""
    folder = os.environ.get("T2IKIT_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("T2IKIT_TEST_DATA names no folder of sample data")
    return Path(folder)


@pytest.fixture
def two_ranks(tmp_path: Path) -> Callable[[Callable[[], Any]], list[Any]]:
    """Runs ``work`` on two ranks: what it returns on each, or its error as text."""
    numbers = count()

    def run(work: Callable[[], Any]) -> list[Any]:
        context, meeting = multiprocessing.get_context("fork"), tmp_path / f"meeting-{next(numbers)}"
        queue = context.Queue()

        def main(rank: int) -> None:
            distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
            try:
                result = work()
            except BaseException as error:
                result = f"{type(error).__name__}: {error}"
            queue.put((rank, result))

        processes = [context.Process(target=main, args=(rank,)) for rank in range(2)]
        for process in processes:
            process.start()
        results = dict(queue.get(timeout=200) for _ in processes)
        for process in processes:
            process.join(200)
        return [results[rank] for rank in range(2)]

    return run
