"""Two real processes that do something together: all succeed, or all raise."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from t2ikit import ranks


def two(tmp_path: Path, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` returns, or its error as text, on each of two ranks."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def main(rank: int) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=rank, world_size=2)
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


def fail_on(rank: int, error: BaseException) -> str:
    if ranks.this() == rank:
        raise error
    return "fine"


def test_alone() -> None:
    assert (ranks.count(), ranks.this()) == (1, 0)
    assert ranks.together(lambda: 3) == [3] and ranks.from_first(lambda: 4) == 4
    assert ranks.from_first_kept(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        ranks.from_first(lambda: 1 / 0)


def test_results_of_two_ranks(tmp_path: Path) -> None:
    def work() -> Any:
        shared = ranks.together(lambda: 10 + ranks.this())
        return shared, ranks.from_first(lambda: ranks.this()), ranks.from_first_kept(lambda: "large")

    assert two(tmp_path, work) == [([10, 11], 0, "large"), ([10, 11], 0, None)]


@pytest.mark.parametrize("error", [ValueError("too few images"), KeyboardInterrupt("stop")], ids=["error", "interrupt"])
def test_a_failure_on_one_rank_is_raised_on_all(tmp_path: Path, error: BaseException) -> None:
    text = f"{type(error).__name__}: {error}"
    found = two(tmp_path, lambda: ranks.from_first(lambda: fail_on(0, error)))
    assert found == [text, f"OtherRankFailed: rank 0 failed: {text}"]


def test_the_other_rank_may_fail_too(tmp_path: Path) -> None:
    found = two(tmp_path, lambda: ranks.together(lambda: fail_on(1, ValueError("no memory"))))
    assert found == ["OtherRankFailed: rank 1 failed: ValueError: no memory", "ValueError: no memory"]
