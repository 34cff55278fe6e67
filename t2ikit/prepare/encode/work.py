"""What ``prepare encode`` computes: records, of the images and captions of one part of a set.

``compute`` does not wait for a GPU: it only sends work, shard after shard, while the thread that writes fetches results
on a stream of its own and makes the records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from t2ikit.prepare.captions.lines import CaptionLines
from t2ikit.prepare.encode.encoders import Encoded, Encoders
from t2ikit.prepare.engine.shards import Rejected
from t2ikit.prepare.engine.work import Work
from t2ikit.records.record import Record, RecordView
from t2ikit.records.record_set import RecordSet


@dataclass(frozen=True)
class _Draft:
    """A record whose image and states may still be on the device.

    Attributes:
        batch: in which its image was encoded.
        index: of the image in the batch.
        metadata: of the image.
        texts: its captions.
        tokens: for each caption, in which batch its states are, and at which index.
    """

    batch: Encoded
    index: int
    metadata: dict[str, Any]
    texts: tuple[str, ...]
    tokens: tuple[tuple[Encoded, int], ...]


class Encoding(Work):
    """The records of one part of an image set.

    A caption is encoded once per shard (class captions repeat). Not once for all: the last bits of its states depend on
    the texts of its batch, and a call that continues must end with the same bytes as one that was not stopped.
    """

    def __init__(
        self, images: RecordSet, captions: CaptionLines, part: range, encoders: Encoders, identity: str
    ) -> None:
        self.images = images
        self.captions = captions
        self.part = part
        self.encoders = encoders
        self.identity = identity
        self._known: dict[str, tuple[Encoded, int]] = {}
        self._stream: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        return len(self.part)

    def load(self, index: int) -> tuple[np.ndarray, dict[str, Any], tuple[str, ...]]:
        """Pixels, metadata and captions."""
        view = self.images.view(self.part[index])
        metadata = view.details()[1]
        key, texts = self.captions[self.part[index]]
        if metadata["key"] != key:
            raise ValueError(
                f"{self.captions.path} has {key} where the images have {metadata['key']}: run t2ikit prepare captions "
                "--overwrite"
            )
        return view.image().copy(), metadata, texts

    def setup(self, device: torch.device) -> None:
        self.encoders.to(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin_shard(self) -> None:
        self._known.clear()

    def compute(self, items: list[Any]) -> Sequence[Any]:
        new = [text for text in dict.fromkeys(text for *_, texts in items for text in texts) if text not in self._known]
        batch = self.encoders.begin(np.stack([pixels for pixels, *_ in items]), new)
        self._known.update((text, (batch, index)) for index, text in enumerate(new))
        drafts = [
            _Draft(batch, index, metadata, texts, tuple(self._known[text] for text in texts))
            for index, (_, metadata, texts) in enumerate(items)
        ]
        return drafts if self._defers else self.finish(drafts)

    @property
    def _defers(self) -> bool:
        """Whether the device works by itself; on a CPU, waiting would only keep states in memory."""
        return self.encoders.device.type == "cuda"

    def finish(self, results: Sequence[Any]) -> list[bytes]:
        return [self._record(result) if isinstance(result, _Draft) else result for result in results]

    def _record(self, draft: _Draft) -> bytes:
        image = draft.batch.result(self._stream)[0][draft.index]
        if image.dtype != np.uint8 and not np.isfinite(image).all():
            key = draft.metadata["key"]
            raise ValueError(f"the posterior of {key} does not fit float16: use another --autoencoder")
        tokens = tuple(batch.result(self._stream)[1][index] for batch, index in draft.tokens)
        return Record(image, draft.texts, tokens, draft.metadata).to_bytes()

    def facts(self, results: Sequence[bytes | Rejected]) -> Mapping[str, int]:
        views = [RecordView(result) for result in results if isinstance(result, bytes)]
        lengths = (view.length(caption) for view in views for caption in range(view.states_count))
        return {"longest": max(lengths, default=0)}
