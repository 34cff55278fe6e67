"""Two real processes that do something together: all succeed, or all raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import distributed

from t2ikit import ranks, stopping

TwoRanks = Callable[[Callable[[], Any]], list[Any]]


def fail_on(rank: int, error: BaseException) -> str:
    if ranks.this() == rank:
        raise error
    return "fine"


def test_alone() -> None:
    assert (ranks.count(), ranks.this()) == (1, 0)
    assert ranks.together(lambda: 3) == [3] and ranks.from_first(lambda: 4) == 4
    with pytest.raises(ZeroDivisionError):
        ranks.from_first(lambda: 1 / 0)


def test_results_of_two_ranks(two_ranks: TwoRanks) -> None:
    def work() -> Any:
        shared = ranks.together(lambda: 10 + ranks.this())
        return shared, ranks.from_first(lambda: ranks.this())

    assert two_ranks(work) == [([10, 11], 0)] * 2


def test_large_results_go_to_the_first_rank_alone(two_ranks: TwoRanks) -> None:
    assert ranks.to_first(lambda: 3) == [3] and ranks.share(5) == range(5)
    found = two_ranks(lambda: (ranks.to_first(lambda: "rows" * ranks.this()), ranks.share(5), ranks.share(0)))
    assert found == [(["", "rows"], range(2), range(0)), (None, range(2, 5), range(0))]
    failed = two_ranks(lambda: ranks.to_first(lambda: fail_on(0, ValueError("no memory"))))
    assert failed == ["ValueError: no memory", "OtherRankFailed: rank 0 failed: ValueError: no memory"]


@pytest.mark.parametrize("error", [ValueError("too few images"), KeyboardInterrupt("stop")], ids=["error", "interrupt"])
def test_a_failure_on_one_rank_is_raised_on_all(two_ranks: TwoRanks, error: BaseException) -> None:
    text = f"{type(error).__name__}: {error}"
    found = two_ranks(lambda: ranks.from_first(lambda: fail_on(0, error)))
    assert found == [text, f"OtherRankFailed: rank 0 failed: {text}"]


def test_the_other_rank_may_fail_too(two_ranks: TwoRanks) -> None:
    found = two_ranks(lambda: ranks.together(lambda: fail_on(1, ValueError("no memory"))))
    assert found == ["OtherRankFailed: rank 1 failed: ValueError: no memory", "ValueError: no memory"]


def test_a_rank_that_misses_the_store_says_that_torchrun_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone:
        def check(self, keys: list[str]) -> bool:
            raise distributed.DistNetworkError("Failed to recv, got 0 bytes")

    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(ranks._Look, "at", 0.0)
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_store", Gone)
    stopping.say_launcher_gone.cache_clear()
    for _ in range(2):
        ranks._Look.at = 0.0
        with pytest.raises(stopping.Stopped, match="SIGTERM"):
            ranks.stop_if_asked()
    assert capsys.readouterr().err.count("torchrun is gone") == 1
