"""The user's own captions: a file of TSV, JSON lines or Parquet, looked up by the key of an image.

Memory holds one hash and one offset per line (16 bytes), not keys or captions: 1.28 million lines take 20 MB. Parquet,
which cannot be read from the middle of a column, is first written to a file of JSON lines.
"""

from __future__ import annotations

import json
import unicodedata
from array import array
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from t2ikit.files import check_text, parse_json, partial_of
from t2ikit.prepare.steps import hash_of

SUFFIXES = (".tsv", ".txt", ".jsonl", ".ndjson", ".parquet")
_EXPECTED = {
    "tsv": "`path<TAB>caption`",
    "jsonl": '`{"key": "...", "caption": "..."}` (or "path" for "key", "captions": ["...", ...] for '
    '"caption"; or "file_name" and "text")',
    "parquet": "the columns key (or path) and caption (or captions, a list), or file_name and text",
}
_OPTION = "--captions"
_KEYS, _CAPTIONS = ("key", "path"), ("caption", "captions")
_FOLDER_KEY, _FOLDER_CAPTION = "file_name", "text"  # names in the metadata files of picture folders on the Hub
_BATCH = 1024


class CaptionTable:
    """Captions by key; close it when done, or use it as a context.

    Args:
        path: TSV (``path<TAB>caption``, with or without a line of such names above), JSON lines, or Parquet; the suffix
            says which.
        spool: folder for the JSON lines into which a Parquet file is written while it is open.

    Attributes:
        path: the file.
        columns: captions that every line has.

    Raises:
        FileNotFoundError: no such file; names ``--captions``.
        ValueError: an unknown suffix, or the first line that is not as it should be: with its number.
    """

    def __init__(self, path: Path, spool: Path) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{path} must end with one of {', '.join(SUFFIXES)}: the suffix decides how {_OPTION} reads it"
            )
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: give captions of your own with {_OPTION} FILE")
        self.path = path
        self.columns = self._headers = 0
        suffix = path.suffix.lower()
        self._kind = "parquet" if suffix == ".parquet" else "tsv" if suffix in (".tsv", ".txt") else "jsonl"
        self._spool = partial_of(spool / path.name) if self._kind == "parquet" else None
        try:
            if self._spool is not None:
                _spool_parquet(path, self._spool)
            self._stream = (self._spool or path).open("rb")
            self._inner_quote = _inner_quote(path) if self._kind == "tsv" else ""
            self._index()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> CaptionTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def close(self) -> None:
        """Closes the file; removes the JSON lines of a Parquet file."""
        if hasattr(self, "_stream"):
            self._stream.close()
        if self._spool is not None:
            self._spool.unlink(missing_ok=True)

    def get(self, key: str) -> tuple[str, ...] | None:
        """The captions of an image, None where the file has none."""
        hashed, form = np.uint64(_hash(key)), _one_form(key)
        index = int(np.searchsorted(self._sorted, hashed))
        while index < len(self._sorted) and self._sorted[index] == hashed:
            stored_key, captions = self._read(int(self._order[index]))
            if _one_form(stored_key) == form:
                return captions
            index += 1  # another key of the same hash
        return None

    def knows(self, hashes: np.ndarray) -> np.ndarray:
        """Which images have captions here.

        Args:
            hashes: [N] uint64, ``hashes_of`` their keys.

        Returns:
            [N] bool.
        """
        return np.isin(hashes, self._hashes)

    def unknown(self, hashes: np.ndarray) -> np.ndarray:
        """The lines, from 0, whose key belongs to none of the images.

        Args:
            hashes: [N] uint64, ``hashes_of`` the keys of all images.
        """
        return np.flatnonzero(~np.isin(self._hashes, hashes))

    def at(self, line: int) -> tuple[int, str]:
        """Number of a line as an editor counts, and its key."""
        return self._number(line), self._read(line)[0]

    def _number(self, line: int) -> int:
        """Number of a line as an editor counts: from 1, with the names of the columns above."""
        return line + 1 + self._headers

    @property
    def word(self) -> str:
        """What a line is called: "line", or "row" of Parquet."""
        return "row" if self._kind == "parquet" else "line"

    def _index(self) -> None:
        hashes, offsets = array("Q"), array("Q")
        start = 3 if self._stream.read(3) == b"\xef\xbb\xbf" else 0
        self._stream.seek(start)
        for line, content in enumerate(self._stream, 1):
            key, captions = self._parse(content, line)
            if line == 1 and self._kind == "tsv" and key in _KEYS and captions[0] in _CAPTIONS:
                self._headers, start = 1, start + len(content)
                continue
            self.columns = self.columns or len(captions)
            if len(captions) != self.columns:
                raise ValueError(
                    f"{self._label(line)} has {len(captions)} captions, the first one {self.columns}: every image "
                    "needs as many, caption i of the same kind for all"
                )
            hashes.append(_hash(key))
            offsets.append(start)
            start += len(content)
        if not len(hashes):
            raise ValueError(f"{self.path} is empty; {_OPTION} needs {_EXPECTED[self._kind]}")
        self._hashes = np.frombuffer(hashes, np.uint64)
        self._offsets = np.frombuffer(offsets, np.uint64)
        self._order = np.argsort(self._hashes, kind="stable")
        self._sorted = self._hashes[self._order]
        self._refuse_duplicates()

    def _refuse_duplicates(self) -> None:
        for index in np.flatnonzero(self._sorted[1:] == self._sorted[:-1]):
            first, second = int(self._order[index]), int(self._order[index + 1])
            key = self._read(first)[0]
            if _one_form(key) == _one_form(self._read(second)[0]):
                raise ValueError(
                    f"{self._label(self._number(second))} is a second one for {key}, after {self.word} "
                    f"{self._number(first)}: one {self.word} per image"
                )

    def _label(self, line_number: int) -> str:
        return f"{self.word} {line_number} of {self.path}"

    def _read(self, line: int) -> tuple[str, tuple[str, ...]]:
        self._stream.seek(int(self._offsets[line]))
        return self._parse(self._stream.readline(), self._number(line))

    def _parse(self, content: bytes, line_number: int) -> tuple[str, tuple[str, ...]]:
        try:
            line = content.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._label(line_number)} is not UTF-8 ({error.reason}), as {_OPTION} needs") from error
        parsed = _tsv_line(line, self._inner_quote) if self._kind == "tsv" else _json_line(line)
        if parsed is None:
            shown = line if len(line) <= 80 else f"{line[:80]}..."
            raise ValueError(
                f"{self._label(line_number)} is {shown!r}; {_OPTION} needs {_EXPECTED[self._kind]}, with text in it"
            )
        for text in (parsed[0], *parsed[1]):
            check_text(text, self._label(line_number))
        return parsed


def hashes_of(keys: Iterable[str]) -> np.ndarray:
    """[N] uint64: a hash of each key, the same in every Unicode form of it."""
    return np.fromiter(map(_hash, keys), np.uint64)


def _hash(key: str) -> int:
    return hash_of(_one_form(key).encode("utf-8", "surrogatepass"))


def _one_form(key: str) -> str:
    """A key in one Unicode form: a Mac writes and unpacks names in another one than Linux."""
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def _inner_quote(path: Path) -> str:
    """How a quote is written inside a quoted field of a TSV; nothing where a quote is a letter like any other.

    Doubled by pandas, Python's csv and spreadsheets, which quote every field, or those with a quote, or with a comma
    too; after a backslash by ``write.table`` of R, which quotes every field.
    """
    doubled = escaped = everywhere = with_commas = True
    inside = False
    with path.open("rb") as stream:
        for line in stream:
            if b'"' not in line:
                everywhere, with_commas = False, with_commas and b"," not in line
                continue
            for field in line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").split(b"\t"):
                quoted = len(field) > 1 and field.startswith(b'"') and field.endswith(b'"')
                if b'"' in field and not quoted:
                    return ""
                inner = field[1:-1] if quoted else b""
                everywhere = everywhere and quoted
                with_commas = with_commas and quoted == (b"," in field or b'"' in inner)
                doubled = doubled and b'"' not in inner.replace(b'""', b"")
                escaped = escaped and b'"' not in inner.replace(b'\\"', b"")
                inside = inside or b'"' in inner
    if doubled and (inside or everywhere or with_commas):
        return '""'
    return '\\"' if escaped and everywhere else ""


def _tsv_line(line: str, inner_quote: str) -> tuple[str, tuple[str, ...]] | None:
    key, tab, caption = line.partition("\t")
    if inner_quote:
        quoted = (field[1:-1].replace(inner_quote, '"') if field.startswith('"') else field for field in (key, caption))
        key, caption = quoted
    if not tab or not key or not caption.strip() or "\t" in caption:
        return None
    return key, (caption.strip(),)


def _json_line(line: str) -> tuple[str, tuple[str, ...]] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return _row(row) if isinstance(row, dict) else None


def _columns(names: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that key and caption may have among these."""
    if _FOLDER_KEY in names and not any(name in names for name in _KEYS):
        return (_FOLDER_KEY,), _CAPTIONS if any(name in names for name in _CAPTIONS) else (_FOLDER_CAPTION,)
    return _KEYS, _CAPTIONS


def _row(row: dict[str, Any]) -> tuple[str, tuple[str, ...]] | None:
    """Key and captions of a row; None if it has not just one of each, or no text."""
    keys, texts = ([row[name] for name in names if row.get(name) is not None] for names in _columns(row))
    if len(keys) != 1 or len(texts) != 1 or not isinstance(keys[0], str) or not keys[0]:
        return None
    captions = [texts[0]] if isinstance(texts[0], str) else texts[0]
    if not isinstance(captions, list) or not captions:
        return None
    if not all(isinstance(caption, str) and caption.strip() for caption in captions):
        return None
    return keys[0], tuple(caption.strip() for caption in captions)


def _spool_parquet(path: Path, target: Path) -> None:
    """Writes the rows of a Parquet file as JSON lines, a thousand at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8") as stream:
        for row in _parquet_rows(path):
            stream.write(json.dumps(row, ensure_ascii=False, default=_text_or_nothing) + "\n")


def _text_or_nothing(value: Any) -> str | None:
    """Some writers store text as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"{path} needs pyarrow to be read by {_OPTION} (pip install t2ikit[parquet])") from error
    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            keys, texts = _columns(names)
            wanted = [name for name in (*keys, *texts) if name in names]
            if len(wanted) != 2 or wanted[0] not in keys:
                raise ValueError(f"{path} has the columns {', '.join(names)}; {_OPTION} needs {_EXPECTED['parquet']}")
            for batch in file.iter_batches(_BATCH, columns=wanted):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({error}): give another file with {_OPTION}") from error
