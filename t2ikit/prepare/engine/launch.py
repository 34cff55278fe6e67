"""On which devices a step runs. The command line shows these texts, so nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Devices:
    """Where it runs.

    A call that was stopped, or killed, continues when it is given again, on as many devices as there are then; the
    result is the same. On SLURM, start it with srun, as training is started.

    Attributes:
        accelerator: auto, cpu, gpu, or another that Lightning knows.
        devices: processes on each machine, one per device; auto for every GPU; or which GPUs: 0,2.
        num_nodes: machines; they share --out.
        strategy: Lightning's: auto, ddp, ddp_spawn.
    """

    accelerator: Annotated[str, "KIND", "--trainer.accelerator"] = "auto"
    devices: Annotated[str | int, "N", "--trainer.devices"] = "auto"
    num_nodes: Annotated[int, "N", "--trainer.num_nodes"] = 1
    strategy: Annotated[str, "NAME", "--trainer.strategy"] = "auto"


@dataclass(frozen=True)
class Launch(Devices):
    """Where it runs, and how it reads.

    Attributes:
        workers: loader processes of each device; 0 loads in the process of the device.
        batch_size: images that are handled at once.
    """

    workers: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for option, value, least in (("batch-size", self.batch_size, 1), ("workers", self.workers, 0)):
            if value < least:
                raise ValueError(f"--{option} must be at least {least}; got {value}")
