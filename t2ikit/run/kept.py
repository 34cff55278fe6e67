"""What a run keeps to be understood and sampled elsewhere: plug-ins, versions, the text encoder of its data.

``environment.yaml`` says what the run was made with, ``plugins/`` holds the sources of the user's own classes, and
``text_encoder/`` the small text encoder that was built for its data set. A resume adds ``environment.resume-N.yaml``,
and ``plugins.resume-N/`` where a source has changed.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

import t2ikit
from t2ikit.checkpoints.runs import PLUGINS, kept_plugins, run_folder_of
from t2ikit.config.imports import leaves
from t2ikit.config.merging import LIBRARIES
from t2ikit.config.origins import homes
from t2ikit.files import partial_of, publish, recover, write_whole
from t2ikit.launch import cores
from t2ikit.records.fits import OWN_TEXT_ENCODER

_INSTALLED = ("site-packages", "dist-packages")
_KIND = {"cpu family": "family", "model": "model"}
"""Lines of /proc/cpuinfo that tell processors of one name apart, and how they are called."""


class KeepEncoder(Callback):
    """Copies the text encoder that was built for the data set into the run folder, so that sampling needs no data."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        root = getattr(trainer.datamodule, "folder", None)  # type: ignore[attr-defined]
        if root is None or not trainer.is_global_zero:
            return
        source, target = Path(os.fspath(root)) / OWN_TEXT_ENCODER, Path(trainer.default_root_dir) / OWN_TEXT_ENCODER
        recover(target)
        if source.is_dir() and not target.exists():
            partial = partial_of(target)
            try:
                shutil.copytree(source, partial)
            except shutil.Error as error:  # the reasons of all files
                shutil.rmtree(partial, ignore_errors=True)
                raise OSError(str(error.args[0][0][2])) from error
            publish(partial, target)


def keep(folder: Path, config: dict[str, Any], command: str, checkpoint: Path | None, created: bool) -> list[Path]:
    """Writes the versions and the plug-ins of a run, and says which plug-ins have changed since its checkpoint.

    Args:
        folder: of the run.
        config: its resolved experiment, of which every class is imported.
        command: as the user typed it.
        checkpoint: with which it goes on.
        created: whether the folder is new.

    Returns:
        What was written.
    """
    sources = plugin_sources(config)
    before = None if checkpoint is None else kept_plugins(run_folder_of(checkpoint))
    changed = before is not None and _print_changed(sources, before)
    number = len(list(folder.glob("environment*.yaml")))
    suffix = "" if created or number == 0 else f".resume-{number}"
    written = [folder / f"environment{suffix}.yaml"]
    content = yaml.safe_dump(environment(command), sort_keys=False, allow_unicode=True, width=120)
    write_whole(written[0], content)
    if sources and (changed or kept_plugins(folder) is None):
        for name, source in sources.items():
            write_whole(folder / f"{PLUGINS}{suffix}" / name, source.read_bytes())
        written.append(folder / f"{PLUGINS}{suffix}")
    return written


def print_unlike(kept: Path) -> None:
    """Says which files of the current folder are not the plug-ins of the same name that a run has kept."""
    for path in sorted(kept.rglob("*.py")):
        here = Path(path.relative_to(kept))
        if here.is_file() and here.read_bytes() != path.read_bytes():
            print(f"note: {here} is not what the run was trained with, {path}", file=sys.stderr)


def plugin_sources(config: dict[str, Any]) -> dict[str, Path]:
    """The source files of the modules that an experiment names and that are none of the kit's or a known library.

    With those that have been imported from the same folder; an installed package is not copied, its version is known.

    Args:
        config: a resolved experiment, of which every class is imported.

    Returns:
        File by its path in the folder of the module, such as ``mine.py`` or ``package/part.py``.
    """
    named = {str(value).partition(".")[0] for _, value in leaves(config, "") if _is_class(value)}
    folders = {home for name in named - set(LIBRARIES) for home in homes(name) if not set(home.parts) & {*_INSTALLED}}
    folders -= {Path(sys.base_prefix)}
    if not folders:
        return {}
    loaded = sorted(sys.modules.copy().items())
    tops = {name.partition(".")[0] for name, _ in loaded} - {*LIBRARIES, "__main__"}
    beside = {top for top in tops if homes(top) & folders}
    sources = {}
    for name, module in loaded:
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and name.partition(".")[0] in beside:
            path = Path(*name.split("."))
            sources[str(path / "__init__.py" if hasattr(module, "__path__") else f"{path}.py")] = Path(file)
    return sources


def _is_class(value: Any) -> bool:
    module, _, name = str(value).rpartition(".")
    return isinstance(getattr(sys.modules.get(module), name, None), type)


def environment(command: str) -> dict[str, Any]:
    """The command of a run, and the versions of what runs it."""
    return {
        "command": " ".join(command.split()),
        "folder": str(Path.cwd()),
        "t2ikit": t2ikit.__version__,
        "commit": _commit(Path(t2ikit.__file__)),
        "commit_of_folder": _commit(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
        "packages": dict(_packages()),
    }


@cache
def _packages() -> tuple[tuple[str, str], ...]:
    """Name and version of every installed package; kept, since each is read from a long text.

    Of several of one name, that which is imported; what an interrupted installation left may have no name.
    """
    versions: dict[str, str] = {}
    for text in (package.metadata for package in distributions()):
        if text["Name"] is not None:
            versions.setdefault(text["Name"], text["Version"])
    return tuple(sorted(versions.items(), key=lambda package: package[0].lower()))


def machine() -> dict[str, Any]:
    """What a run is made on: processor, cores that this process may use, memory, names of the machine's GPUs."""
    memory = None
    with suppress(OSError, ValueError, AttributeError):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    return {"processor": processor_name(), "cores": cores(), "memory_gb": memory, "gpus": _gpus()}


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model of the processor, as the system calls it, with its family and model number where they are known.

    A virtual machine may call processors of several generations by one name, and their last digits differ.
    """
    with suppress(OSError):  # Linux
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if name := facts.get("model name"):
            kind = [f"{word} {facts[key]}" for key, word in _KIND.items() if key in facts]
            return f"{name} ({', '.join(kind)})" if kind else name
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Asked of the driver's program: PyTorch would start CUDA, after which this process may not fork."""
    with suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return []


def _commit(path: Path) -> str | None:
    """The commit of the git checkout that holds a file or a folder; "changed" where tracked files differ from it.

    The settings of a checkout come with its folder, perhaps from a stranger, and some are commands that git runs: a
    monitor, filters of files (nothing is compared then), programs that fetch what is missing, those of submodules.
    """
    folder = path if path.is_dir() else path.parent
    safe = ("core.fsmonitor=false", "safe.bareRepository=explicit")
    git = ["git", "--no-optional-locks", *(word for setting in safe for word in ("-c", setting)), "-C", str(folder)]
    variables = {**os.environ, "GIT_ALLOW_PROTOCOL": "none"}

    def asked(*words: str, refused: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*git, *words], capture_output=True, text=True, timeout=20, check=refused, env=variables)

    try:
        if path.is_file():  # an environment inside somebody's checkout is no part of it
            asked("ls-files", "--error-unmatch", path.name)
        commit = asked("rev-parse", "HEAD").stdout.strip()
        filters = asked("config", "--name-only", "--show-scope", "--get-regexp", r"^filter\.", refused=False)
        own = any(line.startswith(("local", "worktree")) for line in filters.stdout.splitlines())
        if own or filters.returncode not in (0, 1):  # 1: there are none
            return f"{commit}, files not compared"
        status = asked("status", "--porcelain", "-uno", "--ignore-submodules=dirty").stdout.strip()
        return f"{commit}, changed" if status else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _print_changed(sources: dict[str, Path], before: Path) -> bool:
    """Says which plug-ins are not as they were kept; whether there is one."""
    changed = list(_changed(sources, before))
    for name, said in changed:
        print(f"  changed: plug-in {name}: {said}")
    return bool(changed)


def _changed(sources: dict[str, Path], before: Path) -> Iterator[tuple[str, str]]:
    kept = {str(path.relative_to(before)): path for path in sorted(before.rglob("*.py"))}
    for name in sorted({*sources, *kept}):
        if name not in sources:
            yield name, f"no longer used; it was {kept[name]}"
        elif name not in kept:
            yield name, "new"
        elif sources[name].read_bytes() != kept[name].read_bytes():
            yield name, f"{sources[name]} is not what the checkpoint was trained with, {kept[name]}"
