"""The commands as a user calls them: what they write, and the table of every mistake with the message promised."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch  # noqa: F401  its log handler keeps the stderr of its first import
import pytest
import torch
import yaml

from t2ikit import cli

PARTS = Path(__file__).parent / "run" / "tiny_parts.py"
EXPERIMENT = """
model: {class_path: tiny_parts.Model, init_args: {net: {class_path: tiny_parts.Line}}}
data: {class_path: tiny_parts.Data}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 4
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
callbacks: {gate: {class_path: tiny_parts.Gate}, save: {class_path: tiny_parts.Save}}
"""
Run = Callable[..., SimpleNamespace]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Calls a command in an empty folder that holds e.yaml: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(PARTS.parent))
    (tmp_path / "e.yaml").write_text(EXPERIMENT)

    def call(*arguments: str) -> SimpleNamespace:
        capfd.readouterr()
        before = list(sys.path)
        try:
            status = cli.main(arguments)
        finally:
            sys.path[:] = before
        captured = capfd.readouterr()
        return SimpleNamespace(status=status, out=captured.out, err=captured.err)

    return call


def losses(folder: Path) -> dict[int, str]:
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return {int(step): value for step, name, value in rows if name == "train/loss"}


# ------------------------------------------------------------------ a run


def test_the_last_next_line_doubles_the_option_that_ended_the_run(run: Run) -> None:
    done = run("run", "e.yaml", "--trainer.max_steps", "5000", "--trainer.max_epochs", "1")
    longer = "--trainer.max_steps 5000 --trainer.max_epochs 2 --resume runs/e/version_0"
    assert done.status == 0 and done.out.endswith(f"Next:\n  t2ikit run e.yaml {longer}\n")


def test_run_writes_what_it_promises(run: Run, tmp_path: Path) -> None:
    done = run("run", "e.yaml", "--trainer.max_steps", "3", "--model.lr=0.05")
    assert done.status == 0
    folder = tmp_path / "runs" / "e" / "version_0"
    assert "Run folder: runs/e/version_0" in done.out and "tensorboard --logdir runs/e" in done.out
    longer = "t2ikit run e.yaml --model.lr 0.05 --trainer.max_steps 6 --resume runs/e/version_0"
    assert done.out.endswith(f"Next:\n  {longer}\n")
    assert "runs/e/version_0/config.yaml" in done.out and "runs/e/version_0/checkpoints/" in done.out
    names = {path.name.split(".")[0] for path in folder.glob("[!.]*")}
    assert names == {"config", "environment", "plugins", "checkpoints", "events", "metrics", "finished"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.05 and config["trainer"]["max_steps"] == 3
    assert (folder / "config.yaml").read_text().startswith("# t2ikit ")
    assert sorted(losses(folder)) == [0, 1, 2]
    assert not (tmp_path / "lightning_logs").exists()
    # The kept file is an experiment itself, and makes the same run.
    assert run("run", str(folder / "config.yaml")).status == 0
    again = tmp_path / "runs" / "e" / "version_1"
    assert losses(again) == losses(folder)
    assert yaml.safe_load((again / "config.yaml").read_text()) == config


def test_resume_goes_on_in_the_folder(run: Run, tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "e"
    assert run("run", "e.yaml", "--trainer.max_steps", "6").status == 0
    whole = losses(runs / "version_0")
    assert run("run", "e.yaml", "--trainer.max_steps", "5").status == 0
    # As if it was killed in step 5, while its checkpoint was being written.
    torn = runs / "version_1" / "checkpoints" / "step-00000005.ckpt"
    torn.write_bytes(torn.read_bytes()[:500])
    done = run("run", "e.yaml", "--trainer.max_steps", "6", "--resume", "last")
    assert done.status == 0 and "Resuming from" in done.out and "step-00000004.ckpt" in done.out
    assert "changed: trainer.max_steps: 5 -> 6" in done.out
    assert losses(runs / "version_1") == whole
    assert (runs / "version_1" / "config.resume-1.yaml").is_file()
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    done = run("run", "e.yaml", "--trainer.max_steps", "6", "--resume", "last")
    assert done.status == 0 and "has made 6 of 6 steps: nothing left to train" in done.out


def test_checkpoint_does_not_change_the_experiment(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI would put lr back to the hyper-parameter of the checkpoint."""
    import tiny_parts  # type: ignore[import-not-found]

    seen: list[float] = []
    monkeypatch.setattr(tiny_parts.Model, "on_train_start", lambda self: seen.append(self.lr))
    assert run("run", "e.yaml", "--model.lr", "0.01").status == 0
    stored = torch.load(tmp_path / "runs/e/version_0/checkpoints/step-00000004.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["lr"] == 0.01
    changed = ["run", "e.yaml", "--resume", "last", "--trainer.max_steps", "5", "--model.lr", "0.777"]
    refused = run(*changed)
    assert refused.status == 2 and "model.lr was 0.01 and is 0.777 now" in refused.err
    assert "accept the change with --allow model.lr" in refused.err
    assert run(*changed, "--allow", "model.lr").status == 0
    assert seen == [0.01, 0.777]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_says_how_to_go_on(run: Run, tmp_path: Path, name: str) -> None:
    stop = f"{{class_path: tiny_parts.Stop, init_args: {{at: 3, how: {name}}}}}"
    done = run("run", "e.yaml", "--callbacks.save.every", "2", "--callbacks.stop", stop)
    again = f"t2ikit run e.yaml --callbacks.save.every 2 --callbacks.stop '{stop}' --resume auto\n"
    assert done.status == 75 and done.err.endswith(f"\nStopped by {name} at step 3. Go on with: {again}")
    folder = tmp_path / "runs/e/version_0"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-00000002.ckpt",
        "step-00000003.ckpt",
    ]
    assert run("run", "e.yaml", "--resume", "auto").status == 0
    assert sorted(losses(folder)) == [0, 1, 2, 3]
    done = run("run", "e.yaml", "--callbacks.save", "null", "--callbacks.stop", stop)
    assert done.status == 75 and "step 3. Nothing was saved: the experiment has no checkpoint callback." in done.err


@pytest.mark.long
def test_slurm_queues_a_stopped_run_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job file of the docs under a played SLURM: one task, SIGUSR1 in its third step, then the same job again."""
    programs = {
        "srun": 'shift; exec env SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_STEP_ID=0 "$@"',
        "scontrol": f'echo "$@" >> {tmp_path}/requeued',
        "t2ikit": f'exec {sys.executable} -m t2ikit "$@"',
    }
    for name, text in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "t2ikit", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    environment = {**os.environ, **job, "SLURM_JOB_NODELIST": "localhost"}
    environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    shutil.copy(PARTS, tmp_path)
    script = Path(__file__).parent.parent / "docs" / "launch" / "slurm.sbatch"
    stop = "{class_path: tiny_parts.Stop, init_args: {at: 3, how: SIGUSR1}}"
    command = ["bash", str(script), "e.yaml", "--callbacks.stop", stop]
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 75 and "Stopped by SIGUSR1 at step 3." in first.stderr, first.stderr[-2000:]
    assert second.returncode == 0, second.stderr[-2000:]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert sorted(losses(tmp_path / "runs/e/version_0")) == [0, 1, 2, 3]
    assert not list(tmp_path.rglob("hpc_ckpt*"))


def test_an_error_in_the_middle_keeps_run_and_traceback(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a defect in the middle"):
        run("run", "e.yaml", "--callbacks.stop", "{class_path: tiny_parts.Stop, init_args: {at: 2, how: error}}")
    names = [path.name for path in (tmp_path / "runs/e/version_0/checkpoints").iterdir()]
    assert names == ["step-00000001.ckpt"]  # the error came before the end of step 2


def test_print_config_and_help(run: Run, tmp_path: Path) -> None:
    printed = run("run", "e.yaml", "--print_config", "--data.batch_size", "2")
    assert printed.status == 0
    assert yaml.safe_load(printed.out)["data"]["init_args"] == {"root": "", "batch_size": 2}
    general = run("run", "--help")
    assert general.status == 0 and "--resume last" in general.out and "examples:" in general.out
    own = run("run", "e.yaml", "--help")
    assert own.status == 0 and "--model.net.width [1]  how many inputs." in own.out
    assert not (tmp_path / "runs").exists()


def test_allow_names_a_key_of_the_experiment_or_of_the_data(run: Run) -> None:
    assert run("run", "e.yaml").status == 0
    refused = run("run", "e.yaml", "--resume", "last", "--allow", "model.lrr")
    assert refused.status == 2 and "--allow model.lrr: what may differ on a resume is a key of the exp" in refused.err
    assert "data.seed" in refused.err and "nearest known: 'model.lr'" in refused.err


# ------------------------------------------------------------------ mistakes

MISTAKES: list[tuple[list[str], str]] = [
    (["missing.yaml"], "no experiment file missing.yaml"),
    (["ee.yaml"], "no experiment file ee.yaml; nearest known: 'e.yaml'"),
    ([], "which experiment? t2ikit run EXPERIMENT, a file or a name of `t2ikit experiments`"),
    (["e.yaml", "e.yaml"], "one experiment a run"),
    (["e.yaml", "-x"], "unknown option '-x'"),
    (["e.yaml", "--data.root"], "--data.root needs a value"),
    (["e.yaml", "--data.root", "--resume", "last"], "--data.root needs a value"),
    (["e.yaml", "--print_config=yes"], "--print_config takes no value"),
    (["e.yaml", "--trainr.max_steps", "1"], "unknown option 'trainr'; nearest known: 'trainer'"),
    (["e.yaml", "--resum", "last"], "unknown option 'resum'; nearest known: 'resume'"),
    (["e.yaml", "--stge", "one"], "unknown option 'stge'; nearest known: 'stage'"),
    (["e.yaml", "--print_confg"], "unknown option 'print_confg'; nearest known: 'print_config'"),
    (["e.yaml", "--callbacks.gat", "null"], "the experiment has no callback 'gat'; nearest known: 'gate'"),
    (["e.yaml", "--loggers.tensorbord", "null"], "no logger 'tensorbord'; nearest known: 'tensorboard'"),
    (["e.yaml", "--trainer.max_stps", "1"], "trainer: unknown key 'max_stps'; nearest known: 'max_steps'"),
    (["e.yaml", "--trainer.max_steps", "many"], "trainer.max_steps: expected int, got many"),
    (["e.yaml", "--data.rot", "x"], "data.init_args.rot: Data takes no 'rot'; nearest known: 'root'"),
    (
        ["e.yaml", "--data.root", "nowhere"],
        "no prepared data in nowhere: set --data.root or run `t2ikit prepare encode`",
    ),
    (["e.yaml", "--model.net.widht", "1"], "Line takes no 'widht'; nearest known: 'width'"),
    (["e.yaml", "--model.net.width", "wide"], "model.init_args.net.init_args.width: expected int, got wide"),
    (["e.yaml", "--model.net", "tiny_parts.Lime"], "tiny_parts has no class 'Lime'; nearest known: 'Line'"),
    (["e.yaml", "--model.net", "tiny_part.Line"], "no module 'tiny_part'"),
    (["e.yaml", "--callbacks.gate.tau", "1.5"], "callbacks.gate (Gate): tau must lie in [0, 1], got 1.5"),
    (["e.yaml", "--callbacks.new.tau", "1"], "callbacks.new: expected {class_path: ..., init_args: ...}"),
    (
        ["e.yaml", "--data.batch_size", "6", "--trainer.devices", "4"],
        "data.init_args.batch_size: 6 samples a step cannot",
    ),
    (["e.yaml", "--callbacks.gate.tau", "1", "--data.batch_size", "8"], "callbacks.gate: tau 1 and batch size 8"),
    (["e.yaml", "--trainer.accelerator", "abacus"], "trainer: "),
    (["e.yaml", "--resume", "last"], "--resume last: no version in runs/e holds a complete checkpoint"),
    (["e.yaml", "--resume", "nowhere.ckpt"], "--resume nowhere.ckpt: no such file"),
    (["e.yaml", "--allow", "data.seed"], "--allow says what may differ from the checkpoint of a --resume"),
    (["torn.yaml"], "torn.yaml, line 2: not YAML"),
    (["circle.yaml"], "extends goes in a circle: circle.yaml -> circle.yaml"),
    (["orphan.yaml"], "orphan.yaml: extends: no file 'base/trainin.yaml'"),
    (["typo.yaml"], "typo.yaml: unknown key 'calbacks'; nearest known: 'callbacks'"),
    (["key.yaml"], "data.init_args.root: ${data.init_args.rot} names no key"),
]
FILES = {
    "torn": "trainer: {devices: 1\nmodel: 3",
    "circle": "extends: [circle.yaml]",
    "orphan": "extends: [base/trainin.yaml]",
    "typo": "calbacks: {}",
    "key": "extends: [e.yaml]\ndata: {init_args: {root: '${data.init_args.rot}'}}",
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_mistake(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    for name, text in FILES.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    refused = run("run", *arguments)
    assert refused.status == 2
    assert message in refused.err.splitlines()[-1] and "Traceback" not in refused.err
    assert not list(tmp_path.glob("runs/*"))  # nothing is left behind
    assert (tmp_path / "touched").exists() == ("nowhere" in arguments)  # only a missing root is found by looking at it


REAL_MISTAKES: list[tuple[list[str], str]] = [
    (["--callbacks.cutmix.tau", "1.4"], "callbacks.cutmix: tau must lie in [0, 1], got 1.4"),
    (["--callbacks.cutmix.p", "-0.1"], "callbacks.cutmix: p must lie in [0, 1], got -0.1"),
    (["--callbacks.cutmix.setting", "cm5"], "callbacks.cutmix: setting must be one of cm2, cm4"),
    (
        [
            "--model.objective.process",
            "t2ikit.diffusion.RectifiedFlow",
            "--model.objective.process.schedule",
            "sigmoid",
        ],
        "an argument of GaussianD",
    ),
    (["--model.denoiser", "t2ikit.denoisers.CADJ"], "nearest known: 'CADI'"),
    (["--model.denoiser.num_latent", "4"], "CADI takes no 'num_latent'; nearest known: 'num_latents'"),
    (["--model.objective.text_drop", "2"], "text_drop is a probability in [0, 1]"),
    (["--data.batch_size", "64", "--trainer.accumulate_grad_batches", "3"], "data.init_args.batch_size: 64 samples"),
    (["--callbacks.ema.decay", "much"], "callbacks.ema.init_args.decay: expected float"),
]


@pytest.mark.parametrize(("arguments", "message"), REAL_MISTAKES, ids=[" ".join(words) for words, _ in REAL_MISTAKES])
def test_mistake_in_the_quickstart(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "mine.yaml").write_text("extends: [quickstart.yaml]")
    refused = run("run", "mine.yaml", *arguments)
    assert refused.status == 2
    assert message in refused.err.splitlines()[-1] and "Traceback" not in refused.err
    assert not list(tmp_path.glob("runs/*"))


def test_help_of_an_experiment_names_the_classes_that_may_stand_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: [quickstart.yaml]")
    lines = run("run", "mine.yaml", "--help").out.splitlines()

    def said_of(option: str) -> str:
        return next(after for line, after in pairwise(lines) if line.startswith(f"  --{option} ["))

    assert said_of("model.denoiser") == (
        "      one of t2ikit.denoisers.CADI, t2ikit.denoisers.DiTI, t2ikit.denoisers.UViT, a class of your own"
    )
    methods = "one of ddim, ddpm, euler, heun, dpmpp_2m, t2ikit.diffusion.solvers.DDPM, a class of your own"
    assert methods in said_of("callbacks.val.method")
    metrics = said_of("callbacks.val.metrics")
    for metric in ("DistributionMetrics", "GenEval", "distribution.kid.KID", "alignment.rewards.ImageReward"):
        assert f"t2ikit.metrics.{metric}" in metrics
    assert "t2ikit.metrics.Metric," not in metrics  # abstract
    [callbacks] = [line for line in lines if line.startswith("callbacks.NAME: one of ")]
    assert "t2ikit.callbacks.EMA" in callbacks and "t2ikit.callbacks.CutMix" in callbacks


def test_checkpoint_that_is_none(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"weights": torch.zeros(1)}, path)
    assert "not a checkpoint of a run" in run("run", "e.yaml", "--resume", "other.ckpt").err
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")
    assert "not a complete checkpoint" in run("run", "e.yaml", "--resume", "other.ckpt").err
    assert not list(tmp_path.glob("runs/e/*"))


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(ValueError, match="unknown key 'max_stps'"):
        run("run", "e.yaml", "--debug", "--trainer.max_stps", "1")


# ------------------------------------------------------------------ the other commands


def test_commands(run: Run) -> None:
    assert run().status == 2
    listed = run("--help")
    assert listed.status == 0 and all(name in listed.out for name in cli.COMMANDS)
    assert run("--version").out.startswith("t2ikit 0.")
    unknown = run("prepar")
    assert unknown.status == 2 and "unknown command 'prepar'; nearest known: 'prepare'" in unknown.err


def test_a_command_of_a_room_is_called(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def add_parser(commands: Any) -> None:
        commands.add_parser("prepare").add_argument("--size", type=int)

    def body(args: Any) -> int:
        if args.size == 1:
            raise FileNotFoundError("no folder x: set --source")
        return 5

    room = SimpleNamespace(add_parser=add_parser, run=body)
    monkeypatch.setattr(cli, "import_module", lambda name: {"t2ikit.commands.prepare": room}[name])
    assert run("prepare", "--size", "3").status == 5
    refused = run("prepare", "--size", "1")
    assert refused.status == 2 and refused.err == "error: no folder x: set --source\n"


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        ("run x.yaml", True),
        ("run x.yml --resume last", True),
        ("run --resume last x.yaml", True),
        ("run --help", True),
        ("run -h", True),
        ("run", False),
        ("run job", False),
        ("run quickstart", True),
        ("run --trainer.max_steps 3 synthreal/rgb", True),
        ("run quikstart", False),
        ("login", False),
        ("x.yaml", False),
        ("", False),
    ],
)
def test_what_of_lightning_is_ours(arguments: str, ours: bool) -> None:
    assert cli.is_ours(arguments.split()) is ours


def test_lightning_without_the_sdk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "other_lightning", lambda: None)
    monkeypatch.setattr(sys, "argv", ["lightning", "login"])
    assert cli.lightning_main() == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_lightning_with_the_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution lightning-sdk beside ours gets every call that is not ours, with sys.argv as it was."""
    info = tmp_path / "lightning_sdk-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-sdk\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[console_scripts]\nlightning = fake_lightning_sdk:main\n")
    (tmp_path / "fake_lightning_sdk.py").write_text("import sys\ndef main():\n    return 40 + len(sys.argv)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lightning", "login"])
    assert cli.lightning_main() == 42
    called: list[Any] = []
    monkeypatch.setattr(cli, "main", lambda *given, **named: called.append((given, named)) or 0)
    monkeypatch.setattr(sys, "argv", ["lightning", "run", "x.yaml"])
    assert cli.lightning_main() == 0 and called == [((["run", "x.yaml"],), {"prog": "lightning"})]


def test_help_is_light() -> None:
    """The list of commands loads neither torch nor Lightning."""
    check = "import sys, t2ikit.cli as c; c.main(['--help']); sys.exit(bool({'torch', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0


@pytest.mark.long
def test_two_ranks_share_one_folder(tmp_path: Path) -> None:
    """A process of its own, with classes from a file outside the package; Lightning runs sys.argv again for rank 1."""
    shutil.copy(PARTS, tmp_path / "tiny_parts.py")
    (tmp_path / "e.yaml").write_text(EXPERIMENT)
    script = Path(sys.executable).with_name("lightning")
    command = [str(script)] if script.is_file() else [sys.executable, "-m", "t2ikit"]
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_steps", "2"]
    done = subprocess.run(
        [*command, "run", "e.yaml", *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "runs" / "e").iterdir()] == ["version_0"]
    assert (tmp_path / "runs/e/version_0/checkpoints/step-00000002.ckpt").is_file()
    assert done.stdout.count("Run folder: ") == 1


def test_an_error_of_the_system_is_one_line_with_its_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = {
        OSError(28, "No space left on device", "some/file"): "some/file: No space left on device",
        NotADirectoryError(20, "Not a directory", "some/file/x"): "some/file/x: Not a directory",
        PermissionError(13, "Permission denied"): "Permission denied",
    }
    for error, said in errors.items():

        def fail(*_: object, error: OSError = error) -> int:
            raise error

        monkeypatch.setattr(cli, "_dispatch", fail)
        assert cli.main(["report", "x"]) == 1
        assert capsys.readouterr().err == f"error: {said} (--debug shows where)\n"
        for words in (["report", "x", "--debug"], ["run", "x.yaml"]):
            with pytest.raises(type(error)):
                cli.main(words)

    def defect(*_: object) -> int:
        raise OSError("of a library, which names no error of the system")

    monkeypatch.setattr(cli, "_dispatch", defect)
    with pytest.raises(OSError, match="of a library"):
        cli.main(["report", "x"])
