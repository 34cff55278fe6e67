"""Records copied into one batch.

Shapes::

    B  slots of a micro-batch        S  their text tokens, packed        L  longest caption, rounded up
    D  width of the text states      G  scales a token
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from t2ikit.batch import StoredBatch, StoredText
from t2ikit.records.states import GROUP
from t2ikit.records.view import RecordView


def read_batch(
    views: Sequence[RecordView],
    captions: Sequence[int],
    slot: int,
    source: np.ndarray,
    u: np.ndarray,
    index: np.ndarray,
    length_bucket: int,
    arrays: Sequence[str] = ("image",),
) -> StoredBatch:
    """Copies records into one batch: arrays stacked, text states packed without padding.

    Only the named arrays and the states of the chosen captions are read; a compressed picture is decoded here.

    Args:
        views: B records of one layout.
        captions: which caption of each is used.
        slot: first global slot.
        source: [B] int64; u: [B] in [0, 1]; index: [B] int64.
        length_bucket: L is rounded up to a multiple of this, so that few shapes occur (a compiled model is compiled
            once for each).
        arrays: names of the arrays; ``image`` is always read.
    """
    return StoredBatch(
        image=_stacked(views, "image"),
        texts={encoder: _packed(views, captions, encoder, length_bucket) for encoder in views[0].layout.texts},
        u=torch.from_numpy(u.astype(np.float32)),
        source=torch.from_numpy(source.astype(np.int64)),
        index=torch.from_numpy(index.astype(np.int64)),
        slot=slot,
        arrays={name: _stacked(views, name) for name in arrays if name != "image"},
    )


def _stacked(views: Sequence[RecordView], name: str) -> torch.Tensor:
    """An array of every record, copied: [B, ...]."""
    first = views[0].array(name)
    stack = np.empty((len(views), *first.shape), first.dtype)
    stack[0] = first
    for row, view in enumerate(views[1:], start=1):
        stack[row] = view.array(name)
    return torch.from_numpy(stack)


def _packed(views: Sequence[RecordView], captions: Sequence[int], encoder: str, length_bucket: int) -> StoredText:
    """The states of one text encoder of the chosen captions, copied one after the other."""
    lengths = np.array([view.length(encoder, caption) for view, caption in zip(views, captions, strict=True)])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    max_length = -(-int(lengths.max()) // length_bucket) * length_bucket
    states = [view.tokens(encoder, caption) for view, caption in zip(views, captions, strict=True)]
    values = np.concatenate([value for value, _ in states])
    scales = [factor for _, factor in states if factor is not None]
    pooled = None
    if encoder in views[0].layout.pooled:
        vectors = [view.pooled(encoder, caption) for view, caption in zip(views, captions, strict=True)]
        pooled = torch.from_numpy(np.stack(vectors))
    positions = np.repeat(np.arange(len(views)) * max_length - starts, lengths) + np.arange(len(values))
    return StoredText(
        tokens=torch.from_numpy(values),
        scales=torch.from_numpy(np.concatenate(scales)) if scales else None,
        positions=torch.from_numpy(positions),
        rows=len(views),
        max_length=max_length,
        group=GROUP,
        pooled=pooled,
        lengths=lengths,
    )
