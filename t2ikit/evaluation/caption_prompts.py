"""The captions of a prepared set as prompts, with the text states that are stored beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2ikit.batch import Texts
from t2ikit.data.batches import read_batch
from t2ikit.data.datamodule import DataModule
from t2ikit.prompts import Encode, Prompt, PromptSource, check_count
from t2ikit.records.record_set import RecordSet


@dataclass
class CaptionPrompts(PromptSource):
    """The captions of a prepared set, with their stored text states.

    Attributes:
        split: the set below the data root.
        limit: take only the first ones; None takes all.
    """

    split: str = "val"
    limit: int | None = None

    def __post_init__(self) -> None:
        check_count("CaptionPrompts", "limit", self.limit)

    def prompts(self) -> list[Prompt]:
        raise ValueError("the captions of a prepared set are read through its data module: with_data(data).prompts()")

    def with_data(self, data: DataModule) -> PromptSource:
        option = data.size_options.get(self.split)
        remedy = f"raise {option}" if option else f"prepare a larger set {self.split}"
        return _Captions(data.record_set(self.split), self.limit, remedy)


class _Captions(PromptSource):
    """The first captions of a set that is open."""

    name = "CaptionPrompts"

    def __init__(self, records: RecordSet, limit: int | None, remedy: str) -> None:
        self.records = records
        if limit is None or limit >= len(records):  # a higher one gives no more
            self.remedy = remedy
        self.count = len(records) if limit is None else min(limit, len(records))

    def prompts(self) -> list[Prompt]:
        records = (self.records[index] for index in range(self.count))
        return [Prompt(record.captions[0], record.metadata) for record in records]

    def states(self, prompts: Sequence[Prompt], encode: Encode) -> Sequence[Texts]:
        return _StoredStates(self.records, len(prompts))


class _StoredStates(Sequence[Texts]):
    """States of the first captions of a set, read when they are asked for: those of 30,000 take gigabytes."""

    def __init__(self, records: RecordSet, length: int) -> None:
        self.records = records
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Texts]:
        return (self[index] for index in range(self.length))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(self.length))]
        if not 0 <= index < self.length:
            raise IndexError(index)
        at = np.array([index])
        return read_batch([self.records.view(index)], [0], 0, at * 0, at * 0.0, at, 1).text()
