"""Options of the steps that run on the engine: devices, processes, batches."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t2ikit.prepare.engine.work import Launch


def add_launch(
    parser: Any,
    accelerator: str = "auto",
    devices: str = "auto",
    workers: int | None = None,
    batch_size: int | None = None,
    shard_size: bool = False,
) -> None:
    """Adds them to a parser or to a group of one.

    Args:
        parser: of the step.
        accelerator, devices: defaults.
        workers, batch_size: defaults; None leaves the option out.
        shard_size: whether the step makes chunks.
    """
    group = parser
    if isinstance(parser, argparse.ArgumentParser):
        group = parser.add_argument_group(
            "where it runs",
            "A call that was stopped, or killed, goes on where it was when it is given again, on as many devices as "
            "there are then; the result is the same. On SLURM, start it with srun as training is started.",
        )
    group.add_argument(
        "--accelerator", "--trainer.accelerator", default=accelerator, metavar="KIND", help="auto, cpu, gpu, ..."
    )
    group.add_argument(
        "--devices",
        "--trainer.devices",
        default=devices,
        metavar="N",
        help="processes of each machine, one a device; auto for every GPU; or which GPUs: 0,2",
    )
    group.add_argument(
        "--num-nodes", "--trainer.num_nodes", type=int, default=1, metavar="N", help="machines; they share --out"
    )
    group.add_argument(
        "--strategy", "--trainer.strategy", default="auto", metavar="NAME", help="of Lightning: auto, ddp, ddp_spawn"
    )
    if workers is not None:
        group.add_argument(
            "--workers", type=int, default=workers, help="loader processes of each device; 0 for none beside it"
        )
    if batch_size is not None:
        group.add_argument("--batch-size", type=int, default=batch_size, help="images that are handled at once")
    if shard_size:
        group.add_argument(
            "--shard-size",
            type=int,
            metavar="N",
            help="images of a chunk, which is what a killed call loses at most; as many as make 64 MB if not given",
        )


def launch_of(args: argparse.Namespace, batch_size: int | None = None, workers: int | None = None) -> Launch:
    """What was parsed; ``batch_size`` and ``workers`` where the step has no such option."""
    from t2ikit.prepare.engine.work import Launch

    return Launch(
        args.accelerator,
        args.devices,
        args.num_nodes,
        args.strategy,
        getattr(args, "workers", 0) if workers is None else workers,
        args.batch_size if batch_size is None else batch_size,
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
