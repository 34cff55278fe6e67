"""``t2ikit doctor``: what this machine lacks, for the kit or for one experiment."""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.arguments import add_trust, expanded
from t2ikit.config.compose import compose, stages_of
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import find_experiment
from t2ikit.config.origins import printable
from t2ikit.config.overrides import take_overrides

__all__ = ["add_parser", "run", "take_overrides"]

DESCRIPTION = """\
Says what this machine has and lacks: versions, GPU and driver, cores, free disk, caches; of an experiment also its
loggers, whether its data is prepared and whole, and each of the pretrained weights that it will load: here, to be
downloaded, or gated without a token. Nothing is downloaded. With --weights every loader is tried with the real weights:
what is not here is downloaded then. Exit status 0: nothing is missing; 1: something is."""

EXAMPLES = """examples:
  t2ikit doctor
  t2ikit doctor experiments/cad_i_cmall.yaml --data.root data/imagenet256
  t2ikit doctor --weights experiments/base/evaluation.yaml

Outputs of --weights are recorded at their first trial in $T2IKIT_CACHE/doctor and compared ever after.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``doctor`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="what this machine lacks",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("experiment", metavar="FILE", nargs="?", type=expanded, help="an experiment; of its stages the first")
    add("--weights", action="store_true", help="try every loader of the experiment with the real weights")
    add("--device", metavar="NAME", help="of --weights: cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs what was parsed; returns the exit status: 0, or 1 when something is missing.

    Raises:
        ConfigError: the experiment is refused.
    """
    config = None
    if args.experiment is not None:
        stage = next(iter(stages_of(args.experiment, args.overrides)), None)
        config = compose(args.experiment, args.overrides, stage)
    elif args.weights or args.overrides:
        raise ConfigError("doctor: which experiment? t2ikit doctor --weights EXPERIMENT.yaml")
    # These load torch and Lightning: not before the file is read.
    from t2ikit.run.doctor import examine, signature
    from t2ikit.run.experiment import check, origins_of
    from t2ikit.run.trained import find_device
    from t2ikit.run.weights import try_weights, weights_of

    plan = (
        None
        if config is None
        else check(config, origins_of(experiment=find_experiment(args.experiment), trusted=args.trust))
    )
    if not args.weights or plan is None:
        missing = 0
        for finding in examine(plan):
            print(printable(str(finding)), flush=True)
            missing += finding.state == "missing"
        print(f"\n{missing} missing" if missing else "\nnothing is missing")
        return int(missing > 0)
    device, trials = find_device(args.device), []
    print(f"{signature()}, tried on {device}")
    tried, refused = set[int](), list[str]()
    entries = weights_of(plan, refused)
    for message in refused:
        print(printable(f"{'not tried':<14}{message}"), flush=True)
    for weights in entries:
        if id(weights.owner) in tried:  # a network and a file of one owner are loaded together
            continue
        tried.add(id(weights.owner))
        trials.append(try_weights(weights, device))
        trial = trials[-1]
        digest = f" (SHA-256 {trial.sha256})" if trial.sha256 else ""
        line = f"{trial.state:<14}{weights.name} ({weights.where}): {trial.said}{digest}"
        print(printable(line), flush=True)
    bad = [trial for trial in trials if not trial.good]
    if bad or refused:
        count = len(bad) + len(refused)
        print(
            f"\n{count} of {len(trials) + len(refused)} do not work: please report the lines above, with the first one"
        )
    else:
        print(f"\nall {len(trials)} load; where an output was recorded now, a report of these lines helps others")
    return int(bool(bad or refused))
