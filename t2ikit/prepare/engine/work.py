"""What a step computes, and on which devices: the two things that the engine (``engine.py``) is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from t2ikit.prepare.engine.shards import Rejected


@dataclass(frozen=True)
class Launch:
    """How a step is run: the arguments of Lightning's ``Trainer``, and how items are read.

    Attributes:
        accelerator: "auto", "cpu", "gpu", ...
        devices: how many of each machine, "auto" for all, or which: "0,2".
        num_nodes: machines; on SLURM as many as the job has.
        strategy: "auto", "ddp", "ddp_spawn", or another of Lightning's.
        workers: loader processes of each rank; 0 loads in the rank itself.
        batch_size: items that go through ``Work.compute`` at once.
    """

    accelerator: str = "auto"
    devices: str | int = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    workers: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for option, value, least in (("batch-size", self.batch_size, 1), ("workers", self.workers, 0)):
            if value < least:
                raise ValueError(f"--{option} must be at least {least}; got {value}")


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
        """Forgets what was kept from earlier batches, where that decides the last bit of a result."""

    @abstractmethod
    def compute(self, items: list[Any]) -> Sequence[Any]:
        """One result an item, in order; or what ``finish`` makes one of, so that a device need not be waited for."""

    def finish(self, results: Sequence[Any]) -> Sequence[bytes | Rejected]:
        """The results of a shard, in another thread, while the device computes the next shard."""
        return results

    def facts(self, results: Sequence[bytes | Rejected]) -> Mapping[str, int]:
        """Numbers to remember of the results of a shard; see ``Results.largest``."""
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
