"""``python -m benchmarks gpu``: says what is missing, runs the parts within the time, writes after each of them."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.base import Benchmark, Measurement, Settings
from benchmarks.gpu.parts import NO_CUDA, PARTS
from benchmarks.report import table, write

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "torch",
    "lightning",
    "safetensors",
    "jsonargparse",
    "omegaconf",
    "yaml",
    "transformers",
    "timm",
    "diffusers",
)
FOLDERS = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "cache",
    "T2IKIT_CACHE": "t2ikit",
}
"""Variables that say where programs keep things -> folders of the series, which all parts share."""
LEAST = 8.0  # seconds under which no part is begun
GRACE = 12.0  # seconds that a part may need to come to its end


def main(arguments: Sequence[str]) -> int:
    """Runs the series; 0, or 1 where a part failed or was cut off, 2 for a mistake on the command line."""
    args = parser().parse_args(arguments)
    names = [part.name for part in PARTS]
    if args.list:
        for part in PARTS:
            print(f"{part.name:<16}{part.summary} (at most {part.seconds:.0f} s)")
        return 0
    for name in (*(args.only or ()), *(args.skip or ())):
        if name not in names:
            print(f"no part {name}; there are {', '.join(names)}", file=sys.stderr)
            return 2
    chosen = [part for part in PARTS if part.name in (args.only or names) and part.name not in (args.skip or ())]
    if args.only:
        chosen.sort(key=lambda part: args.only.index(part.name))
    if mistake := _mistake(args, chosen):
        print(mistake, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the running part is ended, too
    work = Path(tempfile.mkdtemp(prefix="t2ikit-gpu-"))
    try:
        return Series(args, work).run(chosen)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Series:
    """One call of the command.

    Args:
        args: of the command line.
        work: folder for data, runs and compiled code; gone afterwards.
    """

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.started = time.monotonic()
        self.deadline = self.started + 60.0 * args.minutes
        self.out: Path = args.out.resolve()
        self.work = work
        self.results: dict[str, list[Measurement]] = {}
        self.left_out: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.machine: dict[str, Any] = {}
        data = None if args.data is None else args.data.resolve()
        if data is not None and (data / "vectors").is_dir():
            data = data / "vectors"
        self.missing = _prepare(work, args.wheels)
        device = "cpu" if args.dry_run else "cuda"
        threads = 1 if args.dry_run else min(os.cpu_count() or 1, 16)
        self.settings = Settings(False, threads, device, small=args.dry_run, data=data, work=work)
        self.context: Any = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["benchmarks.gpu.preload"])

    def run(self, parts: Sequence[Benchmark]) -> int:
        """Runs the parts one after the other, and prints the table of all."""
        for part in parts:
            lacking = [name for name in ("torch", *part.needs) if importlib.util.find_spec(name) is None]
            left = self.deadline - time.monotonic()
            if lacking:
                self.left_out[part.name] = f"needs {', '.join(lacking)}"
            elif left < LEAST:
                self.left_out[part.name] = "no time was left"
            else:
                self._part(part, left)
            self._write()
        print(f"\nTable ({time.monotonic() - self.started:.0f} s in all)\n")
        measurements = [measurement for rows in self.results.values() for measurement in rows]
        self.out.with_suffix(".md").write_text(table(measurements) + "\n")
        print(table([measurement for measurement in measurements if ", top: " not in measurement.what]))
        for name, why in self.left_out.items():
            print(f"left out: {name}: {why}")
        print(f"written to {self.out}", flush=True)
        return 1 if self.left_out else 0

    def _part(self, part: Benchmark, left: float) -> None:
        """Runs one part in a process of its own; it is ended when its time is over."""
        started = time.monotonic()
        bound = min(part.seconds, left)
        lines = self.work / f"{part.name}.jsonl"
        print(f"\n{part.name}: {part.summary} (at most {bound:.0f} s)", flush=True)
        known = {measurement.what: measurement.value for rows in self.results.values() for measurement in rows}
        settings = replace(self.settings, until=started + max(bound - GRACE / 2, bound / 2), measured=known)
        from benchmarks.gpu.child import run

        process: Any = self.context.Process(target=run, args=(part.name, settings, lines))
        process.start()
        try:
            process.join(min(bound + GRACE, max(self.deadline - started, bound)))
        except BaseException:  # the series is ended: its part must not hold the GPU any longer
            _end(process)
            raise
        why = ""
        if process.is_alive():
            why = f"cut off after {time.monotonic() - started:.0f} s"
            _end(process)
        elif process.exitcode == NO_CUDA and self.context.get_start_method() == "forkserver":
            print("  CUDA cannot be used in a forked process here: every part imports for itself", flush=True)
            self.context = multiprocessing.get_context("spawn")
            self._part(part, self.deadline - time.monotonic())
            return
        elif process.exitcode == NO_CUDA:
            why = "no GPU can be used here (--dry-run needs none)"
        elif process.exitcode:
            why = f"ended with status {process.exitcode}"
        self.seconds[part.name] = time.monotonic() - started
        rows = self.results.setdefault(part.name, [])
        for line in lines.read_text().splitlines() if lines.exists() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # the last line of a process that was killed
                continue
            self.machine |= entry.get("machine", {})
            if "measured" in entry:
                rows.append(Measurement(**entry["measured"]))
            why = entry.get("failed", why)
        if why:
            self.left_out[part.name] = why
            print(f"  {part.name}: {why}", flush=True)
        print(f"  ({self.seconds[part.name]:.0f} s)", flush=True)

    def _write(self) -> None:
        more = {"missing": self.missing, "left_out": self.left_out, "seconds": self.seconds}
        write(self.out, replace(self.settings, measured={}), self.results, self.machine, **more)


def _mistake(args: argparse.Namespace, chosen: Sequence[Benchmark]) -> str:
    """What is wrong with the options, said before a second of the GPU is spent; empty for nothing."""
    if not chosen:
        return "--only and --skip leave no part"
    if not (math.isfinite(args.minutes) and args.minutes > 0):
        return f"--minutes must be a number above 0, not {args.minutes}"
    for option, folder in (("--data", args.data), ("--wheels", args.wheels)):
        if folder is not None and not folder.is_dir():
            return f"{option}: there is no folder {folder}"
    out: Path = args.out.resolve()
    if out.suffix == ".md" or out.is_dir():
        return f"--out names the JSON file, beside which the table goes as .md, not {args.out}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        return f"--out: nothing can be written to {out.parent}: {error}"
    return ""


def _end(process: Any) -> None:
    """Ends a part and what it started."""
    for end in (lambda: os.killpg(process.pid or 0, signal.SIGKILL), process.kill):
        try:
            end()
        except (ProcessLookupError, PermissionError):
            continue
    process.join(10)


def _prepare(work: Path, wheels: Path | None) -> list[str]:
    """Installs wheels of what is missing, sets where programs keep things; names what is missing still."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    print(f"missing packages: {', '.join(missing) or 'none'}", flush=True)
    paths = [str(ROOT)]
    if wheels is not None and missing:
        site = work / "site"
        files = [str(file) for file in sorted(wheels.glob("*.whl")) if not _installed(file)]
        print(f"installing {', '.join(Path(file).name for file in files)}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        done = subprocess.run([*pip, "--target", str(site), *files], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"pip failed: {done.stderr.strip()[-1000:]}", flush=True)
        sys.path.append(str(site))
        importlib.invalidate_caches()
        paths.append(str(site))
        missing = [name for name in missing if importlib.util.find_spec(name) is None]
        print(f"missing still: {', '.join(missing) or 'none'}", flush=True)
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([kept] if kept else [])])
    os.environ["KINETO_LOG_LEVEL"] = "99"
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking whether there is a GPU must not touch it before a fork
    for variable, folder in FOLDERS.items():
        os.environ[variable] = str(work / folder)
    return missing


def _installed(wheel: Path) -> bool:
    """Whether the distribution of a wheel is there already."""
    name = re.sub(r"[-_.]+", "-", wheel.name.split("-")[0])
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description="Measures t2ikit on one GPU: correctness first, then speed, in order of worth, each part in a "
        "process of its own with a bound on its time. Results are written after each part.",
    )
    arguments.add_argument("--minutes", type=float, default=8.0, help="for all of it (%(default)s)")
    arguments.add_argument("--only", nargs="+", metavar="PART", help="these parts, in this order")
    arguments.add_argument("--skip", nargs="+", metavar="PART", help="all but these parts")
    arguments.add_argument("--list", action="store_true", help="names and summaries of the parts")
    arguments.add_argument("--dry-run", action="store_true", help="all of it in small, on the CPU")
    arguments.add_argument("--data", type=Path, metavar="DIR", help="folder of check vectors")
    arguments.add_argument("--wheels", type=Path, metavar="DIR", help="wheels of packages that may be missing")
    arguments.add_argument(
        "--out", type=Path, default=Path("benchmarks-gpu.json"), help="JSON; the table goes beside it"
    )
    return arguments
