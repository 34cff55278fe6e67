"""The process of one part: forked from a server that has the slow imports done, so that it starts at once."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from benchmarks.base import Settings
from benchmarks.gpu.parts import NO_CUDA, PARTS
from benchmarks.report import machine, number


def run(name: str, settings: Settings, path: Path) -> None:
    """Runs a part; every measurement goes to ``path`` as a line of JSON when it is made.

    Args:
        name: of the part.
        settings: as the part gets them.
        path: of the lines: {"machine": ...}, {"measured": ...} each, and {"failed": ...} where an exception ended it.
    """
    os.setpgid(0, 0)  # whoever ends this part ends what it started, too
    os.chdir(settings.work)
    import torch

    import benchmarks.gpu.preload  # noqa: F401  # done already where this process was forked

    torch.set_num_threads(settings.threads)
    with path.open("w", buffering=1) as lines:
        if settings.device == "cuda" and name != "resume":  # its runs are forked: no CUDA before
            try:
                torch.cuda.init()
            except Exception as error:
                print(f"  {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(NO_CUDA)
        if settings.device == "cpu" or torch.cuda.is_initialized():
            print(json.dumps({"machine": machine(settings.device)}), file=lines)
        started = time.monotonic()
        try:
            part = next(part for part in PARTS if part.name == name)
            for measurement in part.measure(settings):
                print(json.dumps({"measured": asdict(measurement)}, default=float), file=lines)
                note = f" ({measurement.note})" if measurement.note else ""
                seconds = time.monotonic() - started
                print(
                    f"  [{seconds:4.0f} s] {measurement.what}{note}: {number(measurement.value)} {measurement.unit}",
                    flush=True,
                )
        except BaseException as error:
            print(json.dumps({"failed": f"{type(error).__name__}: {str(error)[:500]}"}), file=lines)
            print(traceback.format_exc(limit=-4)[-2000:], file=sys.stderr, flush=True)
            os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # threads of loaders and compilers are not waited for
