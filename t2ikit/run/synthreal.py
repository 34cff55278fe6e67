"""The cells of SynthReal: every source of images x view x network x seed is one training, made by the engine of sweeps.

    OUT/runs/VIEW/VIEW-SOURCE-NETWORK-all-seed0/version_0/   a run folder like any other, with classification.json
    OUT/scores/VIEW-SOURCE-NETWORK-all-seed0.json            where this file is, the cell is done
    OUT/tests/VIEW-real-NETWORK-all-seed0/SOURCE.json        a test of a source that came after the training

Any number of processes and machines work on one folder; a process makes one cell after the other. A cell that was
killed goes on, and what is done is not done again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from t2ikit.classify import ClassFolders
from t2ikit.classify.aggregate import REAL
from t2ikit.classify.classes import ClassList, read_classes
from t2ikit.classify.networks import build_network
from t2ikit.classify.pictures import checked, find
from t2ikit.config.class_nodes import check_component
from t2ikit.config.compose import compose
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.files import shipped_experiments
from t2ikit.config.merging import Override
from t2ikit.config.origins import Origins
from t2ikit.config.sweep import Cell, Sweep

VIEWS = ("rgb", "depth", "texture", "low", "high")

_DECIDED = {
    "data.train": "--real and --synth",
    "data.tests": "--real and --synth",
    "data.classes": "--classes",
    "data.per_class": "--per-class",
    "data.seed": "--seeds",
    "model.classes": "--classes",
    "model.network": "--networks and --texture-networks",
    "model.seed": "--seeds",
    "run": "--out",
}
"""Options of an experiment that differ from cell to cell, and what sets them; an override would make all cells one."""


@dataclass(frozen=True)
class Source:
    """Images with labels.

    Attributes:
        name: of the source; "real" for the real photos.
        train, test: folders of class folders, or prepared sets.
    """

    name: str
    train: Path
    test: Path


@dataclass(frozen=True)
class Benchmark:
    """What is trained.

    Attributes:
        sources: the real photos first.
        out: folder of everything.
        views: names of experiments in ``experiments``.
        networks: of every view but texture.
        texture_networks: of that one.
        per_class: numbers of images of each class; None for all.
        seeds: 0, 1, ...
        classes: as ``read_classes`` takes them.
        overrides: over the experiment of every cell.
        experiments: folder of ``VIEW.yaml``.
    """

    sources: tuple[Source, ...]
    out: Path
    views: tuple[str, ...]
    networks: tuple[str, ...]
    texture_networks: tuple[str, ...]
    per_class: tuple[int | None, ...]
    seeds: int
    classes: str
    overrides: tuple[Override, ...]
    experiments: Path

    @cached_property
    def class_list(self) -> ClassList:
        """The classes."""
        return read_classes(self.classes)

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the pictures and labels of every folder; each is decoded once, and remembered by time and size.

        Raises:
            FileNotFoundError, ValueError: a folder that lacks a class, or a picture that cannot be read.
        """
        folders = {source.name: source for source in self.sources}
        return {
            str(folder): self._hash(folder, f"{name} ({part})")
            for name, source in folders.items()
            for part, folder in (("train", source.train), ("test", source.test))
        }

    def _hash(self, folder: Path, option: str) -> str:
        pictures = checked(find(str(folder), self.class_list, option), lambda shape: None, option)
        return str(pictures.description["sha256"])

    def sweeps(self) -> list[CellsOfView]:
        """The cells of every view."""
        return [self._cells(view) for view in self.views]

    def _cells(self, view: str) -> CellsOfView:
        path = self.experiments / f"{view}.yaml"
        networks = self.texture_networks if view == "texture" else self.networks
        tests = {source.name: str(source.test) for source in self.sources}
        cells = []
        for seed in range(self.seeds):  # a seed of everything first: the page has something to show early
            for count in self.per_class:
                for network in networks:
                    for source in self.sources:
                        given = tests if source.name == REAL else {name: tests[name] for name in (REAL, source.name)}
                        data = {"train": str(source.train), "tests": given, "classes": self.classes, "per_class": count}
                        overlay = {"data": {"init_args": data}, "model": {"init_args": {"network": network}}}
                        values = {"source": source.name, "network": network, "images": str(count or "all")}
                        cells.append(Cell(view, values, seed, (overlay, {"seed_everything": seed})))
        where = (Override("run.directory", str(self.out / "runs")), Override("run.name", view))
        one_device = (Override("trainer.devices", "1"),)
        overrides = (*one_device, *self.overrides, *where)
        val = compose(path, overrides, overlays=cells[0].overlays)["data"]["init_args"].get("val")
        hashes = self.hashes if val is None else {**self.hashes, val: self._hash(Path(val), "data.val")}
        return CellsOfView(path, overrides, {cell.name: cell for cell in cells}, (), hashes)


@dataclass(frozen=True)
class CellsOfView(Sweep):
    """The cells of a view. What the pictures are matters, but neither where they are nor which tests are made.

    Attributes:
        hashes: SHA-256 of the pictures and labels of every folder.
    """

    hashes: Mapping[str, str]

    def digest(self, config: Mapping[str, Any]) -> str:
        """SHA-256 of what a cell trains: with the pictures themselves in place of their folder."""
        options = dict(config["data"]["init_args"])
        options.pop("tests")
        options["train"] = self.hashes[options["train"]]
        if options.get("val") is not None:
            options["val"] = self.hashes[options["val"]]
        return super().digest({**config, "data": {**config["data"], "init_args": options}})


def benchmark_of(
    real: Path,
    synthetic: Sequence[str],
    out: Path,
    views: Sequence[str] = ("rgb",),
    networks: Sequence[str] = ("resnet50",),
    texture_networks: Sequence[str] = ("bagnet9",),
    per_class: Sequence[int] = (),
    seeds: int = 3,
    classes: str = "tiny200",
    overrides: Sequence[Override] = (),
    experiments: Path | None = None,
) -> Benchmark:
    """The benchmark that a command line asks for.

    Args:
        real: folder with train and val of real photos.
        synthetic: ``NAME=DIR`` or ``NAME=TRAIN,TEST`` of every generator.
        out, views, networks, texture_networks, seeds, classes, overrides: as in :class:`Benchmark`.
        per_class: numbers of images; none trains on all of them.
        experiments: folder of ``VIEW.yaml``; default those that come with the kit.

    Raises:
        ConfigError: two sources of one name, an unknown view, an override of what differs from cell to cell, or a
            source without a training and a test set.
    """
    sources = [Source(REAL, *_sets(str(real), "--real"))]
    for text in synthetic:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder or not set(name) <= _LETTERS or name[0] in ".-":
            raise ConfigError(f"--synth {text}: expected NAME=DIR, a name of letters, digits, `_`, `.` and `-`")
        if name in {source.name for source in sources}:
            raise ConfigError(f"--synth {text}: {name} names two sources: give each a name of its own")
        sources.append(Source(name, *_sets(folder, f"--synth {name}")))
    where = shipped_experiments() / "synthreal" if experiments is None else experiments
    for view in views:
        if not (where / f"{view}.yaml").is_file():
            raise ConfigError(f"--views {view}: no such view{nearest(view, VIEWS)}")
    counts: tuple[int | None, ...] = tuple(per_class) or (None,)
    for override in overrides:
        key = override.key.replace(".init_args", "")
        option = next((name for name in _DECIDED if f"{key}.".startswith(f"{name}.")), None)
        if option is not None:
            raise ConfigError(f"--{override.key}: {option} of the cells is set by {_DECIDED[option]}: leave it out")
    lists = (tuple(views), tuple(networks), tuple(texture_networks), counts)
    return Benchmark(tuple(sources), out, *lists, seeds, classes, tuple(overrides), where)


_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


def _sets(text: str, option: str) -> tuple[Path, Path]:
    """Folders of the training and of the test set."""
    if "," in text:
        train, _, test = text.partition(",")
        return Path(train).expanduser(), Path(test).expanduser()
    folder = Path(text).expanduser()
    for root in (folder / "images", folder):
        for test in ("test", "val"):
            if (root / "train").is_dir() and (root / test).is_dir():
                return root / "train", root / test
    raise ConfigError(
        f"{option}: {folder} needs folders train and test (or val) with a folder for each class; for others say "
        "NAME=TRAIN,TEST"
    )


def refuse_bad(benchmark: Benchmark, sweeps: Sequence[Sweep], origins: Origins, least: int = 2) -> None:
    """Looks at every picture and every cell before anything is trained.

    Args:
        benchmark: its sources.
        sweeps: its cells.
        origins: which modules an experiment may name.
        least: images that every training set needs.

    Raises:
        FileNotFoundError, ValueError, ConfigError: what is missing or wrong, and what to change.
    """
    for source in benchmark.sources:
        count = len(find(str(source.train), benchmark.class_list, source.name))
        if count < least:
            raise ValueError(f"{source.name}: {source.train} has {count} images, density and coverage need {least}")
    seen: set[str] = set()
    for sweep in sweeps:
        for cell in sweep.cells.values():
            config = sweep.compose(cell)
            if config["trainer"].get("devices") != 1:
                raise ConfigError(
                    "--trainer.devices: a cell is trained on one device; several cells run beside each other by --jobs"
                )
            node = config["data"]
            options = config["model"]["init_args"]
            with torch.device("meta"):  # refuses an unknown network, or a size that it cannot take
                build_network(options["network"], 2, options["size"])
            key = json.dumps({**node["init_args"], "seed": 0}, sort_keys=True)
            if key not in seen:
                seen.add(key)
                data = check_component("data", node, LightningDataModule, origins=origins).build()
                assert isinstance(data, ClassFolders)
                data.find_data()
                accumulated = config["trainer"].get("accumulate_grad_batches", 1)
                trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=accumulated)
                data.validate_experiment(SimpleNamespace(trainer=trainer))
