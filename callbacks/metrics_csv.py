"""A logger that appends every value of a run to ``metrics.csv``: one line per value, so nothing is ever rewritten.

Where the disk is full the lines wait in memory for the next ones: the run goes on.
"""

from __future__ import annotations

import csv
import io
import warnings
from argparse import Namespace
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from t2ikit.files import write_whole

HEADER = ("step", "name", "value")


class MetricsCSV(Logger):
    """Appends ``step,name,value`` lines; values are written with all their digits.

    Args:
        folder: the run folder; the file is ``<folder>/metrics.csv``.
        step: at which the run resumes: it goes on in the same file, and its first line takes out those of later steps
            and a torn last one. A resume that is refused loses none. What is logged of this step once more, such as a
            snapshot that was interrupted, takes the place of what was.
    """

    def __init__(self, folder: str, step: int = 0) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._resumed_at = step or None
        self._rewound = False
        self._unwritten = b""
        self._full = False

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved experiment lies beside the run as ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        for name, value in metrics.items():
            writer.writerow((0 if step is None else step, name, repr(float(value))))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._resumed_at is not None and (not self._rewound or step == self._resumed_at):
            self._take_out(self._resumed_at, metrics.keys() if step == self._resumed_at else ())
            self._rewound = True
        self._unwritten += lines.getvalue().encode()
        try:
            self._append(self._unwritten)
        except OSError as error:
            if not self._full:
                warnings.warn(f"{self.path} could not be written ({error.strerror}): its lines wait", stacklevel=1)
            self._full = True
        else:
            self._unwritten, self._full = b"", False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Tries a last time to write what still waits, and says what is lost."""
        if not self._unwritten:
            return
        try:
            self._append(self._unwritten)
        except OSError as error:
            lines = self._unwritten.count(b"\n")
            warnings.warn(f"{lines} lines of {self.path} are lost ({error.strerror})", stacklevel=1)
        self._unwritten = b""

    def _append(self, lines: bytes) -> None:
        """Appends all of these lines or none.

        Raises:
            OSError: none could be written.
        """
        with open(self.path, "ab", buffering=0) as file:
            size = file.tell()
            content = memoryview(lines if size else (",".join(HEADER) + "\n").encode() + lines)
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(size)
                raise

    def _take_out(self, step: int, names: Collection[str]) -> None:
        """Takes out the lines after ``step``, and those of ``step`` with these names."""
        if not self.path.exists():
            return
        text = self.path.read_bytes().decode(errors="replace")
        complete = text[: text.rfind("\n") + 1]
        rows = list(csv.reader(io.StringIO(complete)))
        _check_rows(self.path, rows)
        kept = io.StringIO()
        writer = csv.writer(kept, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(row for row in rows[1:] if int(row[0]) < step or (int(row[0]) == step and row[1] not in names))
        write_whole(self.path, kept.getvalue())


def read_metrics(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """``metrics.csv`` as series: name -> [(step, value), ...] in the order of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a ``metrics.csv``, or a line is damaged.
    """
    with open(path, newline="", errors="replace") as file:
        return parse_metrics(file, path)


def parse_metrics(lines: Iterable[str], path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """The same of lines that were read already; ``path`` is for messages."""
    rows = list(csv.reader(lines))
    if not rows or tuple(rows[0]) != HEADER:
        raise ValueError(f"{path} is not a metrics.csv of a run: its first line must be {','.join(HEADER)}")
    series: dict[str, list[tuple[int, float]]] = {}
    _check_rows(path, rows)
    for step, name, value in rows[1:]:
        series.setdefault(name, []).append((int(step), float(value)))
    return series


def _check_rows(path: str | Path, rows: list[list[str]]) -> None:
    """ValueError for a line after the first that is not ``step,name,value``, with its number."""
    for index, row in enumerate(rows[1:], 2):
        try:
            step, _, value = row
            int(step), float(value)
        except ValueError as error:
            raise ValueError(
                f"{path}: line {index} is damaged ({','.join(row)[:80]!r}), it is not {','.join(HEADER)}: remove it"
            ) from error
