"""``t2ikit plan``: what an experiment will cost, before anything is prepared or downloaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t2ikit.commands.arguments import add_trust, expanded, finite, positive
from t2ikit.config.compose import compose, part_of, stages_of
from t2ikit.config.errors import ConfigError
from t2ikit.config.files import find_experiment
from t2ikit.config.origins import printable
from t2ikit.config.overrides import take_overrides
from t2ikit.config.sweep import sweep_of
from t2ikit.files import require_folder, write_whole

__all__ = ["add_parser", "run", "take_overrides"]

DESCRIPTION = """\
Counts what an experiment costs: parameters by part, FLOPs of a training step and of a sample, memory by part with and
without checkpointed blocks, disk of the prepared data; and from these, for each GPU of --gpu, images/s, GPU-hours,
energy and the largest micro-batch that fits. Every stage of `stages` and every cell of `sweep` is counted. Neither the
data nor weights nor a GPU need be there: a step is counted on tensors without data."""

EXAMPLES = """examples:
  t2ikit plan experiments/dit_i_cmall.yaml
  t2ikit plan experiments/shallow_uvit_xhuge.yaml --gpu h200 --utilisation 0.4 --json xhuge.json
  t2ikit plan experiments/quickstart.yaml --measure 60
  t2ikit plan experiments/cad_i_ta.yaml --model.denoiser.num_blocks 6 --data.batch_size 512

Any option of the experiment may be overridden: --trainer.max_steps 1000
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``plan`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plan",
        help="what an experiment will cost",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("experiment", metavar="FILE", type=expanded, help="the experiment")
    add("--gpu", action="append", metavar="NAME", help="such as h100; repeat it for several (h100, a100, rtx4090)")
    add("--utilisation", type=finite, metavar="X", help="share of a GPU's peak that a step reaches (0.35)")
    add(
        "--measure",
        type=positive,
        metavar="SECONDS",
        help="also time training on made-up records on this machine",
    )
    add("--tokens", type=positive, nargs="+", default=[], metavar="N", help="tokens of a caption, one for each encoder")
    add("--images", type=positive, metavar="N", help="images of the training set, where it is not prepared yet")
    add("--json", type=expanded, metavar="FILE", help="also write the numbers, in bytes and FLOPs")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs what was parsed; returns the exit status.

    Raises:
        ConfigError: the experiment is refused, or its model cannot be counted.
    """
    if args.json is not None:
        if args.json.is_dir():
            raise ConfigError(f"--json {args.json} is a folder: name a file, such as {args.json / 'plan.json'}")
        require_folder(args.json.absolute().parent, "--json")
    configs = dict(_runs(args.experiment, args.overrides))
    # These load torch and Lightning: not before the file is read.
    from t2ikit.run.experiment import check, origins_of
    from t2ikit.run.gpus import UTILISATION, find_gpu
    from t2ikit.run.plan import Assumptions, Estimator
    from t2ikit.run.plan_table import table
    from t2ikit.run.speed import measured

    gpus = tuple(find_gpu(name) for name in dict.fromkeys(args.gpu or ["h100", "a100", "rtx4090"]))
    utilisation = UTILISATION if args.utilisation is None else args.utilisation
    if not 0.0 < utilisation <= 1.0:
        raise ValueError(f"--utilisation: a share in (0, 1] was expected, not {utilisation}")
    assumptions = Assumptions(tuple(args.tokens), args.images, gpus, utilisation)
    seconds = args.measure
    measure = None if seconds is None else lambda plan, inputs: measured(plan, inputs, seconds)
    estimator = Estimator(assumptions, measure)
    origins = origins_of(experiment=find_experiment(args.experiment), trusted=args.trust)
    estimates = [estimator.estimate(name, check(config, origins)) for name, config in configs.items()]
    print("\n".join(map(printable, table(estimates, assumptions))))
    if args.json is not None:
        content = json.dumps([estimate.to_dict() for estimate in estimates], indent=2, allow_nan=False)
        write_whole(args.json, content + "\n")
    return 0


def _runs(path: Path, overrides: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The experiment of every run, by its name."""
    stages = stages_of(path, overrides)
    for stage in stages:
        yield stage, compose(path, overrides, stage)
    if part_of(path, "sweep", overrides):
        sweep = sweep_of(path, overrides)
        for name, cell in sweep.cells.items():
            yield name, sweep.compose(cell)
    elif not stages:
        config = compose(path, overrides)
        yield str(config["run"]["name"]), config
