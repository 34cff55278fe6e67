"""Compares two runs bit for bit: what their steps, checkpoints, metrics and snapshots hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.callbacks.step_records import read_steps
from t2ikit.checkpoints.files import read_weights
from t2ikit.checkpoints.saving import step_in_name
from t2ikit.classify.results import FILE
from t2ikit.files import parse_json, read_utf8

# What depends on the clock or on the place of a run, and not on its numbers.
TIMED_METRICS = ("train/images_per_second", "/seconds/")
NOT_COMPARED = ("experiment", "start", "hyper_parameters", "hparams_name", "t2ikit", "pytorch-lightning_version")
TIMERS = ("Timer", "StartTimer")
# Lightning counts one epoch fewer as begun after a resume at the end of one; nothing but its progress bar shows it.
EPOCHS = "loops.fit_loop.epoch_progress"


@dataclass(frozen=True)
class Difference:
    """The first place at which two runs differ: step, key, and the value of each."""

    step: int | None
    key: str
    straight: Any
    resumed: Any

    def __str__(self) -> str:
        step = "" if self.step is None else f"step {self.step}, "
        return f"{step}{self.key}: {self.straight!r} (straight), {self.resumed!r} (resumed)"


@dataclass(frozen=True)
class Verdict:
    """One kind of content: how many values were compared, and the first difference, if there is one."""

    what: str
    compared: int
    difference: Difference | None


@dataclass(frozen=True)
class Entry:
    """A value of a run, under its step and key."""

    step: int | None
    key: str
    value: Any


def compare(straight: Path, resumed: Path) -> list[Verdict]:
    """Compares two run folders; a kind of content that neither of them has is left out.

    Args:
        straight: of the run that nobody disturbed.
        resumed: of the one that was killed and resumed.
    """
    kinds: dict[str, Callable[[Path], list[Entry]]] = {
        "records of every step": lambda run: _of_steps(run, "records"),
        "losses": lambda run: _of_steps(run, "loss"),
        "learning rate": lambda run: _of_steps(run, "rate") + _of_checkpoints(run, "lr_schedulers"),
        "weights": lambda run: _of_checkpoints(run, "state_dict"),
        "EMA": lambda run: _of_checkpoints(run, "callbacks", only="EMA"),
        "optimizer": lambda run: _of_checkpoints(run, "optimizer_states"),
        "other state of checkpoints": _of_rest,
        "logged metrics": _of_metrics,
        "snapshot scores": lambda run: _of_files(run, "*/scores/**/*.json"),
        "snapshot pictures": lambda run: _of_files(run, "**/*.png"),
        "scores of a classifier": _of_classifier,
    }
    verdicts = []
    for what, entries in kinds.items():
        pair = entries(straight), entries(resumed)
        if any(pair):
            verdicts.append(Verdict(what, len(pair[0]), first_difference(*pair)))
    return verdicts


def first_difference(straight: Sequence[Entry], resumed: Sequence[Entry]) -> Difference | None:
    """The first entry that the other run lacks or has another value of; numbers are compared bit for bit."""
    found = {(entry.step, entry.key): entry.value for entry in resumed}
    expected = {(entry.step, entry.key): entry.value for entry in straight}
    for (step, key), value in expected.items():
        if (step, key) not in found:
            return Difference(step, key, _shown(value), "missing")
        if not _equal(value, found[step, key]):
            return Difference(step, *_first_of(key, value, found[step, key]))
    for (step, key), value in found.items():
        if (step, key) not in expected:
            return Difference(step, key, "missing", _shown(value))
    return None


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        return torch.equal(_bytes(first), _bytes(second))
    if isinstance(first, float) and isinstance(second, float):
        return first.hex() == second.hex()
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    return type(first) is type(second) and bool(first == second)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor


def _first_of(key: str, first: Any, second: Any) -> tuple[str, Any, Any]:
    """Key and values of the first number that differs in two lists or tensors of one shape."""
    lists = [value.flatten().tolist() if isinstance(value, Tensor) else value for value in (first, second)]
    if isinstance(lists[0], list) and isinstance(lists[1], list) and len(lists[0]) == len(lists[1]):
        for index, (a, b) in enumerate(zip(*lists, strict=True)):
            if not _equal(a, b):
                return f"{key}[{index}]", a, b
    return key, _shown(first), _shown(second)


def _shown(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


# ------------------------------------------------------------------ what a run folder holds


def _of_steps(run: Path, name: str) -> list[Entry]:
    return [
        Entry(step, f"{name} (rank {line['rank']}, micro-batch {line['micro_batch']})", line[name])
        for step, lines in read_steps(run).items()
        for line in lines
        if line.get(name) is not None
    ]


def _of_checkpoints(run: Path, *path: str, only: str | None = None) -> list[Entry]:
    """Leaves below ``path`` of every checkpoint; of all checkpoints of a run, so that the first bad step is known."""
    entries = []
    for file in sorted((run / "checkpoints").glob("*.ckpt"), key=step_in_name):
        content = read_weights(file, mmap=True)
        node: Any = content
        for key in path:
            node = node.get(key, {})
        chosen = {only: node[only]} if only is not None and only in node else ({} if only is not None else node)
        entries += [Entry(step_in_name(file), key, value) for key, value in leaves(chosen)]
    return entries


def _of_rest(run: Path) -> list[Entry]:
    """Counters, position of the data, and the state of callbacks beside EMA."""
    entries = []
    for file in sorted((run / "checkpoints").glob("*.ckpt"), key=step_in_name):
        content = dict(read_weights(file, mmap=True))
        for key in (*NOT_COMPARED, "lr_schedulers", "state_dict", "optimizer_states"):
            content.pop(key, None)
        others = {key: value for key, value in content.get("callbacks", {}).items() if key not in ("EMA", *TIMERS)}
        content["callbacks"] = others
        entries += [
            Entry(step_in_name(file), key, value)
            for key, value in leaves(content)
            if not (isinstance(value, str) and str(run) in value)
            and not key.startswith(EPOCHS)
            and not any(timed in key for timed in TIMED_METRICS)
        ]
    return entries


def _of_metrics(run: Path) -> list[Entry]:
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    entries = []
    for name, series in read_metrics(path).items():
        if any(timed in name for timed in TIMED_METRICS):
            continue
        counts: dict[int, int] = {}
        for step, value in series:
            counts[step] = counts.get(step, 0) + 1
            entries.append(Entry(step, name if counts[step] == 1 else f"{name} (line {counts[step]})", value))
    return sorted(entries, key=lambda entry: entry.step or 0)


def _of_files(run: Path, pattern: str) -> list[Entry]:
    folder = run / "samples"
    return [Entry(None, str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.glob(pattern))]


def _of_classifier(run: Path) -> list[Entry]:
    """Its tests, the weights that it selected, and its fingerprint."""
    path = run / FILE
    return [Entry(None, *leaf) for leaf in leaves(parse_json(read_utf8(path)))] if path.is_file() else []


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value in nested mappings, lists and tuples."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, node
