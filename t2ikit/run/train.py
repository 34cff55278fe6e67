"""``run EXPERIMENT.yaml``: composes, checks, trains, and says where everything is."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import t2ikit
from t2ikit.checkpoints.runs import latest_config, newest_checkpoint
from t2ikit.config.compose import ConfigError, Override, compose, flatten
from t2ikit.launch import first_rank

if TYPE_CHECKING:
    from t2ikit.run.experiment import Experiment, Plan
    from t2ikit.run.folder import RunFolder

HELP = """usage: {prog} EXPERIMENT.yaml [--KEY VALUE | --KEY=VALUE ...] [--resume last|PATH] [--print_config] [--debug]

Trains what an experiment file describes and writes to runs/<experiment>/version_<N>/: config.yaml (resolved),
checkpoints/, TensorBoard events, metrics.csv, samples/.

options:
  --KEY VALUE       overrides one key, e.g. --trainer.max_steps 100; the value is YAML. Below a class the word init_args
                    may be left out: --data.root DIR is --data.init_args.root DIR. Changing a class drops the arguments
                    of the old one: --model.denoiser t2ikit.denoisers.DiTI. null drops a callback: --callbacks.ema null
  --resume last     goes on with the newest version that holds a complete checkpoint, in its folder
  --resume PATH     goes on from a checkpoint (or the newest one of a run folder)
  --print_config    prints the resolved experiment with every default, and stops
  --debug           shows the traceback of an error
  --help            this; after a file, every option of its classes as well

examples:
  {prog} experiments/quickstart.yaml
  {prog} experiments/photos_cad_i_cmall.yaml --data.root data/photos64 --trainer.max_steps 2000
  {prog} experiments/quickstart.yaml --resume last
  {prog} experiments/cad_i_cmall.yaml --help

keys of an experiment: extends (a list of parents, later wins), seed_everything, model, data, trainer, callbacks (a
mapping of names), run (directory, name). ${{data.init_args.size}} takes the value of another key."""

# Exit statuses: a mistake of the user, and an interrupt as the shell counts it.
REFUSED, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Request:
    """The command line of one run."""

    path: Path | None
    overrides: tuple[Override, ...]
    resume: str | None
    print_config: bool
    help: bool


def main(arguments: Sequence[str], prog: str) -> int:
    """Runs an experiment; returns the exit status.

    Raises:
        ConfigError: the experiment is refused, before any data is touched.
    """
    request = read_arguments(arguments, prog)
    if request.help:
        print(HELP.format(prog=prog))
    if request.path is None:
        return 0
    config = compose(request.path, request.overrides)
    extend_import_path(request.path.parent)
    from t2ikit.run.experiment import check  # loads torch and Lightning: not before the file is read

    plan = check(config)
    if request.help:
        from t2ikit.run.describe import describe

        print("\n".join(describe(plan)))
        return 0
    text = yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True, width=120)
    if request.print_config:
        print(text, end="")
        return 0
    words = [word for override in request.overrides for word in (f"--{override.key}", override.text)]
    return train(plan, text, request.resume, f"{prog} {shlex.join([str(request.path), *words])}")


def read_arguments(arguments: Sequence[str], prog: str) -> Request:
    """Splits the command line into the file, our options and the overrides.

    Raises:
        ConfigError: no file or two, an option without its value.
    """
    paths: list[str] = []
    overrides: list[Override] = []
    flags = {"print_config": False, "help": False}
    resume = None
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, given, value = word.removeprefix("--").partition("=")
        if word == "-h" or (word.startswith("--") and key in flags):
            if given:
                raise ConfigError(f"--{key} takes no value")
            flags["help" if word == "-h" else key] = True
            continue
        if not word.startswith("-"):
            paths.append(word)
            continue
        if not word.startswith("--") or not key:
            raise ConfigError(f"unknown option '{word}': options begin with --")
        if not given:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} needs a value: --{key} VALUE or --{key}=VALUE")
            value = rest.pop(0)
        if key == "resume":
            resume = value
        else:
            overrides.append(Override(key, value))
    if len(paths) > 1:
        raise ConfigError(
            f"one experiment a run, got {' and '.join(paths)}; an experiment takes others in by `extends`"
        )
    if not paths and not flags["help"]:
        raise ConfigError(f"which experiment? {prog} EXPERIMENT.yaml")
    path = Path(paths[0]) if paths else None
    return Request(path, tuple(overrides), resume, flags["print_config"], flags["help"])


def train(plan: Plan, text: str, resume: str | None, command: str) -> int:
    """Builds the run and trains it; a run that is refused leaves no folder behind.

    Args:
        plan: the checked experiment; ``text`` is the same as YAML.
        resume: ``last``, a path, or None.
        command: as the user would type it again, without --resume.
    """
    from lightning.pytorch import seed_everything

    from t2ikit.callbacks import MetricsCSV
    from t2ikit.run import folder as run_folder

    _quiet()
    if plan.config["seed_everything"] is not None:
        seed_everything(plan.config["seed_everything"], workers=True, verbose=False)
    folder = run_folder.choose(plan.config["run"]["directory"], plan.name, resume)
    chief, written = first_rank(), None
    try:
        step = _step(folder.checkpoint)
        experiment = _build(plan, folder.path, step)
        if 0 < experiment.trainer.max_steps <= step:
            print(f"{folder.checkpoint} has made {step} of {experiment.trainer.max_steps} steps: nothing left to train")
            _discard(folder)
            return 0
        if chief:
            if folder.checkpoint is not None:
                print(f"Going on from {folder.checkpoint}")
                _tell_changes(plan.config, latest_config(folder.path))
                for logger in experiment.trainer.loggers:
                    if isinstance(logger, MetricsCSV):
                        logger.rewind(step)
            head = f"# t2ikit {t2ikit.__version__}: {' '.join(command.split())}\n"
            written = run_folder.write_config(folder.path, head + text, resumed=not folder.created)
        status = _fit(experiment, folder, command)
    except ConfigError:
        if written is not None:  # the last of these is what `evaluate` reads and the next resume is compared with
            written.unlink()
        _discard(folder)
        raise
    if chief and status == 0:
        print(f"Run folder: {folder.path}")
        for line in run_folder.contents(folder.path):
            print(f"  {line}")
        print(f"Curves and images: tensorboard --logdir {folder.path.parent}")
    return status


# What Lightning warns of and is meant: the module makes the batch, snapshots validate, steps are counted, not epochs.
MEANT = (
    "You have overridden `on_after_batch_transfer`",
    "You passed in a `val_dataloader` but have no `validation_step`",
    "The number of training batches",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
)


def _quiet() -> None:
    """Takes advertisements and warnings about what is meant out of Lightning's output."""
    for message in MEANT:
        warnings.filterwarnings("ignore", message=f".*{message}")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_no_advertisement)


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡", "TPU available"))


def _discard(folder: RunFolder) -> None:
    """Removes the folder that this process made for a run that does not take place."""
    if folder.created:
        shutil.rmtree(folder.path)
        with contextlib.suppress(OSError):  # other versions are there
            folder.path.parent.rmdir()


def _build(plan: Plan, folder: Path, step: int) -> Experiment:
    from lightning.pytorch.loggers import TensorBoardLogger

    from t2ikit.callbacks import MetricsCSV
    from t2ikit.run.experiment import build

    class TensorBoard(TensorBoardLogger):
        """Writes events only: what Lightning would put into hparams.yaml is in config.yaml."""

        def save(self) -> None:
            self.experiment.flush()

    # A resumed run makes the steps after its checkpoint again: TensorBoard hides the old ones.
    board = TensorBoard(
        str(folder.parent), name="", version=folder.name, default_hp_metric=False, purge_step=step + 1 if step else None
    )
    return build(plan, folder, [board, MetricsCSV(str(folder))])


def _fit(experiment: Experiment, folder: RunFolder, command: str) -> int:
    from lightning.pytorch import Callback
    from lightning.pytorch.trainer.states import TrainerStatus

    from t2ikit.run import folder as run_folder
    from t2ikit.run.experiment import USER_ERRORS

    class Started(Callback):
        """Whether the first training step is made: until then a ValueError is the user's to mend."""

        seen = False

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            self.seen = True

    started = Started()
    trainer = experiment.trainer
    trainer.callbacks.append(started)  # type: ignore[attr-defined]
    os.environ[run_folder.FOLDER_VARIABLE] = str(folder.path.resolve())
    if folder.checkpoint is not None:
        os.environ[run_folder.CHECKPOINT_VARIABLE] = str(folder.checkpoint.resolve())
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        # Plain types only, so that a checkpoint from elsewhere can run no code.
        path = str(folder.checkpoint) if folder.checkpoint is not None else None
        trainer.fit(experiment.model, datamodule=experiment.data, ckpt_path=path, weights_only=True)
    except USER_ERRORS as error:
        if started.seen:
            raise
        raise ConfigError(str(error)) from error
    except RuntimeError as error:  # load_state_dict's, with a line for every weight
        lines = str(error).splitlines()
        if started.seen or "loading state_dict" not in lines[0]:
            raise
        raise ConfigError(
            f"--resume {folder.checkpoint}: its weights are those of another network ({lines[1].strip()}). Set "
            "model.init_args.denoiser as it was, or leave out --resume"
        ) from error
    except SystemExit:  # Lightning turns an interrupt into status 1
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        again = newest_checkpoint(folder.path)
        print(
            f"\nInterrupted at step {trainer.global_step}. "
            + (f"Go on with: {command} --resume {again}" if again else "There is no checkpoint yet to go on from."),
            file=sys.stderr,
        )
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, interrupt)
        os.environ.pop(run_folder.FOLDER_VARIABLE, None)
        os.environ.pop(run_folder.CHECKPOINT_VARIABLE, None)
    return 0


def _step(checkpoint: Path | None) -> int:
    """Optimizer steps that a checkpoint has made; 0 without one."""
    if checkpoint is None:
        return 0
    if checkpoint.is_dir():  # a sharded checkpoint: its name says the step
        found = re.search(r"(\d+)$", checkpoint.stem)
        return int(found[1]) if found else 0
    import torch

    try:
        return int(torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)["global_step"])
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--resume {checkpoint}: not a checkpoint of a run ({first})") from error


def _tell_changes(config: dict[str, Any], path: Path) -> None:
    """Says what differs from the experiment as it was; what the checkpoint restores (a learning rate) keeps the old."""
    if not path.is_file():
        return
    before, now = (dict(flatten(each)) for each in (yaml.safe_load(path.read_text()), config))
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            print(f"  changed: {key}: {before.get(key)!r} -> {now.get(key)!r}")


def extend_import_path(*folders: Path) -> None:
    """Makes classes in files of the user's own importable: from the current folder and from the given ones."""
    for folder in (str(each.resolve()) for each in (Path.cwd(), *folders)):
        if folder not in sys.path:
            sys.path.append(folder)
