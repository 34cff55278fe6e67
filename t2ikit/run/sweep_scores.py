"""The scores of the finished cells of a sweep: small files that can be committed and count as done, and their table.

FILE.scores/<cell>.json      beside the experiment FILE.yaml
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.config.errors import ConfigError
from t2ikit.config.sweep import Cell, Sweep
from t2ikit.files import parse_json, write_whole
from t2ikit.metrics.fingerprint import read_scores
from t2ikit.run.kept import processor_name

UNMEASURED = "unmeasured"
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class CellScores:
    """What a finished cell says.

    Attributes:
        experiment: digest of what was trained.
        scores: last value of every score and validation loss, by name.
        series: every value of them, as pairs of step and value.
        fingerprints: SHA-256 of the conditions of a score, but for its seeds, which a sweep varies; by its name.
        step: of the last score.
        cpu_seconds: of the training process, where it was not interrupted.
        versions: of the kit and torch.
        processor: the model of the machine's processor: on the same one the same cell gives the same numbers.
    """

    experiment: str
    scores: Mapping[str, float]
    series: Mapping[str, Sequence[tuple[int, float]]]
    fingerprints: Mapping[str, str]
    step: int
    cpu_seconds: float | None
    versions: Mapping[str, str]
    processor: str

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_whole(path, json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")


def read_cell(path: Path) -> CellScores | None:
    """The scores of a cell; None where it is not finished.

    Raises:
        ConfigError: the file is none of a cell.
    """
    if not path.is_file():
        return None
    try:
        return CellScores(**parse_json(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no file of a sweep's scores ({error}): remove it to train this cell") from error


def scores_of_run(folder: Path, experiment: str, cpu_seconds: float | None, versions: Mapping[str, str]) -> CellScores:
    """The last scores of a finished run.

    Raises:
        ConfigError: the run has no ``metrics.csv`` or no scores in it.
    """
    try:
        series = read_metrics(folder / "metrics.csv")
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"a sweep reads scores from metrics.csv: keep loggers.csv ({error})") from error
    series = {name: values for name, values in sorted(series.items()) if not name.startswith("train/")}
    last = {name: values[-1] for name, values in series.items()}
    if not last:
        raise ConfigError(f"{folder}: the run gave no scores: name a snapshot or validate in the experiment")
    newest = {path.parent.parent.name: path for path in sorted(folder.glob("samples/*/scores/step-*"))}
    fingerprints = {
        f"{snapshot}/{name}": replace(score.fingerprint, seeds=None).hash()
        for snapshot, path in newest.items()
        for name, score in read_scores(path).items()
    }
    step = max(at for at, _ in last.values())
    scores = {name: value for name, (_, value) in last.items()}
    return CellScores(experiment, scores, series, fingerprints, step, cpu_seconds, dict(versions), processor_name())


def table(sweep: Sweep, done: Mapping[str, CellScores]) -> str:
    """The means over seeds, with the half width of their 95 % interval by Student's t, as a table of Markdown.

    A letter stands behind scores of a column where their fingerprints differ: only those of one letter may be compared.
    A sweep with the numbers of a paper has all of its rows, and these numbers at their end.

    Args:
        sweep: names the rows and, with ``scores``, the columns.
        done: scores of the finished cells, by name.
    """
    paper = sweep.paper
    rows: dict[str, list[Cell]] = {cell.row: [] for cell in sweep.cells.values() if paper.columns or cell.name in done}
    for cell in sweep.cells.values():
        if cell.name in done:
            rows[cell.row].append(cell)
    known = dict.fromkeys(name for scores in done.values() for name in scores.scores if "/seconds/" not in name)
    names = list(sweep.scores or known)
    letters = {name: _letters(done, name) for name in names}
    lines = [["cell", "seeds", *names, *(f"paper: {column}" for column in paper.columns)]]
    for row, cells in rows.items():
        results = [done[cell.name] for cell in cells]
        ours = [_entry(results, name, letters[name]) if results else UNMEASURED for name in names]
        lines.append([row, str(len(cells)), *ours, *paper.rows.get(row, ["-"] * len(paper.columns))])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "| " + " | ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    if any(letters.values()):
        text += ["", "Scores of one column with other letters were measured otherwise and are not comparable."]
    return "\n".join(text)


def _letters(done: Mapping[str, CellScores], name: str) -> dict[str, str]:
    """A letter for each fingerprint of a score; none where all agree."""
    kinds = dict.fromkeys(result.fingerprints[name] for result in done.values() if name in result.fingerprints)
    return {kind: f" {chr(97 + index)}" for index, kind in enumerate(kinds)} if len(kinds) > 1 else {}


def _entry(results: Sequence[CellScores], name: str, letters: Mapping[str, str]) -> str:
    values = [result.scores[name] for result in results if name in result.scores]
    if not values:
        return "-"
    kinds = {result.fingerprints.get(name, "") for result in results if name in result.scores}
    if len(kinds) > 1:
        return "measured otherwise between seeds"
    mean, half = mean_and_interval(values)
    width = "" if half is None else f" ± {half:.3g}"
    return f"{mean:.4g}{width}{letters.get(kinds.pop(), '')}"


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of some values, and the half width of its 95 % interval by Student's t; None for one value."""
    from scipy.stats import t

    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return mean, float(t.ppf(0.5 + _CONFIDENCE / 2, count - 1)) * deviation / math.sqrt(count)
