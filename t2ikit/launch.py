"""Which process of a launch this is, before any process group exists.

Lightning's launcher, torchrun, srun and jsrun each tell it by environment variables of their own. Once there is a
process group, ``ranks.py`` knows.
"""

from __future__ import annotations

import os
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
