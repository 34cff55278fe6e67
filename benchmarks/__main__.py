"""``python -m benchmarks [NAME ...]``: measures, prints a table, writes JSON (machine, commit, date)."""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from benchmarks.base import Benchmark, Measurement, Settings
from benchmarks.report import machine, table, write

ROOMS = (
    "training",
    "shapes_speed",
    "text_length",
    "word_order",
    "memory",
    "sampling",
    "solvers",
    "data",
    "metrics",
    "snapshots",
    "evaluation_memory",
    "files",
)


def main(arguments: list[str] | None = None) -> int:
    """Runs what was asked for; the exit status: 0, or 1 where a benchmark failed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["gpu"]:  # a series with options of its own, which also says what the machine lacks
        from benchmarks.gpu.command import main as gpu

        return gpu(arguments[1:])
    args = _parser().parse_args(arguments)
    benchmarks = {benchmark.name: benchmark for room in ROOMS for benchmark in _of(room)}
    unknown = [name for name in args.names if name not in benchmarks]
    if unknown:
        print(f"no benchmark {unknown[0]}; there are {', '.join(benchmarks)}", file=sys.stderr)
        return 2
    if args.list:
        for benchmark in benchmarks.values():
            print(f"{benchmark.name:<22}{benchmark.summary}")
        print(f"{'gpu ...':<22}a series for a GPU, with options of its own: python -m benchmarks gpu --help")
        return 0
    import torch

    torch.set_num_threads(args.threads)
    settings = Settings(args.full, args.threads, checkpoints=tuple(args.checkpoint), figure=args.figure)
    results: dict[str, list[Measurement]] = {}
    failed = 0
    for name in args.names or benchmarks:
        started = time.perf_counter()
        try:
            results[name] = list(benchmarks[name].measure(settings))
        except Exception as error:  # the others are still worth their time; the failure is printed and kept
            failed += 1
            results[name] = []
            print(f"\n{name}: FAILED: {type(error).__name__}: {error}", file=sys.stderr)
            if args.debug:
                raise
            continue
        print(f"\n{name} ({benchmarks[name].summary}; {time.perf_counter() - started:.0f} s)\n")
        print(table(results[name]), flush=True)
        write(args.out, settings, results, machine(settings.device))
    print(f"\nwritten to {args.out}")
    return 1 if failed else 0


def _of(room: str) -> tuple[Benchmark, ...]:
    benchmarks: tuple[Benchmark, ...] = import_module(f"benchmarks.{room}").BENCHMARKS
    return benchmarks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures t2ikit against plain reference paths and peers, side by side, and prints a table. All of "
        "it takes about ten minutes on two cores; let nothing else run beside it. `gpu` is a series of its own: "
        "python -m benchmarks gpu --help.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; all without a name (see --list)")
    parser.add_argument("--list", action="store_true", help="names and summaries")
    parser.add_argument("--full", action="store_true", help="also sizes that take longer")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], metavar="RUN", help="a trained model")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="PNG of the solvers' curves")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"), help="JSON of the results (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="stop at the first failure, with its traceback")
    return parser


if __name__ == "__main__":
    sys.exit(main())
