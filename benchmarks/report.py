"""What measurements look like: a Markdown table, and JSON with machine, commit and date."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.base import Measurement, Settings
from t2ikit.run.kept import processor_name

_PACKAGES = ("t2ikit", "torch", "triton", "lightning", "diffusers", "litdata", "numpy", "pillow")


def table(measurements: Sequence[Measurement]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| what | ours | against | theirs | ours / theirs | goal | reached |", "|---|---|---|---|---|---|---|"]
    for measurement in measurements:
        theirs = "" if measurement.reference is None else f"{number(measurement.reference)} {measurement.unit}"
        ratio = "" if measurement.ratio is None else f"{measurement.ratio:.3g}"
        verdict = "" if measurement.reached is None else "yes" if measurement.reached else "no"
        label = f"{measurement.what} ({measurement.note})" if measurement.note else measurement.what
        cells = [
            label,
            f"{number(measurement.value)} {measurement.unit}",
            measurement.against,
            theirs,
            ratio,
            measurement.goal,
            verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """A value with four digits, or whole from a thousand up."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def machine(device: str) -> dict[str, Any]:
    """What the figures are made on."""
    described = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "gpu": None,
        "python": platform.python_version(),
    }
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        described |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
        described["driver"] = _driver()
    return described


def _driver() -> str | None:
    """Version of the NVIDIA driver; None where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write(
    path: Path, settings: Settings, results: dict[str, list[Measurement]], made_on: dict[str, Any], **more: Any
) -> None:
    """Writes the results so far, whole or not at all.

    Args:
        path: of the JSON file.
        settings: of the measurements.
        results: name of a benchmark -> what it measured.
        made_on: from :func:`machine`.
        more: further entries.
    """
    content = {
        "machine": made_on,
        "settings": {key: value for key, value in asdict(settings).items() if key not in ("until", "measured")},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "versions": {name: _version(name) for name in _PACKAGES},
        **more,
        "results": {
            name: [{**asdict(measurement), "ratio": measurement.ratio} for measurement in rows]
            for name, rows in results.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")  # t2ikit.files would load the package, which may not be there yet
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n")
    os.replace(partial, path)


def commit() -> str:
    """The commit of this clone; of an exported copy, maybe inside another clone, what ``T2IKIT_COMMIT`` says."""
    if named := os.environ.get("T2IKIT_COMMIT"):
        return named
    head = _git("rev-parse", "HEAD")
    if not head:
        return "unknown"
    return head + ("-dirty" if _git("status", "--porcelain", "-uno") else "")


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
