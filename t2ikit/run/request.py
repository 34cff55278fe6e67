"""From a request to a run: composed, checked, refused before any data is touched, trained in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import find_experiment
from t2ikit.config.origins import Origins
from t2ikit.config.request import Request
from t2ikit.config.values import to_yaml
from t2ikit.files import require_folder
from t2ikit.launch import check_launch
from t2ikit.run.experiment import Plan, check, origins_of
from t2ikit.run.folder import TRIAL, choose, print_unfinished, unfinished
from t2ikit.run.stage_tree import Request as Stages
from t2ikit.run.stages import train_stages
from t2ikit.run.train import train


@dataclass(frozen=True)
class Checked:
    """An experiment that nothing refuses so far.

    Attributes:
        plan: the experiment; of stages, the one that is asked for, or the first.
        staged: whether it has stages.
        origins: which modules it may name.
    """

    plan: Plan
    staged: bool
    origins: Origins


def checked(request: Request, stages: Mapping[str, Any]) -> Checked:
    """Composes and checks an experiment.

    Args:
        request: the run.
        stages: of the experiment.

    Raises:
        ConfigError: the experiment is refused.
    """
    config = compose(request.path, request.overrides, request.stage or next(iter(stages), None))
    origins = origins_of(experiment=find_experiment(request.path), trusted=request.trust)
    return Checked(check(config, origins), bool(stages), origins)


def begin(request: Request, run: Checked, prog: str) -> tuple[int, Path]:
    """Trains what was checked, in this process.

    Args:
        request: the run.
        run: the same, checked.
        prog: first words of the command that goes on with it.

    Returns:
        The exit status (0: it has come to its end; 75: a signal has stopped it), and the folder of the version.

    Raises:
        ConfigError: the run is refused, before any data is touched.
    """
    plan, command = run.plan, request.command(prog)
    directory, trial = plan.config["run"]["directory"], bool(plan.trainer.get("fast_dev_run"))
    versions = Path(directory) / plan.name
    try:
        check_launch()
        require_folder(versions / "version_0", "run.directory")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _refuse_options_of_resume(request, trial)
    if run.staged:
        if request.fork:
            raise ConfigError(
                "--fork: an experiment with stages has several run folders: copy its version and resume the copy, or "
                "start from a checkpoint of it with model.init_args.start"
            )
        asked = Stages(request.path, request.overrides, request.stage, request.resume, request.allow, command)
        return train_stages(asked, run.origins)
    if request.resume is None and not trial:
        print_unfinished(unfinished(versions), command)
    kind = TRIAL if trial else "version"
    folder = choose(directory, plan.name, request.resume, fork=request.fork, kind=kind)
    return train(plan, to_yaml(plan.config), folder, request.allow, command), folder.path


def _refuse_options_of_resume(request: Request, trial: bool) -> None:
    if request.allow and request.resume is None:
        raise ConfigError("--allow says what may differ from the checkpoint of a --resume: give --resume too")
    if request.fork and request.resume in (None, "auto"):
        raise ConfigError(
            "--fork goes on from a checkpoint in a new folder: name it with --resume last or --resume PATH"
        )
    if trial and request.resume is not None:
        raise ConfigError("trainer.fast_dev_run tries an experiment from its start: leave out --resume")
