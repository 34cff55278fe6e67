"""The processes of one run doing something together: all succeed, or all raise.

Objects go over a group of their own on the CPU that waits as long as it takes: the first rank may score images for an
hour, where a group for gradients gives up after ten minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

Result = TypeVar("Result")
_PATIENCE = timedelta(days=7)
_groups: dict[int, tuple[Any, Any]] = {}


class OtherRankFailed(RuntimeError):
    """Work failed on another rank, which raises the error itself."""


def count() -> int:
    """Number of ranks; 1 without a process group."""
    return distributed.get_world_size() if _running() else 1


def this() -> int:
    """This rank, from 0."""
    return distributed.get_rank() if _running() else 0


def together(work: Callable[[], Result]) -> list[Result]:
    """Runs ``work`` on every rank; every rank must call it.

    Args:
        work: its result is pickled, so it should be small.

    Returns:
        The results of all ranks, in their order.

    Raises:
        OtherRankFailed: on the ranks where ``work`` went well, if it failed on another; names rank and error.

    Example:
        >>> together(lambda: this())
        [0]
    """
    if count() == 1:
        return [work()]
    result = _all_well(work)
    gathered: list[Any] = [None] * count()
    distributed.all_gather_object(gathered, result, group=_group())
    return gathered


def to_first(work: Callable[[], Result]) -> list[Result] | None:
    """As :func:`together` for results that are too large for every rank: the first one gets all, the others None.

    Example:
        >>> to_first(lambda: this())
        [0]
    """
    if count() == 1:
        return [work()]
    result = _all_well(work)
    gathered: list[Any] | None = [None] * count() if this() == 0 else None
    distributed.gather_object(result, gathered, dst=0, group=_group())
    return gathered


def from_first(work: Callable[[], Result]) -> Result:
    """Runs ``work`` on the first rank alone; every rank gets its result, or raises (see :func:`together`).

    Example:
        >>> from_first(lambda: "read once")
        'read once'
    """
    result: Any = together(lambda: work() if this() == 0 else None)[0]
    return result


def share(total: int) -> range:
    """This rank's share of ``total`` things: consecutive ones, in the order of the ranks.

    Example:
        >>> share(10)
        range(0, 10)
    """
    return range(total * this() // count(), total * (this() + 1) // count())


def _all_well(work: Callable[[], Result]) -> Result:
    """The result of ``work`` on this rank, if it went well on all; else raises on all."""
    result, failure, mine = None, "", None
    try:
        result = work()
    except BaseException as error:  # an interrupt too: the others must not wait for this rank
        failure, mine = f"{type(error).__name__}: {error}", error
    failures: list[Any] = [None] * count()
    distributed.all_gather_object(failures, failure, group=_group())
    if mine is not None:
        raise mine
    for rank, message in enumerate(failures):
        if message:
            raise OtherRankFailed(f"rank {rank} failed: {message}")
    return result  # type: ignore[return-value]


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _group() -> Any:
    """The patient group of the present process group, made at the first use on all ranks at once."""
    world = distributed.group.WORLD
    kept = _groups.get(0)
    if kept is None or kept[0] is not world:
        kept = _groups[0] = (world, distributed.new_group(backend="gloo", timeout=_PATIENCE))
    return kept[1]
