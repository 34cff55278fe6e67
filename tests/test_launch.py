"""Which process is the first one: by Lightning's launcher, torchrun and srun, on one machine and on several."""

import os
from pathlib import Path

import pytest

from t2ikit.launch import first_rank
from t2ikit.run import folder as run_folder


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": ""}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),  # torchrun, second machine
        ({"LOCAL_RANK": "1"}, False),  # started by Lightning
        ({"NODE_RANK": "1"}, False),  # started by hand on the second machine
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by Lightning in an interactive job
        ({"SLURM_PROCID": "2"}, False),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
    ],
)
def test_one_process_of_a_launch_is_the_first(environment: dict[str, str], first: bool) -> None:
    assert first_rank(environment) is first


def test_the_second_machine_of_a_cluster_follows_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without SLURM or torchrun, Lightning's processes have NODE_RANK and no RANK."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC", "T2IKIT_RUN"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "host")
    monkeypatch.setenv("NODE_RANK", "0")
    first = run_folder.choose(str(tmp_path), "e", None)
    monkeypatch.setenv("NODE_RANK", "1")
    second = run_folder.choose(str(tmp_path), "e", None)
    assert (first.path, first.created, second.created) == (second.path, True, False)
