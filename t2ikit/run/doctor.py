"""What a machine lacks for the kit, or for one experiment; said before anything is downloaded."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from packaging.requirements import Requirement

import t2ikit
from t2ikit.callbacks import CutMix
from t2ikit.data.datamodule import DataModule
from t2ikit.launch import cores
from t2ikit.pretrained import WEIGHT_PATTERNS, cache_folder
from t2ikit.records.chunks import open_chunk
from t2ikit.records.manifest import MANIFEST_NAME
from t2ikit.records.record_set import RecordSet
from t2ikit.run.experiment import USER_ERRORS, Plan
from t2ikit.run.weights import Weights, is_embedded, weights_of

LOGGER_PACKAGES = {
    "WandbLogger": "wandb",
    "MLFlowLogger": "mlflow",
    "CometLogger": "comet_ml",
    "NeptuneLogger": "neptune",
    "AimLogger": "aim",
    "TensorBoardLogger": "tensorboard",
}
"""What Lightning's loggers, and that of Aim, import when they are built."""

_HUB_SECONDS = 5.0
_PROGRAMS = ("t2ikit", "lightning")


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        state: "ok", "missing" for what has to be done before a run, or "note".
        what: of what.
        said: the rest of the line.
    """

    state: Literal["ok", "missing", "note"]
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.state:<8}{self.what:<24}{self.said}"


def examine(plan: Plan | None) -> Iterator[Finding]:
    """Everything that a machine has or lacks; of an experiment also its data, weights, loggers and devices."""
    yield from _versions()
    yield from _programs()
    yield from _devices(plan)
    yield from _disks(plan)
    if plan is not None:
        yield from _loggers(plan)
        yield from _data(plan)
        yield from _weights(plan)


def _versions() -> Iterator[Finding]:
    yield Finding("ok", "t2ikit", f"{t2ikit.__version__}, Python {platform.python_version()}, {platform.platform()}")
    try:
        needed = [Requirement(line) for line in requires("t2ikit") or []]
    except PackageNotFoundError:
        yield Finding("note", "packages", "t2ikit is not installed here (a clone alone?): pip install -e . checks them")
        return
    good = []
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            present = version(requirement.name)
        except PackageNotFoundError:
            yield Finding("missing", requirement.name, f"not installed: pip install '{requirement}'")
            continue
        if requirement.specifier.contains(present, prereleases=True):
            good.append(f"{requirement.name} {present}")
        else:
            said = f"{present} is installed, t2ikit needs {requirement.specifier}: pip install '{requirement}'"
            yield Finding("missing", requirement.name, said)
    shown = [line for line in good if line.split()[0] in ("torch", "lightning", "litdata", "transformers", "diffusers")]
    yield Finding("ok", "packages", f"{len(good)} in versions that t2ikit accepts: {', '.join(shown)}, ...")


def _programs() -> Iterator[Finding]:
    """Who owns the commands: the last package that was installed does, and pip does not say so."""
    for name in _PROGRAMS:
        path = shutil.which(name)
        owners = sorted({s.dist.name for s in entry_points(group="console_scripts", name=name) if s.dist is not None})
        if path is None:
            yield Finding("note", f"command {name}", "not on the PATH: use python -m t2ikit")
        elif len(owners) > 1:
            said = f"{path} belongs to the last installed of {', '.join(owners)}; t2ikit run is always ours"
            yield Finding("note", f"command {name}", said)
        else:
            yield Finding("ok", f"command {name}", path)


def _devices(plan: Plan | None) -> Iterator[Finding]:
    yield Finding("ok", "CPU", f"{cores()} cores, {_memory()}{torch.get_num_threads()} threads of torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        said = f"{torch.cuda.get_device_name(index)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield Finding("ok", f"GPU {index}", f"{said}{_driver()}, CUDA {torch.version.cuda}")
    trainer = {} if plan is None else plan.trainer
    wanted = trainer.get("devices") if str(trainer.get("accelerator")) in ("gpu", "cuda") else None
    least = wanted if isinstance(wanted, int) and wanted > 0 else len(wanted) if isinstance(wanted, list) else 1
    if str(trainer.get("accelerator")) in ("gpu", "cuda") and count < least:
        said = f"trainer.accelerator and trainer.devices ask for {least}, torch sees {count}{_driver()}"
        yield Finding("missing", "GPU", f"{said} (torch is built for CUDA {torch.version.cuda})")
    elif count == 0:
        yield Finding("note", "GPU", f"none that torch {torch.__version__} can use{_driver()}: runs train on the CPU")


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB of memory, "
    except (AttributeError, ValueError, OSError):  # no such question on this system
        return ""


def _driver() -> str:
    """Version of NVIDIA's driver, where its tool is there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", driver {lines[0]}" if lines else ""


def _disks(plan: Plan | None) -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = {
        "cache of the kit": cache_folder(),
        "cache of the Hub": Path(HF_HUB_CACHE),
        "cache of torch's hub": Path(torch.hub.get_dir()),
    }
    if plan is not None:
        folders["run.directory"] = Path(plan.config["run"]["directory"])
    for what, folder in folders.items():
        present = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = f"{folder}: {shutil.disk_usage(present).free / 1e9:,.1f} GB free"
        if os.access(present, os.W_OK):
            yield Finding("ok", what, free)
        else:
            yield Finding("missing", what, f"{free}, but {present} cannot be written: {_elsewhere(what)}")


def _elsewhere(what: str) -> str:
    names = {"cache of the kit": "T2IKIT_CACHE", "cache of the Hub": "HF_HOME", "cache of torch's hub": "TORCH_HOME"}
    return f"set {names.get(what, what)}"


def _loggers(plan: Plan) -> Iterator[Finding]:
    for name, node in plan.config["loggers"].items():
        path = node if isinstance(node, str) else str(node.get("class_path"))
        package = LOGGER_PACKAGES.get(path.rpartition(".")[2])
        if package is not None and find_spec(package) is None:
            yield Finding("missing", f"logger {name}", f"{path} imports {package}: pip install {package}")
        else:
            yield Finding("ok", f"logger {name}", path)


# ------------------------------------------------------------------ data


def _data(plan: Plan) -> Iterator[Finding]:
    data = plan.data.build(USER_ERRORS)
    if not isinstance(data, DataModule):
        try:
            data.find_data()
        except AttributeError:
            yield Finding("note", "data", f"{type(data).__name__} does not say what it needs")
        except USER_ERRORS as error:
            yield Finding("missing", "data", " ".join(str(error).split()))
        else:
            yield Finding("ok", "data", type(data).__name__)
        return
    if not isinstance(data.folder, Path):
        yield Finding("note", "data", f"{data.root} is remote: not looked at")
        return
    if data.size_options and not data.folder.exists():
        yield Finding("ok", "data", f"made at the first use in {data.folder}")
        return
    streams = [str(c.build(USER_ERRORS).folder) for c in plan.callbacks.values() if issubclass(c.cls, CutMix)]
    for split in ("train", "val", *streams):
        for folder in [data.folder / split / name for name in data.bucket_names] or [data.folder / split]:
            yield _set(folder, data)


def _set(folder: Path, data: DataModule) -> Finding:
    """Whether every chunk of a set is there and whole in its size; ``t2ikit prepare check`` reads them all."""
    what = f"data {folder.name}"
    if not (folder / MANIFEST_NAME).is_file():
        remedy = "prepare it (t2ikit prepare --help)" if Path(data.root).exists() else "set data.root, or prepare it"
        return Finding("missing", what, f"there is no prepared set {folder}: {remedy}")
    try:
        records = RecordSet(folder)
        for name, count in zip(records.chunk_names, records.chunk_sizes, strict=True):
            open_chunk(folder / name, count)
    except (ValueError, OSError) as error:
        line = str(error).splitlines()[0]
        return Finding("missing", what, f"{line}: t2ikit prepare check {data.root} says more")
    said = f"{len(records):,} records in {len(records.chunk_names)} chunks, all of their sizes"
    return Finding("ok", what, f"{folder}: {said}")


# ------------------------------------------------------------------ weights


def _weights(plan: Plan) -> Iterator[Finding]:
    refused: list[str] = []
    try:
        entries: Sequence[Weights] = weights_of(plan, refused)
    except USER_ERRORS as error:
        yield Finding("missing", "experiment", f"cannot be built: {' '.join(str(error).split())}")
        return
    for message in refused:
        yield Finding("missing", "experiment", f"cannot be built: {message}")
    for entry in entries:
        path = entry.here()
        label = f"{entry.name}" + (f" at {entry.revision}" if entry.revision else "")
        if is_embedded(entry):
            yield Finding("ok", "weights", f"{label} comes with the kit ({entry.where})")
        elif path is not None:
            yield Finding("ok", "weights", f"{label} is here: {path} ({entry.where})")
        elif entry.is_file:
            where = "docs/metrics.md (Files of the benchmarks) says where to get it"
            yield Finding("missing", "file", f"{label}: {where} ({entry.where})")
        elif entry.name.startswith("https://"):
            yield Finding("missing", "weights", f"{label} must be downloaded; its first use does ({entry.where})")
        else:
            yield Finding("missing", "weights", f"{label} {_on_the_hub(entry)} ({entry.where})")


def _on_the_hub(entry: Weights) -> str:
    """What must be done to have a repository, with its size where the Hub can be reached."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    name = entry.name.partition("#")[0]
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        return "is no folder of this machine"
    command = f"hf download {name}" + (f" --revision {entry.revision}" if entry.revision else "")
    unknown = f"must be downloaded, size unknown (the Hub was not reached): {command}"
    if HF_HUB_OFFLINE:
        return unknown
    try:
        info: Any = HfApi().model_info(name, revision=entry.revision, files_metadata=True, timeout=_HUB_SECONDS)
    except Exception:  # the Hub's client, its HTTP library and the socket each raise their own
        return unknown
    if info.gated and get_token() is None:
        address = f"https://huggingface.co/{name}"
        return f"is gated and there is no token: accept its licence at {address}, then hf auth login"
    sizes = [
        sum(file.size or 0 for file in info.siblings if file.rfilename.endswith(pattern.removeprefix("*")))
        for pattern in WEIGHT_PATTERNS
    ]
    return f"must be downloaded, {next(filter(None, sizes), 0) / 1e9:.2f} GB: {command}"


def signature() -> str:
    """Versions and machine, for a report."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "diffusers", "timm"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"t2ikit {t2ikit.__version__}, Python {sys.version.split()[0]}, {packages}, {device}"
