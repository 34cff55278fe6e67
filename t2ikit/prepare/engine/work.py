"""What a step computes: the engine (``engine.py``) is given this and a ``Launch``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from t2ikit.prepare.engine.shards import Rejected


class Work(ABC):
    """What a step computes. Picklable before ``setup``: it goes to loader processes, and with "ddp_spawn" to ranks.

    Attributes:
        identity: hash of everything that decides the results: inputs, options, weights.
    """

    identity: str

    @abstractmethod
    def __len__(self) -> int:
        """Items, in their fixed order."""

    @abstractmethod
    def load(self, index: int) -> Any:
        """One item, in a loader process."""

    def setup(self, device: torch.device) -> None:  # noqa: B027 - most work has no models
        """Brings models to the device, once a process, before the first batch."""

    def begin_shard(self) -> None:  # noqa: B027
        """Forgets what was kept from earlier batches, if that could change the last bit of a result."""

    @abstractmethod
    def compute(self, items: list[Any]) -> Sequence[Any]:
        """One result per item, in order; or what ``finish`` turns into one, so that a device need not be waited for."""

    def finish(self, results: Sequence[Any]) -> Sequence[bytes | Rejected]:
        """The results of a shard, in another thread, while the device computes the next shard."""
        return results

    def facts(self, results: Sequence[bytes | Rejected]) -> Mapping[str, int]:
        """Numbers to keep about the results of a shard; see ``Results.largest``."""
        return {}


class HostWork(Work):
    """Work that needs no device: ``load`` makes the results, and loader processes write whole shards of them.

    Sent to the rank, results would be copied four times, and one process would hash and write what all loaders make.
    """

    @abstractmethod
    def load(self, index: int) -> bytes | Rejected:
        """The result of one item, in a loader process."""

    def compute(self, items: list[Any]) -> Sequence[bytes | Rejected]:
        """Nothing is left to do."""
        return items
