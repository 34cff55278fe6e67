"""``python -m benchmarks [NAME ...]``: measures, prints a table, writes JSON (machine, commit, date)."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.base import Benchmark, Measurement, Settings

ROOMS = ("training", "text_length", "memory", "sampling", "solvers", "gpu", "data", "metrics", "snapshots")
_PACKAGES = ("t2ikit", "torch", "lightning", "diffusers", "litdata", "numpy", "pillow")


def main(arguments: list[str] | None = None) -> int:
    """Runs what was asked for; the exit status: 0, or 1 where a benchmark failed."""
    args = _parser().parse_args(arguments)
    found = {benchmark.name: benchmark for room in ROOMS for benchmark in _of(room)}
    unknown = [name for name in args.names if name not in found]
    if unknown:
        print(f"no benchmark {unknown[0]}; there are {', '.join(found)}", file=sys.stderr)
        return 2
    if args.list:
        for benchmark in found.values():
            print(f"{benchmark.name:<22}{benchmark.summary}")
        return 0
    import torch

    torch.set_num_threads(args.threads)
    settings = Settings(args.full, args.threads, args.device, tuple(args.checkpoint), args.figure)
    results: dict[str, list[Measurement]] = {}
    failed = 0
    for name in args.names or found:
        started = time.perf_counter()
        try:
            results[name] = found[name].measure(settings)
        except Exception as error:  # the others are still worth their time; the failure is printed and kept
            failed += 1
            results[name] = []
            print(f"\n{name}: FAILED: {type(error).__name__}: {error}", file=sys.stderr)
            if args.debug:
                raise
            continue
        print(f"\n{name} ({found[name].summary}; {time.perf_counter() - started:.0f} s)\n")
        print(table(results[name]), flush=True)
        _write(args.out, settings, results)
    print(f"\nwritten to {args.out}")
    return 1 if failed else 0


def table(measurements: list[Measurement]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| what | ours | against | theirs | ours / theirs | goal | reached |", "|---|---|---|---|---|---|---|"]
    for one in measurements:
        theirs = "" if one.reference is None else f"{_number(one.reference)} {one.unit}"
        ratio = "" if one.ratio is None else f"{one.ratio:.3g}"
        verdict = "" if one.reached is None else "yes" if one.reached else "no"
        what = f"{one.what} ({one.note})" if one.note else one.what
        cells = [what, f"{_number(one.value)} {one.unit}", one.against, theirs, ratio, one.goal, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(device: str) -> dict[str, object]:
    """What the figures were made on."""
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {"processor": model, "cores": os.cpu_count(), "gpu": gpu, "python": platform.python_version()}


def _write(path: Path, settings: Settings, results: dict[str, list[Measurement]]) -> None:
    from t2ikit.files import write_whole

    content = {
        "machine": machine(settings.device),
        "settings": asdict(settings),
        "commit": _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain", "-uno") else ""),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "results": {name: [{**asdict(one), "ratio": one.ratio} for one in rows] for name, rows in results.items()},
    }
    write_whole(path, json.dumps(content, indent=2, default=str) + "\n")


def _of(room: str) -> tuple[Benchmark, ...]:
    benchmarks: tuple[Benchmark, ...] = import_module(f"benchmarks.{room}").BENCHMARKS
    return benchmarks


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures t2ikit against plain reference paths and peers, side by side, and prints a table. All of "
        "it takes about ten minutes on two cores; let nothing else run beside it.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; all without a name (see --list)")
    parser.add_argument("--list", action="store_true", help="names and summaries")
    parser.add_argument("--full", action="store_true", help="also sizes that take longer")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where networks run (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], metavar="RUN", help="a trained model")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="PNG of the solvers' curves")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"), help="JSON of the results (%(default)s)")
    parser.add_argument("--debug", action="store_true", help="stop at the first failure, with its traceback")
    return parser


if __name__ == "__main__":
    sys.exit(main())
