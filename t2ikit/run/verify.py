"""Proves that a run can be killed at any moment: once straight, once killed and resumed, compared bit for bit."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Checkpoint

from t2ikit.callbacks import Snapshot
from t2ikit.config.class_nodes import accepted
from t2ikit.config.compose import compose, stages_of
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import find_experiment
from t2ikit.config.imports import find_class
from t2ikit.config.merging import Override
from t2ikit.config.origins import Origins
from t2ikit.run.differences import Verdict, compare
from t2ikit.run.experiment import Plan, check, origins_of
from t2ikit.run.kills import KINDS, Moment, Watch, kill, moments, started, wait

# Options of snapshots and of their prompts, and the most that a snapshot of this test takes of each.
SMALL_SNAPSHOT = {"steps": 4, "batch_size": 8, "grid": 16, "reference_limit": 64}
SMALL_PROMPTS = {"limit": 24, "per_task": 2}
LOG_LINES = 30


@dataclass(frozen=True)
class Request:
    """What is verified.

    Attributes:
        path: the experiment.
        overrides: of the command line.
        trust: modules that the experiment may name though they are not ours.
        kills, steps, seed: number of kills, optimizer steps of a run over all stages, key of the moments.
        folder: for both runs.
    """

    path: Path
    overrides: Sequence[Override]
    trust: Sequence[str]
    kills: int
    steps: int
    seed: int
    folder: Path


def verify_resume(request: Request, keep: bool) -> int:
    """Makes both runs, prints the table of verdicts; 0 if they are equal, else 1.

    Args:
        request: what is verified.
        keep: whether both runs stay on the disk although they are equal.

    Raises:
        ConfigError: the experiment is refused, has no checkpoint callback, or has fewer steps than stages.
    """
    origins = origins_of(experiment=find_experiment(request.path), trusted=request.trust)
    stages = list(stages_of(request.path, request.overrides))
    names: list[str | None] = [*stages] or [None]
    plans = {name: check(compose(request.path, request.overrides, name), origins) for name in names}
    changes = _changes(request, plans, origins)
    print(f"Changed for this test: {' '.join(f'--{change.key} {change.text}' for change in changes)}")
    folder, command = request.folder, _command(request, changes)
    name = next(iter(plans.values())).name
    steps = max(1, request.steps // max(1, len(stages))) * max(1, len(stages))
    straight = Watch(folder / "straight" / name, stages)
    undisturbed = [*command, "--run.directory", str(folder / "straight")]
    seconds, problem = _finish(undisturbed, folder / "straight.log", straight)
    if problem:
        raise ConfigError(f"the run that nobody disturbs fails: {problem}")
    print(f"straight: {straight.step()} steps in {seconds:.0f} s", flush=True)
    resumed = Watch(folder / "killed" / name, stages, straight.durations)
    sampled = any(issubclass(entry.cls, Snapshot) for plan in plans.values() for entry in plan.callbacks.values())
    kinds = [kind for kind in KINDS if kind != "snapshot" or sampled]
    command = [*command, "--run.directory", str(folder / "killed"), "--resume", "auto"]
    problem = _kill_often(command, folder, resumed, moments(request.seed, request.kills, steps, kinds))
    if problem:
        print(f"the resumed run fails: {problem}")
        print(f"Both runs: {folder}")
        return 1
    equal = _print_verdicts(straight, resumed)
    if equal and not keep:
        shutil.rmtree(folder)
    else:
        print(f"Both runs: {folder}")
    return 0 if equal else 1


def temporary_folder() -> Path:
    """A new folder below $TMPDIR."""
    return Path(tempfile.mkdtemp(prefix="t2ikit-verify-"))


# ------------------------------------------------------------------ the experiment of this test


def _changes(request: Request, plans: Mapping[Any, Plan], origins: Origins) -> list[Override]:
    """The overrides by which an experiment becomes short: steps, checkpoints, snapshots, and the lines of its steps."""
    stages = [name for name in plans if name is not None]
    steps = request.steps // max(1, len(stages))
    if steps < 1:
        raise ConfigError(f"--steps {request.steps}: {len(stages)} stages need as many steps at least")
    values: dict[str, Any] = {"trainer.max_steps": steps, "trainer.max_epochs": -1, "trainer.log_every_n_steps": 3}
    for plan in plans.values():
        values |= _short_callbacks(plan, steps, origins)
        if plan.trainer.get("max_time") is not None:
            values["trainer.max_time"] = "null"
        if plan.trainer.get("accelerator") != "cpu" and torch.cuda.is_available():
            values["trainer.deterministic"] = "true"
    for name in stages:
        start = plans[name].config["model"]["init_args"].get("start")
        reference = start.get("checkpoint", "") if isinstance(start, dict) else ""
        stage, at, step = str(reference).partition("@")
        if at and step.isdigit() and int(step) > steps:
            values[f"stages.{name}.model.init_args.start.checkpoint"] = stage
    values["callbacks.step_records"] = "t2ikit.callbacks.StepRecords"
    return [Override(key, str(value)) for key, value in values.items()]


def _short_callbacks(plan: Plan, steps: int, origins: Origins) -> dict[str, Any]:
    """What changes in the callbacks of one experiment or stage.

    Raises:
        ConfigError: none of them writes checkpoints every few steps.
    """
    values: dict[str, Any] = {}
    saves = False
    for name, component in plan.callbacks.items():
        options = accepted(component.cls)
        prefix = f"callbacks.{name}.init_args"
        if issubclass(component.cls, Checkpoint) and "every_n_steps" in options:
            saves = True
            # Neither a divisor of the interval of logs nor of that of snapshots, so that a resume falls between them.
            values[f"{prefix}.every_n_steps"] = max(1, steps // 9)
            if "keep" in options:
                values[f"{prefix}.keep"] = steps + 1
        if issubclass(component.cls, Snapshot):
            node = plan.config["callbacks"][name]["init_args"]
            values[f"{prefix}.every_n_steps"] = max(1, steps // 3)
            values |= _smaller(node, f"{prefix}", SMALL_SNAPSHOT, options)
            prompts = node.get("prompts")
            if isinstance(prompts, dict):
                cls = find_class(prompts["class_path"], f"{prefix}.prompts", origins)
                arguments = prompts.get("init_args") or {}
                values |= _smaller(arguments, f"{prefix}.prompts.init_args", SMALL_PROMPTS, accepted(cls))
    if not saves:
        raise ConfigError("verify-resume needs a checkpoint callback: add t2ikit.callbacks.Checkpoint to `callbacks`")
    return values


def _smaller(node: Mapping[str, Any], prefix: str, most: Mapping[str, int], options: Sequence[str]) -> dict[str, Any]:
    """The options that ask for more than ``most``, by key."""
    return {
        f"{prefix}.{option}": value
        for option, value in most.items()
        if option in options and (node.get(option) is None or node[option] > value)
    }


def _command(request: Request, changes: Sequence[Override]) -> list[str]:
    words = [f"--{override.key}={override.text}" for override in (*request.overrides, *changes)]
    words += [word for name in request.trust for word in ("--trust", name)]
    return [sys.executable, "-m", "t2ikit", "run", str(request.path), *words]


# ------------------------------------------------------------------ both runs


def _kill_often(command: Sequence[str], folder: Path, watch: Watch, planned: Sequence[Moment]) -> str:
    """Starts the run again and again, kills it at each moment, and then lets it come to its end; what went wrong."""
    for index, moment in enumerate(planned):
        log = folder / f"killed-{index}.log"
        with started(command, log) as process:
            step = wait(process, watch, moment)
            kill(process)
        if step is None:
            status = process.returncode
            if status == 0:  # another start would begin a new run
                print(f"kill {index + 1} of {len(planned)}: the run ended before, so {index} kills were made")
            return f"status {status}, the end of {log}:\n{_end_of(log)}" if status else ""
        print(f"kill {index + 1} of {len(planned)}: after step {step}, {_doing(moment)}", flush=True)
    seconds, problem = _finish(command, folder / f"killed-{len(planned)}.log", watch)
    if not problem:
        print(f"resumed: to its end in {seconds:.0f} s", flush=True)
    return problem


def _doing(moment: Moment) -> str:
    doing = {"training": "while training", "checkpoint": "around a checkpoint", "snapshot": "during a snapshot"}
    return doing[moment.kind]


def _finish(command: Sequence[str], log: Path, watch: Watch) -> tuple[float, str]:
    """Runs to the end; the seconds it took, and what went wrong."""
    since = time.monotonic()
    with started(command, log) as process:
        wait(process, watch, None)
        status = process.wait()
    problem = f"status {status}, the end of {log}:\n{_end_of(log)}" if status else ""
    return time.monotonic() - since, problem


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


# ------------------------------------------------------------------ the verdict


def _print_verdicts(straight: Watch, resumed: Watch) -> bool:
    """Prints a table of both runs, stage by stage; whether they are equal."""
    equal = True
    pairs = zip(straight.folders(), resumed.folders(), strict=False)
    if len(straight.folders()) != len(resumed.folders()):
        print(f"the resumed run has made {len(resumed.folders())} of {len(straight.folders())} stages")
        equal = False
    for expected, found in pairs:
        print(f"\n{f'stage {expected.name}' if straight.stages else 'what':<28}{'values':>8}  verdict")
        for verdict in compare(expected, found):
            print(_line(verdict))
            equal = equal and verdict.difference is None
    print("\nequal, bit for bit" if equal else "\nnot equal")
    return equal


def _line(verdict: Verdict) -> str:
    text = "equal" if verdict.difference is None else f"differs, first at {verdict.difference}"
    return f"{verdict.what:<28}{verdict.compared:>8}  {text}"
