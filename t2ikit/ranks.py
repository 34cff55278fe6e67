"""The processes of one run doing something together: all succeed, or all raise.

Objects go over a group of their own on the CPU that waits as long as it takes: the first rank may score images for an
hour, where a group for gradients gives up after ten minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from t2ikit import stopping

Result = TypeVar("Result")
_PATIENCE = timedelta(days=7)
_KEY = "t2ikit/stop"
_LOOK_SECONDS = 1.0
_groups: dict[int, tuple[Any, Any]] = {}


class OtherRankFailed(RuntimeError):
    """Work failed on another rank, which raises the error itself."""


class Largest:
    """The largest number of all ranks, without a rank or an accelerator waiting: begun at one call, read at the next.

    Every rank must call it equally often, and :meth:`close` at the end.
    """

    def __init__(self) -> None:
        self._number = torch.zeros(1, dtype=torch.int32)
        self._work: Any = None

    def of(self, number: int) -> int:
        """The largest number of the call before, 0 at the first one; of a lone process, that of this call."""
        if count() == 1:
            return number
        largest = self.close()
        self._number.fill_(number)
        self._work = distributed.all_reduce(self._number, distributed.ReduceOp.MAX, group=_group(), async_op=True)
        return largest

    def close(self) -> int:
        """The largest number of the last call."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._number.item())


class _Look:
    """When this rank last asked the others.

    Attributes:
        at: seconds of the monotonic clock.
        told: whether the others know that this rank was asked to stop.
    """

    at = 0.0
    told = False


def stop_if_asked() -> None:
    """Stops long work of :func:`together`, :func:`to_first` or :func:`from_first` that a signal to any rank ends.

    Ranks need not call it equally often: all stop where the work of all would end. The others are asked once a second.

    Raises:
        Stopped: on the ranks that learn of it.
    """
    signal, now = stopping.asked(), time.monotonic()
    reason = None if signal is None else signal.name
    if count() > 1 and (now - _Look.at >= _LOOK_SECONDS or (reason is not None and not _Look.told)):
        _Look.at = now
        try:
            reason = _told(distributed.distributed_c10d._get_default_store(), reason)
        except distributed.DistNetworkError:  # torchrun keeps the store
            stopping.say_launcher_gone()
            reason = reason or "SIGTERM"
    if reason is not None:
        raise stopping.Stopped(reason)


def _told(store: Any, reason: str | None) -> str | None:
    """Tells the other ranks that this one was asked to stop, or hears it from another one."""
    if reason is not None:
        store.set(_KEY, reason)
        _Look.told = True
    elif store.check([_KEY]):
        reason = store.get(_KEY).decode()
    return reason


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
        Stopped: on all of them, if a signal ended it on another.

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
    result: Any = None
    failure, mine = ("", False), None
    try:
        result = work()
    except BaseException as error:  # an interrupt too: the others must not wait for this rank
        stopped = isinstance(error, stopping.Stopped)
        failure, mine = (str(error) if stopped else f"{type(error).__name__}: {error}", stopped), error
    failures: list[Any] = [None] * count()
    distributed.all_gather_object(failures, failure, group=_group())
    if mine is not None:
        mine.on_all_ranks = True  # type: ignore[attr-defined]
        raise mine
    for rank, (message, stopped) in enumerate(failures):
        if stopped:
            raise stopping.Stopped(message)
        if message:
            raise OtherRankFailed(f"rank {rank} failed: {message}")
    return result


def failed_together(error: BaseException) -> bool:
    """Whether every rank raises because of this error: in work that they do together, or stopped together."""
    together = isinstance(error, OtherRankFailed | stopping.Stopped) or getattr(error, "on_all_ranks", False)
    return count() == 1 or together


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _group() -> Any:
    """The patient group of the present process group, made at the first use on all ranks at once."""
    world = distributed.group.WORLD
    kept = _groups.get(0)
    if kept is None or kept[0] is not world:
        kept = _groups[0] = (world, distributed.new_group(backend="gloo", timeout=_PATIENCE))
    return kept[1]
