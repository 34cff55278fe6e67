"""What ``prepare encode`` computes: records, of the images and captions of one part of a set.

``compute`` does not wait for a GPU: it only sends work, shard after shard, while the thread that writes fetches results
on a stream of its own and makes the records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from t2ikit.prepare.captions.lines import CaptionLines
from t2ikit.prepare.encode.encoders import Encoded, Encoders
from t2ikit.prepare.engine.shards import Ledger, Rejected
from t2ikit.prepare.engine.work import Work
from t2ikit.records.chunks import open_chunk
from t2ikit.records.compressed import Compressed, stored_picture
from t2ikit.records.record import Record, Stored, text_arrays
from t2ikit.records.record_set import RecordSet
from t2ikit.records.view import RecordView


@dataclass(frozen=True)
class _Item:
    """One image with its captions, as it is loaded.

    Attributes:
        metadata: of the image.
        texts: its captions.
        pixels: [3, S, S] uint8; None in a pass over the captions alone.
        kept: arrays of the record that are there already: the picture, the states of earlier passes.
    """

    metadata: dict[str, Any]
    texts: tuple[str, ...]
    pixels: np.ndarray | None = None
    kept: dict[str, Stored] = field(default_factory=dict)


@dataclass(frozen=True)
class _Draft:
    """A record whose image and states may still be on the device.

    Attributes:
        item: what was loaded.
        batch: in which its image was encoded.
        row: of the image in the batch.
        states: for each caption, in which batch its states are, and in which row.
    """

    item: _Item
    batch: Encoded
    row: int
    states: tuple[tuple[Encoded, int], ...]


class EarlierPass:
    """What an earlier pass computed, item by item."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._shard = -1
        self._chunk: tuple[memoryview, list[int]] = memoryview(b""), []

    def __getstate__(self) -> dict[str, Any]:
        return {"ledger": self.ledger, "_shard": -1, "_chunk": (b"", [])}

    def arrays(self, index: int) -> dict[str, Stored]:
        """The arrays of an item."""
        shard, row = divmod(index, self.ledger.shard_size)
        if shard != self._shard:
            self._chunk = open_chunk(self.ledger.path(shard), len(self.ledger.range(shard)))
            self._shard = shard
        buffer, offsets = self._chunk
        return dict(Record.from_bytes(buffer[offsets[row] + 4 : offsets[row + 1]]).arrays)


class Encoding(Work):
    """One pass over a part of an image set: the states of one text encoder, and in the last pass whole records.

    A caption is encoded once per shard (class captions repeat). Not once for all: the last bits of its states depend on
    the texts of its batch, and a call that continues must end with the same bytes as one that was not stopped.

    Args:
        images, captions, part: what is encoded.
        encoders: all of them.
        encoder: name of the text encoder of this pass.
        identity: see :class:`Work`.
        earlier: the other text encoders' passes; None for one of these, whose results hold states alone.
    """

    def __init__(
        self,
        images: RecordSet,
        captions: CaptionLines,
        part: range,
        encoders: Encoders,
        encoder: str,
        identity: str,
        earlier: Sequence[EarlierPass] | None,
    ) -> None:
        self.images = images
        self.captions = captions
        self.part = part
        self.encoders = encoders
        self.encoder = encoder
        self.identity = identity
        self.earlier = earlier
        self._known: dict[str, tuple[Encoded, int]] = {}
        self._stream: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        return len(self.part)

    def load(self, index: int) -> _Item:
        view = self.images.view(self.part[index])
        metadata = view.details()[1]
        key, texts = self.captions[self.part[index]]
        if metadata["key"] != key:
            raise ValueError(
                f"{self.captions.path} has {key} where the images have {metadata['key']}: run t2ikit prepare captions "
                "--overwrite"
            )
        if self.earlier is None:
            return _Item(metadata, texts)
        kept: dict[str, Stored] = {}
        image, pixels = view.stored("image"), view.array("image").copy()
        if isinstance(image, Compressed):
            image = Compressed(image.codec, bytes(image.content), image.shape)
        if self.encoders.space is None:
            kept["image"] = image if isinstance(image, Compressed) else pixels
        elif self.encoders.picture:
            same = isinstance(image, Compressed) and image.codec == self.encoders.picture
            kept["picture"] = image if same else stored_picture(pixels, self.encoders.picture)
        for earlier in self.earlier:
            kept |= earlier.arrays(index)
        return _Item(metadata, texts, pixels, kept)

    def setup(self, device: torch.device) -> None:
        self.encoders.device = device  # the autoencoder follows the images
        self.encoders.names[self.encoder].to(device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin_shard(self) -> None:
        self._known.clear()

    def compute(self, items: list[Any]) -> Sequence[Any]:
        new = [text for text in dict.fromkeys(text for item in items for text in item.texts) if text not in self._known]
        pixels = None if self.earlier is None else np.stack([item.pixels for item in items])
        batch = self.encoders.begin(pixels, new, self.encoders.names[self.encoder])
        self._known.update((text, (batch, row)) for row, text in enumerate(new))
        drafts = [
            _Draft(item, batch, row, tuple(self._known[text] for text in item.texts)) for row, item in enumerate(items)
        ]
        return drafts if self._defers else self.finish(drafts)

    @property
    def _defers(self) -> bool:
        """Whether the device works by itself; on a CPU, waiting would only keep states in memory."""
        return self.encoders.device.type == "cuda"

    def finish(self, results: Sequence[Any]) -> list[bytes]:
        return [self._record(result) if isinstance(result, _Draft) else result for result in results]

    def _record(self, draft: _Draft) -> bytes:
        states = text_arrays(self.encoder, (batch.result(self._stream)[1][row] for batch, row in draft.states))
        if self.earlier is None:
            return Record(states, draft.item.texts).to_bytes()
        images = draft.batch.result(self._stream)[0]
        assert images is not None
        image, kept = images[draft.row], draft.item.kept
        if image.dtype != np.uint8 and not np.isfinite(image).all():
            key = draft.item.metadata["key"]
            raise ValueError(f"the posterior of {key} does not fit float16: use another --autoencoder")
        first: dict[str, Stored] = {"image": kept.get("image", image)}
        if "picture" in kept:
            first["picture"] = kept["picture"]
        return Record({**first, **states, **kept}, draft.item.texts, draft.item.metadata).to_bytes()

    def facts(self, results: Sequence[bytes | Rejected]) -> Mapping[str, int]:
        views = [RecordView(result) for result in results if isinstance(result, bytes)]
        lengths = (
            view.length(encoder, caption)
            for view in views
            for encoder in view.layout.texts
            for caption in range(view.captions_count)
        )
        return {"longest": max(lengths, default=0)}
