"""``t2ikit verify-resume``: proves that a run of an experiment can be killed at any moment and loses nothing."""

from __future__ import annotations

import argparse
from typing import Any

from t2ikit.commands.arguments import add_trust, expanded, positive
from t2ikit.config.errors import ConfigError
from t2ikit.config.overrides import take_all_overrides as take_overrides
from t2ikit.files import require_folder

__all__ = ["add_parser", "run", "take_overrides"]

DESCRIPTION = """\
Trains an experiment for a few steps straight, and once more killed with SIGKILL at random moments and resumed with
`--resume auto`. Then compares the records of every step, losses, weights, EMA, optimizer, learning rate, logged
metrics, scores and pictures of snapshots bit for bit, and prints a table with the first difference of each.

Exit status 0: equal. 1: not equal, or the resumed run fails; both runs are kept. 2: the experiment is refused."""

EPILOG = """\
For this test the experiment is made short by overrides, which are printed: --steps over all stages, checkpoints every
ninth of them, snapshots every third with at most 4 sampler steps and 24 prompts (2 of each task), a log every third
step, on CUDA deterministic algorithms. A callback, t2ikit.callbacks.StepRecords, writes records and losses of every
step. Metrics that need more pictures than that must be left out: --callbacks.NAME null. All checkpoints are kept until
the comparison: the folder takes about 20 times the size of one.

Any option of the experiment may be overridden before that: --trainer.devices 2, --data.num_workers 2

examples:
  t2ikit verify-resume experiments/quickstart.yaml
  t2ikit verify-resume experiments/shapes_dit_i.yaml --kills 10 --seed 1 --callbacks.geneval null
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the parser of ``verify-resume`` to the subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify-resume",
        help="kill and resume a short run, and compare it with an undisturbed one",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("experiment", metavar="EXPERIMENT", type=expanded, help="a file or a name, with or without stages")
    add("--kills", type=positive, default=3, metavar="N", help="how often the run is killed (default: 3)")
    add("--steps", type=positive, default=48, metavar="N", help="optimizer steps of each run (default: 48)")
    add("--seed", type=int, default=0, metavar="N", help="key of the moments of the kills (default: 0)")
    add("--out", type=expanded, metavar="DIR", help="a new folder that keeps both runs; default a temporary one")
    add_trust(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Verifies one experiment; the exit status."""
    if args.out is not None and args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ConfigError(f"--out {args.out}: there is something already; name a new folder")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: expected an int from 0 up")
    from t2ikit.run.verify import Request, temporary_folder, verify_resume

    if args.out is not None:
        require_folder(args.out, "--out")
        args.out.mkdir(parents=True, exist_ok=True)
    folder = args.out.resolve() if args.out is not None else temporary_folder()
    request = Request(args.experiment, args.overrides, args.trust, args.kills, args.steps, args.seed, folder)
    return verify_resume(request, keep=args.out is not None)
