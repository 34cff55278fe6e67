"""Which process of a launch this is, before any process group exists, and its share of the cores.

Lightning's launcher, torchrun, srun and jsrun each tell it by environment variables of their own. Once there is a
process group, ``ranks.py`` knows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_VARIABLES = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def first_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the first of the processes that run this command; true for a lone one.

    All variables count: a process that Lightning started on a machine of SLURM has that machine's ``SLURM_PROCID``
    beside its own ``LOCAL_RANK``, and one on the second machine of a cluster without SLURM only ``NODE_RANK`` 1.

    Example:
        >>> first_rank({"NODE_RANK": "1", "LOCAL_RANK": "0"}), first_rank({"SLURM_PROCID": "0"})
        (False, True)
    """
    return all(environment.get(name, "0") in ("", "0") for name in _VARIABLES)


# Rank and size as mpirun and mpiexec tell them: Open MPI, MVAPICH, and MPICH or Intel MPI.
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
# Of a launcher that Lightning knows; srun and jsrun set variables of MPI too.
_KNOWN_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "SLURM_STEPID", "JSM_NAMESPACE_RANK", "LOCAL_RANK")


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Refuses variables of a launch that is over: this process would wait for others that nobody started.

    Raises:
        ValueError: names the variable and what to do.
    """
    unset = "unset it, or start every process by torchrun, srun or with MASTER_ADDR and MASTER_PORT"
    others_known = any(environment.get(name) for name in ("MASTER_ADDR", "MASTER_PORT"))
    for name in ("RANK", "NODE_RANK", "LOCAL_RANK"):
        value = environment.get(name, "")
        if value not in ("", "0") and not others_known:
            raise ValueError(f"{name}={value} is set in the environment, but no launcher started this process: {unset}")
    rank, size = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    if rank.isdecimal() and size.isdecimal() and int(rank) >= int(size):
        raise ValueError(f"RANK={rank} is set in the environment, but there are WORLD_SIZE={size} processes: {unset}")
    _check_slurm(environment)
    _check_mpi(environment)


def _check_mpi(environment: Mapping[str, str]) -> None:
    """Refuses processes of mpirun: none knows of the others, and each would do all of the work."""
    if any(environment.get(name) for name in _KNOWN_LAUNCHERS):
        return
    for rank, size in _MPI:
        alone = environment.get(size, "") in ("", "1")
        name = rank if alone else size
        if not alone or environment.get(name, "") not in ("", "0"):
            raise ValueError(
                f"{name}={environment[name]} is set in the environment, by mpirun or mpiexec, whose processes do not "
                "know of each other: start them by torchrun or srun, or unset it where it is left of another launch"
            )


def _check_slurm(environment: Mapping[str, str]) -> None:
    """Refuses variables of SLURM where srun did not start this process; those of one task alone do no harm."""
    if any(environment.get(name) for name in ("SLURM_STEP_ID", "SLURM_STEPID")):
        return  # srun started this process, or one that did
    tasks, rank = environment.get("SLURM_NTASKS", ""), environment.get("SLURM_PROCID", "")
    start = "start the command by srun, or unset the variables of SLURM"
    if rank not in ("", "0"):
        raise ValueError(f"SLURM_PROCID={rank} is set in the environment, but srun did not start this process: {start}")
    if not tasks or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return  # Lightning does not look at SLURM then
    if tasks != "1":
        raise ValueError(
            f"SLURM_NTASKS={tasks} is set in the environment, but srun did not start this process: {start}"
        )
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        if not environment.get(name):
            raise ValueError(f"SLURM_NTASKS={tasks} is set in the environment, but {name} is not: {start}")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_share_of_cores(processes: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of one of some processes beside each other: torch gets its share of the cores as threads, unless
    the user has set ``OMP_NUM_THREADS``.

    Example:
        >>> with_share_of_cores(2, {"OMP_NUM_THREADS": "3"})
        {'OMP_NUM_THREADS': '3'}
    """
    return {"OMP_NUM_THREADS": str(max(1, cores() // processes)), **environment}


def loader_process_died(error: RuntimeError) -> bool:
    """Whether torch says by an error that a process of a data loader is gone, by either way in which it notices."""
    return re.search(r"DataLoader worker \(pid.*?\) (is killed by signal|exited unexpectedly)", str(error)) is not None
