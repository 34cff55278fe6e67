"""Photos in Parquet files as data sets are published on the Hugging Face Hub.

A column holds the bytes (and the path) of each photo, another one its class; the schema tells which, and the names of
the classes, under the key ``huggingface``. A file is read by row groups of 100 photos or so, some 11 MB for ImageNet: a
photo from here and one from there would each cost a whole group. Photos of a group therefore stay together in the order
of the set, while the groups are shuffled; where a source is sorted by class, only a few of a group do.
"""

from __future__ import annotations

import errno
import json
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from t2ikit.files import parse_json
from t2ikit.prepare.sources.captions import plain_caption
from t2ikit.prepare.sources.files import Files, LocalFiles, SourceLost, of_machine, require_photo_size
from t2ikit.prepare.sources.keys import Keys
from t2ikit.prepare.sources.paths import shard_names, split_of
from t2ikit.prepare.sources.photos import NO_CLASS_ID, Listing, Photos, Reader

_IMAGE_NAMES = ("image", "images", "img", "jpg", "jpeg", "png", "webp")
_LABEL_NAMES = ("label", "labels", "cls", "class", "class_id", "fine_label")
_ADDRESSES = ("url", "URL", "image_url")
_SORTED_RUN = 8
"""Photos of a row group that stay together where neighbours are of one class."""
_OPEN_FILES = 4
_HELD_GROUPS = 2


def parquet_photos(
    files: Files, paths: Sequence[str], field: str | None, caption_field: str | None = None
) -> dict[str, Photos]:
    """The photos of Parquet files, by split; files that name none are "train".

    Args:
        files: how they are read.
        paths: the files.
        field: the option ``--label-field``, the column of the class.
        caption_field: the option ``--caption-field``, the column of the caption; the class may then be missing.

    Raises:
        FileNotFoundError, ValueError: what is wrong with which file.
    """
    by_split: dict[str, list[str]] = {}
    for path in paths:
        if not files.is_file(path):
            raise FileNotFoundError(f"there is no file {path}: --source names it")
        by_split.setdefault(split_of(path) or "train", []).append(path)
    tests = by_split.pop("test", [])
    listed = {split: _listed(files, split, tuple(members), field, caption_field) for split, members in by_split.items()}
    if tests and listed:
        rows = sum(_open(files, path).metadata.num_rows for path in tests)
        next(iter(listed.values())).left_out.add("of the split test, which is not read", tests[0], rows)
    return listed


def _listed(files: Files, split: str, paths: tuple[str, ...], field: str | None, caption_field: str | None) -> Photos:
    image, label, names = _columns(paths[0], _open(files, paths[0]).schema_arrow, field, caption_field)
    listing, names_listing, captions = Listing(), Listing(), Listing()
    groups: list[tuple[int, int, int]] = []  # first position, number of the file, row group
    stamps, shards = [], shard_names(paths, ".parquet")
    for file_index, path in enumerate(paths):
        opened = _open(files, path)
        if _columns(path, opened.schema_arrow, field, caption_field)[:2] != (image, label):
            raise ValueError(f"{path} has other columns than {paths[0]}: give files of one data set with --source")
        stamps.append([path.rpartition("/")[2], files.stamp(path)[0]])
        row, base = 0, len(listing)
        has_path = _has_path(opened.schema_arrow.field(image).type)
        wanted = [column for column in (label, caption_field) if column] + ([f"{image}.path"] if has_path else [])
        for group in range(opened.num_row_groups):
            groups.append((len(listing), file_index, group))
            table = opened.read_row_group(group, columns=wanted, use_threads=False)
            columns = [
                table.column(column).to_pylist() if column in table.column_names else [None] * len(table)
                for column in (label, caption_field, image)
            ]
            for class_of_row, caption, facts in zip(*columns, strict=True):
                where = f"row {row} of column {label} of {path}"
                class_id = NO_CLASS_ID if label is None else _class_of(class_of_row, where)
                if caption_field is not None:
                    captions.add(plain_caption(caption, caption_field, f"row {row} of {path}"), -1, NO_CLASS_ID)
                name = (facts or {}).get("path")
                listing.add(f"{split}/{shards[file_index]}/{row:06d}", -1, class_id)
                names_listing.add(f"{split}/{name}" if name else "", -1, 0)
                row += 1
        if opened.metadata.num_rows != len(listing) - base:
            raise ValueError(f"{path} is damaged: download it again, or give another --source")
    if not len(listing):
        raise ValueError(f"{paths[0]} and the other files of {split} hold no photos: give another --source")
    class_labels = listing.labels
    starts, file_indices, row_groups = (np.array(column, np.int64) for column in zip(*groups, strict=True))
    reader = ParquetReader(files, paths, image, starts, file_indices, row_groups)
    keys = names_listing.keys if _unique(names_listing.keys) else listing.keys
    return Photos(
        keys,
        listing.sizes,
        class_labels,
        reader,
        listing.texts,
        names,
        _runs(class_labels, starts),
        stamp=json.dumps(stamps),
        captions=captions.keys if caption_field is not None else None,
        classless=label is None,
    )


class ParquetReader(Reader):
    """Photos in row groups; the last few groups stay in memory.

    Args:
        files: how they are read.
        paths: the Parquet files.
        column: of the photos.
        starts: [G] int64, position of the first photo of every row group, ascending.
        file_of: [G] int64, in which file each group lies.
        groups: [G] int64, its number in that file.
    """

    def __init__(
        self,
        files: Files,
        paths: tuple[str, ...],
        column: str,
        starts: np.ndarray,
        file_of: np.ndarray,
        groups: np.ndarray,
    ) -> None:
        self.files, self.paths, self.column = files, paths, column
        self.starts, self.file_of, self.groups = starts, file_of, groups
        self._opened: OrderedDict[str, Any] = OrderedDict()
        self._held: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict(), "_held": OrderedDict()}

    def read(self, position: int) -> bytes:
        group, row = self._group_and_row(position)
        content = self._group(group)[row].as_py()
        if isinstance(content, list):
            if len(content) != 1:
                raise OSError(errno.EINVAL, f"the row holds {len(content)} pictures, not one", self.where(position))
            content = content[0]["bytes"] if isinstance(content[0], dict) else content[0]
        if content is None:
            raise OSError(errno.ENODATA, "the row holds no bytes", self.where(position))
        require_photo_size(len(content), self.where(position))
        return bytes(content)

    def where(self, position: int) -> str:
        group, row = self._group_and_row(position)
        return f"{self.paths[self.file_of[group]]} row group {self.groups[group]} row {row}"

    def _group_and_row(self, position: int) -> tuple[int, int]:
        group = int(np.searchsorted(self.starts, position, side="right")) - 1
        return group, position - int(self.starts[group])

    def _group(self, group: int) -> Any:
        import pyarrow as pa

        if group in self._held:
            self._held.move_to_end(group)
            return self._held[group]
        path = self.paths[self.file_of[group]]
        try:
            if path not in self._opened:
                self._opened[path] = _open(self.files, path)
                if len(self._opened) > _OPEN_FILES:
                    self._opened.popitem(last=False)
            opened = self._opened[path]
            nested = _is_struct(opened.schema_arrow.field(self.column).type)
            column = f"{self.column}.bytes" if nested else self.column
            values = opened.read_row_group(int(self.groups[group]), columns=[column], use_threads=False).column(0)
            values = pa.chunked_array([chunk.field("bytes") for chunk in values.chunks]) if nested else values
        except pa.ArrowMemoryError:
            raise  # says nothing about the file
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and isinstance(of_machine(path, error), SourceLost):
                raise of_machine(path, error) from error
            if isinstance(self.files, LocalFiles) and self.files.is_file(path):
                raise OSError(errno.EIO, f"damaged row group: {error}".replace("\n", " "), path) from error
            raise SourceLost(f"{path} cannot be read any more: {error}") from error
        self._held[group] = values
        if len(self._held) > _HELD_GROUPS:
            self._held.popitem(last=False)
        return values


def _open(files: Files, path: str) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ValueError(
            "--source with Parquet files needs the package pyarrow, which is not installed: pip install t2ikit[parquet]"
        ) from error
    try:
        return pq.ParquetFile(path if isinstance(files, LocalFiles) else files.open(path))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file or not complete ({error}): download it again; --source") from error


def _columns(
    path: str, schema: Any, field: str | None, caption_field: str | None
) -> tuple[str, str | None, tuple[str, ...] | None]:
    """The columns of photo and class, and the names of the classes; no class where there are captions and none is."""
    features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    kinds = {name: facts.get("_type") for name, facts in features.items() if isinstance(facts, dict)}
    images = (
        [name for name in schema.names if kinds.get(name) == "Image"]
        or [column.name for column in schema if _is_picture(column.type)]
        or [column.name for column in schema if _is_list_of_pictures(column.type)]
    )
    image = next((name for name in _IMAGE_NAMES if name in images), images[0] if len(images) == 1 else None)
    labels = [name for name in schema.names if kinds.get(name) == "ClassLabel"]
    plain = [column.name for column in schema if _is_label(column.type)]
    label = field or next(
        (name for name in _LABEL_NAMES if name in labels or name in plain), labels[0] if len(labels) == 1 else None
    )
    if image is None:
        address = next((name for name in _ADDRESSES if name in schema.names), None)
        download = f" (its column {address} holds addresses: download the pictures first, into WebDataset tars)"
        raise ValueError(
            f"{path} has no column of images among {', '.join(schema.names)}{download if address else ''}: give "
            "another --source"
        )
    if caption_field is not None and caption_field not in schema.names:
        raise ValueError(
            f"{path} has no column {caption_field}: name one of {', '.join(schema.names)} with --caption-field"
        )
    if label is None and caption_field is not None:
        return image, None, None
    if label is None or label not in schema.names:
        raise ValueError(
            f"{path} has {f'no column {field}' if field else 'no column that must be the class'}: name one of "
            f"{', '.join(name for name in schema.names if name != image)} with --label-field"
        )
    names = features.get(label, {}).get("names") if isinstance(features.get(label), dict) else None
    return image, label, tuple(names) if names else None


def _class_of(value: Any, where: str) -> int | str:
    """The class of a row; 1.0 is class 1, as pandas writes whole numbers of a column where one was missing."""
    if value is None or value != value:
        raise ValueError(f"there is no class in {where}: --label-field names another column")
    if isinstance(value, (float, Decimal)) and value == int(value):
        return int(value)
    if not isinstance(value, (int, str)):
        raise ValueError(
            f"{value!r} is the class in {where}: a class is a whole number or a text; --label-field names another "
            "column"
        )
    return value


def _is_picture(kind: Any) -> bool:
    return _is_struct(kind) or _is_bytes(kind)


def _is_list_of_pictures(kind: Any) -> bool:
    """Whether each row holds a list of pictures, such as the column ``images`` of sets for several images a text."""
    import pyarrow as pa

    types = pa.types
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(listed) and _is_picture(kind.value_type)


def _is_struct(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0


def _is_bytes(kind: Any) -> bool:
    """Bytes as pyarrow, polars or DuckDB write them."""
    import pyarrow as pa

    types = pa.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_label(kind: Any) -> bool:
    """Numbers or text, also as a category of pandas."""
    import pyarrow as pa

    types = pa.types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or texts)


def _has_path(kind: Any) -> bool:
    return _is_struct(kind) and kind.get_field_index("path") >= 0


def _unique(keys: Keys) -> bool:
    """Whether every photo has a path, and no other photo the same."""
    return bool((np.diff(keys.starts) > 0).all()) and keys.repeated() is None


def _runs(labels: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Where the runs begin that stay together: row groups, or pieces of them if the source is sorted by class."""
    changes = np.count_nonzero(labels[1:] != labels[:-1])
    classes = len(np.unique(labels))
    # Of random neighbours about 1 - 1 / classes differ.
    if classes < 2 or changes >= 0.5 * (1 - 1 / classes) * (len(labels) - 1):
        return starts
    ends = np.append(starts[1:], len(labels))
    runs = array("q")
    for start, end in zip(starts, ends, strict=True):
        runs.extend(range(int(start), int(end), _SORTED_RUN))
    return np.array(runs, np.int64)
