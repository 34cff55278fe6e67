"""``run EXPERIMENT``: reads the command line, checks the experiment, and trains it."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from t2ikit import stopping
from t2ikit.commands.arguments import expanded
from t2ikit.config.errors import ConfigError
from t2ikit.config.overrides import take_overrides
from t2ikit.config.request import Request
from t2ikit.config.secrets import trust_names
from t2ikit.config.values import to_yaml
from t2ikit.launch import first_rank

HELP = """usage: {prog} EXPERIMENT [--KEY VALUE | --KEY=VALUE ...] [--resume last|auto|PATH] [--stage NAME]
                          [--fork] [--allow KEY] [--trust NAME] [--print_config] [--debug]

Trains what an experiment describes, a file or the name of one that comes with the kit (`t2ikit experiments`; NAME.yaml
in the current folder comes first), and writes to runs/<experiment>/version_<N>/: config.yaml (resolved),
checkpoints/, TensorBoard events, metrics.csv, samples/, environment.yaml (command, commit, versions), the sources of
plug-ins in plugins/; at its end the file finished.

options:
  --KEY VALUE       overrides one key, e.g. --trainer.max_steps 100. A value is a plain number, true, false or null,
                    YAML where it begins with a bracket or a quote, else text, whole. Below a class the word init_args
                    may be left out: --data.root DIR is --data.init_args.root DIR. Changing a class drops the arguments
                    of the old one: --model.denoiser t2ikit.denoisers.DiTI. null drops a callback: --callbacks.ema null
  --resume last     resumes the newest version that holds a complete checkpoint, in its folder
  --resume auto     resumes the newest version that has not ended, or begins a new one: for jobs that are requeued
  --resume PATH     resumes from a checkpoint (or the newest one of a run folder), in the folder of its run
  --fork            resumes in a new version below run.directory/run.name and leaves the folder of --resume as it is
  --stage NAME      trains that stage only, of an experiment with `stages`; without it all of them, one after the other
  --allow KEY       lets KEY, or all below it, differ from the checkpoint of --resume (model.optimizer.lr, data.seed); a
                    refusal names the keys; steps, devices, logging and snapshots need none. Repeatable.
                    stages.NAME keeps a trained stage as it is, although the experiment now says something else of it
  --trust NAME      lets class paths name the module NAME, which is not ours, of a known library, or a file beside the
                    experiment or in the current folder. Importing it runs its code. env:NAME lets ${{oc.env:NAME}} take
                    that variable, whose name looks like a secret. Repeatable
  --print_config    prints the resolved experiment with every default, and stops
  --debug           shows the traceback of an error
  --help            shows this help; after a file, every option of its classes as well

exit status:
  0    the run has come to its end
  1    it ended before: an error, a full disk, or a loss that is not finite
  2    it is refused
  75   it has stopped and is not finished: the same command with --resume auto goes on
  130  Ctrl+C twice
SIGTERM, SIGUSR1 or Ctrl+C stop a run at the end of a step, or in a snapshot, whose images so far stay; a checkpoint of
this step is written. Ctrl+C again ends it at once.

examples:
  {prog} quickstart
  {prog} experiments/photos_cad_i_cmall.yaml --data.root data/photos64 --trainer.max_steps 2000
  {prog} quickstart --resume last
  {prog} cad_i_cmall --help

keys of an experiment: extends (a list of parents, later wins), seed_everything, model, data, trainer, callbacks and
loggers (mappings of names), stages (overlays by name), sweep (grids of overlays, of `t2ikit sweep`), run (directory,
name). ${{data.init_args.size}} takes the value of another key."""

FLAGS, VALUES = ("print_config", "help", "fork"), ("resume", "stage", "allow", "trust")


NO_FILE = Path()


@dataclass(frozen=True)
class Line(Request):
    """The command line of one run; its ``path`` is ``NO_FILE`` where only help is asked for.

    Attributes:
        print_config, help: whether that is asked for.
    """

    print_config: bool = False
    help: bool = False


def main(arguments: Sequence[str], prog: str) -> int:
    """Runs an experiment; returns the exit status: 0 when it has come to its end, 75 when a signal has stopped it.

    Raises:
        ConfigError: the experiment is refused, before any data is touched.
    """
    with stopping.handled():
        try:
            return _run(read_arguments(arguments, prog), prog)
        except stopping.Stopped as error:
            if first_rank():
                print(f"\nStopped by {error.reason} before the first step.", file=sys.stderr)
            return stopping.STATUS


def _run(line: Line, prog: str) -> int:
    if line.help:
        print(HELP.format(prog=prog))
    if line.path == NO_FILE:
        return 0
    trust_names(line.trust)
    stages = line.stages()  # reads the file before torch and Lightning are loaded
    from t2ikit.run.request import begin, checked

    run = checked(line, stages)
    if line.help:
        from t2ikit.run.describe import describe

        print("\n".join(describe(run.plan)))
        return 0
    if line.print_config:
        print(to_yaml(run.plan.config), end="")
        return 0
    return begin(line, run, prog)[0]


def read_arguments(arguments: Sequence[str], prog: str) -> Line:
    """Splits the command line into the file, our options and the overrides.

    Raises:
        ConfigError: no file or two, an option without its value.
    """
    words, overrides = take_overrides(arguments, lambda key: key not in (*FLAGS, *VALUES))
    paths, flags = list[str](), set[str]()
    values: dict[str, list[str]] = {name: [] for name in VALUES}
    while words:
        word = words.pop(0)
        name, equals, value = ("help" if word == "-h" else word.removeprefix("--")).partition("=")
        if not word.startswith("-"):
            paths.append(word)
        elif name in FLAGS:
            if equals:
                raise ConfigError(f"--{name} takes no value")
            flags.add(name)
        elif name in VALUES:
            if not equals and not words:
                raise ConfigError(f"--{name} needs a value: --{name} VALUE or --{name}=VALUE")
            values[name].append(value if equals else words.pop(0))
        else:
            raise ConfigError(f"unknown option '{word}': options begin with --")
    if len(paths) > 1:
        raise ConfigError(
            f"one experiment a run, got {' and '.join(paths)}; `extends` takes other files into an experiment"
        )
    if not paths and "help" not in flags:
        raise ConfigError(f"which experiment? {prog} EXPERIMENT, a file or a name of `t2ikit experiments`")
    try:
        path = expanded(paths[0]) if paths else NO_FILE
    except ArgumentTypeError as error:
        raise ConfigError(str(error)) from error
    resume, stage = (values[name][-1] if values[name] else None for name in ("resume", "stage"))
    return Line(
        path,
        tuple(overrides),
        resume and os.path.expanduser(resume),
        "fork" in flags,
        stage,
        tuple(values["allow"]),
        tuple(values["trust"]),
        "print_config" in flags,
        "help" in flags,
    )
