"""Which process is the first one: by Lightning's launcher, torchrun and srun, on one machine and on several."""

import os
from pathlib import Path

import pytest

from t2ikit import cli
from t2ikit.launch import check_launch, first_rank, loader_process_died
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


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "1"}, "RANK=1"),
        ({"NODE_RANK": "2"}, "NODE_RANK=2"),
        ({"LOCAL_RANK": "3", "WORLD_SIZE": "4"}, "LOCAL_RANK=3"),
        ({"RANK": "1", "WORLD_SIZE": "1", "MASTER_ADDR": "host"}, "RANK=1"),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID=1"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, "SLURM_PROCID=1"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, "SLURM_NTASKS=2"),
        ({"SLURM_NTASKS": "1"}, "SLURM_PROCID is not"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_RANK=1"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
        ({"PMI_RANK": "3"}, "PMI_RANK=3"),
        ({"PMI_RANK": "0", "PMI_SIZE": "8", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"}, "PMI_SIZE=8"),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, "MV2_COMM_WORLD_SIZE=2"),
    ],
)
def test_variables_of_a_launch_that_is_over_are_refused(environment: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_launch(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "", "LOCAL_RANK": "0", "NODE_RANK": "0"},
        {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "TORCHELASTIC_RUN_ID": "a"},
        {"NODE_RANK": "1", "MASTER_ADDR": "host"},  # started by hand on the second machine
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"},
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"},  # sbatch, one task
        {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "PMI_RANK": "0", "PMI_SIZE": "1"},
        {"PMI_RANK": "1", "PMI_SIZE": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "JSM_NAMESPACE_RANK": "1"},
    ],
)
def test_a_launch_that_runs_is_taken(environment: dict[str, str]) -> None:
    check_launch(environment)


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_commands_of_several_processes_name_the_variable_before_any_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in [v for v in os.environ if v.startswith(("SLURM_", "MASTER_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv(name, "1")
    experiment = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"
    for words in (
        ["run", str(experiment)],
        ["prepare", "captions", "--out", "data"],
        ["sweep", str(experiment)],
        ["verify-resume", str(experiment)],
    ):
        assert cli.main(words) == 2
        assert f"{name}=1 is set in the environment" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "died"),
    [
        ("DataLoader worker (pid 13579) is killed by signal: Killed. ", True),
        ("DataLoader worker (pid(s) 13579, 13581) exited unexpectedly", True),
        ("Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: the picture was killed", False),
    ],
)
def test_a_loader_process_that_died(message: str, died: bool) -> None:
    assert loader_process_died(RuntimeError(message)) is died
