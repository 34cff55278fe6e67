"""``sweep`` of an experiment: grids of overlays, whose combinations are the cells.

sweep:
  scores: [geneval/overall]                  # columns of the table; without it all scores
  grids:
    rates:
      seeds: [0, 1, 2]                       # seed_everything of each repetition; without it [0]; set only here
      axes:
        rate: {low: OVERLAY, high: OVERLAY}  # null is the experiment as it is
        network: {cad: OVERLAY, dit: OVERLAY}
  paper:                                     # what a paper says of these cells, to stand beside ours
    columns: [FID, GenEval]
    rows: {rates low cad: [6.13, 0.55]}      # grid, then the value of each axis
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

from t2ikit.config.compose import check_overlay, compose, part_of
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.merging import Override

_NAME = re.compile(r"[A-Za-z0-9_]+")
READING = ("num_workers", "pin_memory", "eval_batch_size", "verify", "cache_dir", "cache_gb", "storage_options")
"""Options of the data that say how they are read, and not which."""
PLACE = {"data": ("root", *READING), "trainer": ("accelerator", "devices", "num_nodes", "strategy")}
"""Options that say where a cell is trained, and not what."""
MOST_CELLS = 10_000
"""Of a grid."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        grid: name of its grid.
        values: the value of each axis, by name.
        seed: ``seed_everything``.
        overlays: what makes it of the experiment, in order.
    """

    grid: str
    values: Mapping[str, str]
    seed: int
    overlays: tuple[dict[str, Any], ...]

    @property
    def row(self) -> str:
        """What it has in common with the other seeds, such as "rates low cad"."""
        return " ".join([self.grid, *self.values.values()])

    @property
    def name(self) -> str:
        """Of its folder and its file of scores, such as "rates-low-cad-seed0"."""
        return "-".join([self.grid, *self.values.values(), f"seed{self.seed}"])


@dataclass(frozen=True)
class Paper:
    """The numbers of a paper for the rows of a sweep.

    Attributes:
        columns: their headings.
        rows: an entry for each column, by the grid and the values of its axes: "rates low cad".
    """

    columns: tuple[str, ...] = ()
    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sweep:
    """The cells of an experiment in their order.

    Attributes:
        path: of the experiment.
        overrides: over every cell.
        cells: by name.
        scores: names of the scores that the table shows; empty for all.
        paper: numbers that stand beside them.
    """

    path: Path
    overrides: tuple[Override, ...]
    cells: Mapping[str, Cell]
    scores: tuple[str, ...]
    paper: Paper = field(default_factory=Paper, kw_only=True)

    def cell(self, name: str) -> Cell:
        """The cell of a name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.cells:
            raise ConfigError(f"--cell {name}: {self.path} has no such cell{nearest(name, self.cells)}")
        return self.cells[name]

    def compose(self, cell: Cell) -> dict[str, Any]:
        """The resolved experiment of a cell, which runs in ``<run.directory>/<run.name>/<cell>/version_<N>``."""
        config = compose(self.path, self.overrides, overlays=cell.overlays)
        run = config["run"]
        return {**config, "run": {"directory": str(Path(run["directory"]) / run["name"]), "name": cell.name}}

    def digest(self, config: Mapping[str, Any]) -> str:
        """SHA-256 of what a cell trains, wherever it is trained.

        Raises:
            ConfigError: the arguments of the data are no mapping.
        """
        decides = {key: value for key, value in config.items() if key not in ("run", "loggers")}
        for key, names in PLACE.items():
            given = decides.get(key) or {}
            node = {"class_path": given} if isinstance(given, str) else dict(given)
            options = node.get("init_args") or {} if key == "data" else node
            if not isinstance(options, dict):
                raise ConfigError(f"{key}.init_args: expected a mapping, got {options!r}")
            options = {name: value for name, value in options.items() if name not in names}
            decides[key] = {**node, "init_args": options} if key == "data" else options
        return hashlib.sha256(_json(decides).encode()).hexdigest()


def sweep_of(path: Path, overrides: Sequence[Override] = ()) -> Sweep:
    """The sweep of an experiment.

    Raises:
        ConfigError: it has none, or something in it is no grid; names the key.
    """
    sweep = part_of(path, "sweep", overrides)
    if any(override.key == "seed_everything" for override in overrides):
        raise ConfigError(
            "--seed_everything: the cells of a sweep take their seeds from its grids: --sweep.grids.NAME.seeds [0, 1]"
        )
    if not sweep:
        raise ConfigError(f"{path}: has no `sweep`: grids, each with axes of overlays")
    if part_of(path, "stages", overrides):
        raise ConfigError(f"{path}: has `stages` and `sweep`; cells are trained in one stage: take one of them out")
    _check_keys(sweep, ("grids", "scores", "paper"), f"{path}: sweep")
    scores = sweep.get("scores") or []
    if not isinstance(scores, list) or not all(isinstance(name, str) for name in scores):
        raise ConfigError(f"{path}: sweep.scores: expected names of scores, such as [geneval/overall], got {scores!r}")
    grids = sweep.get("grids")
    if not isinstance(grids, dict) or not grids:
        raise ConfigError(f"{path}: sweep.grids: expected grids by name, got {grids!r}")
    grids = {name: grid for name, grid in grids.items() if grid is not None}  # null drops a grid of `extends`
    cells = [cell for name, grid in grids.items() for cell in _cells(f"{path}: sweep.grids.{name}", name, grid)]
    paper = _paper(f"{path}: sweep.paper", sweep.get("paper"), {cell.row for cell in cells})
    found = Sweep(path, tuple(overrides), {cell.name: cell for cell in cells}, tuple(scores), paper=paper)
    _check_different(found)
    return found


def _check_different(sweep: Sweep) -> None:
    """Refuses two cells of a grid that train the same: their table would compare a run with itself.

    Those of unlike seeds differ, so one seed of every grid is looked at.

    Raises:
        ConfigError: names both, and what made them equal.
    """
    seeds, seen = dict[str, int](), dict[tuple[str, str], Cell]()
    for cell in sweep.cells.values():
        if seeds.setdefault(cell.grid, cell.seed) != cell.seed:
            continue
        other = seen.setdefault((cell.grid, sweep.digest(sweep.compose(cell))), cell)
        if other is not cell:
            axes = [axis for axis, value in cell.values.items() if other.values[axis] != value]
            raise ConfigError(
                f"{sweep.path}: sweep.grids.{cell.grid}: the cells '{other.row}' and '{cell.row}' train the same: "
                f"{_what_made_equal(sweep, other, cell, ' and '.join(axes))}"
            )


def _what_made_equal(sweep: Sweep, first: Cell, second: Cell, axes: str) -> str:
    def differ(overrides: Sequence[Override]) -> bool:
        other = replace(sweep, overrides=tuple(overrides))
        try:
            return other.digest(other.compose(first)) != other.digest(other.compose(second))
        except ConfigError:  # an override is needed: it gives what the file leaves open
            return False

    given = sweep.overrides
    guilty = [override for override in given if differ([other for other in given if other is not override])]
    if guilty or differ(()):
        keys = " ".join(f"--{override.key}" for override in guilty or given)
        return f"{keys} comes over what the axis {axes} sets; leave it out, or set another key"
    return (
        f"their overlays of the axis {axes} say the same, are set again by a later axis, or only say where and how a "
        "cell runs; change them, or take one of them out"
    )


def _json(node: dict[str, Any]) -> str:
    try:
        return json.dumps(node, sort_keys=True)
    except TypeError:  # keys that are numbers beside keys that are text
        return json.dumps(_with_text_keys(node), sort_keys=True)


def _with_text_keys(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _with_text_keys(value) for key, value in node.items()}
    return [_with_text_keys(value) for value in node] if isinstance(node, list) else node


def _paper(where: str, node: Any, known: set[str]) -> Paper:
    if node is None:
        return Paper()
    columns, rows = (node.get("columns"), node.get("rows")) if isinstance(node, dict) else (None, None)
    if (
        not isinstance(columns, list)
        or not isinstance(rows, dict)
        or not all(isinstance(word, str) for word in columns)
    ):
        raise ConfigError(f"{where}: expected {{columns: [NAME, ...], rows: {{CELL: [NUMBER, ...]}}}}, got {node!r}")
    _check_keys(node, ("columns", "rows"), where)
    for name, numbers in rows.items():
        if name not in known:
            raise ConfigError(f"{where}.rows: the sweep has no cells '{name}'{nearest(str(name), known)}")
        if not isinstance(numbers, list) or len(numbers) != len(columns):
            raise ConfigError(f"{where}.rows.{name}: expected an entry for each of {columns}, got {numbers!r}")
    return Paper(tuple(columns), {name: tuple(map(str, numbers)) for name, numbers in rows.items()})


def _cells(where: str, name: Any, grid: Any) -> Iterator[Cell]:
    _check_name(name, where)
    if not isinstance(grid, dict):
        raise ConfigError(f"{where}: expected axes and seeds, got {grid!r}")
    _check_keys(grid, ("axes", "seeds"), where)
    seeds = grid.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ConfigError(f"{where}.seeds: expected numbers from 0 up, such as [0, 1, 2], got {seeds!r}")
    axes = grid.get("axes")
    if not isinstance(axes, (dict, NoneType)):
        raise ConfigError(f"{where}.axes: expected axes by name, got {axes!r}")
    axes = axes or {}
    for axis, values in axes.items():
        _check_name(axis, f"{where}.axes.{axis}")
        if not isinstance(values, dict) or not values:
            raise ConfigError(f"{where}.axes.{axis}: expected overlays by name, got {values!r}")
        for value, overlay in values.items():
            _check_name(value, f"{where}.axes.{axis}.{value}")
            check_overlay(overlay, f"{where}.axes.{axis}.{value}")
            if "seed_everything" in (overlay or {}):
                raise ConfigError(f"{where}.axes.{axis}.{value}.seed_everything: set `seeds` of the grid instead")
    count = math.prod([len(set(seeds)), *map(len, axes.values())])
    if count > MOST_CELLS:
        raise ConfigError(f"{where}: {count:,} cells; a grid has at most {MOST_CELLS:,}")
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        overlays = tuple(axes[axis][value] or {} for axis, value in chosen.items())
        for seed in dict.fromkeys(seeds):
            yield Cell(name, chosen, seed, (*overlays, {"seed_everything": seed}))


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: names of grids, axes and values are letters, digits and underscores, in quotes")


def _check_keys(node: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in node:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(str(key), known)}")
