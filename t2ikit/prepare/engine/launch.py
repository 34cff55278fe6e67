"""On which devices a step runs. The command line shows these texts, so nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Devices:
    """Where it runs.

    To continue after a call was stopped or killed, give the same command again; the number of devices may be another,
    and the result is the same. On SLURM, start the command with srun, as you start training.

    Attributes:
        accelerator: auto, cpu, gpu, or another that Lightning knows.
        devices: number of processes on each machine, one per device; auto takes every GPU; 0,2 names GPUs.
        num_nodes: number of machines, which must share the folder of --out.
        strategy: strategy of Lightning: auto, ddp, ddp_spawn.
    """

    accelerator: Annotated[str, "KIND", "--trainer.accelerator"] = "auto"
    devices: Annotated[str | int, "N", "--trainer.devices"] = "auto"
    num_nodes: Annotated[int, "N", "--trainer.num_nodes"] = 1
    strategy: Annotated[str, "NAME", "--trainer.strategy"] = "auto"


@dataclass(frozen=True)
class Launch(Devices):
    """Where it runs, and how it reads.

    Attributes:
        workers: loader processes for each device; with 0 the process of the device loads, too.
        batch_size: images at once.
    """

    workers: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for option, value, least in (("batch-size", self.batch_size, 1), ("workers", self.workers, 0)):
            if value < least:
                raise ValueError(f"--{option} must be at least {least}; got {value}")
