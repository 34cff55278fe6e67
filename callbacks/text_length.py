"""ByTextLength: a batch is computed in parts with texts of about one length, so that little padding is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from t2ikit.batch import Batch, Text, each_text
from t2ikit.callbacks.augmentation import AugmentationCallback
from t2ikit.data.datamodule import DataModule
from t2ikit.module import TextToImage


class ByTextLength(AugmentationCallback):
    """Computes every micro-batch in parts, whose texts are padded to the longest of the part alone.

    Losses and gradients are those without it, but for rounding: every random number belongs to its slot (but masks of
    dropout, which belong to a micro-batch), and the loss is the mean over all rows. It pays where much of a step is
    text, texts differ much in length, and the processor is as fast on small batches: on CPU cores, uncompiled. The
    lengths are known on the host; nothing waits for a device.

    Args:
        parts: parts of a micro-batch, of equal numbers of rows but for one; 1 is off.

    Raises:
        ValueError: fewer parts than 1.
    """

    def __init__(self, parts: int = 3) -> None:
        super().__init__()
        if parts < 1:
            raise ValueError(f"callbacks.by_text_length: parts must be at least 1, got {parts}")
        self.parts = parts
        self._length_bucket = 1

    def validate_experiment(self, experiment: Any) -> None:
        """Refuses an objective that compares the rows of a batch with each other, and compiled code."""
        if self.parts == 1:
            return
        if getattr(experiment.model, "compiled", None) is not None:
            raise ValueError(
                "callbacks.by_text_length: the step would be compiled for every text length of every part: remove the "
                "callback (--callbacks.by_text_length null) or --model.compile"
            )
        objective = getattr(experiment.model, "objective", None)
        if objective is not None and any(getattr(layer, "compares_rows", False) for layer in objective.modules()):
            raise ValueError(
                "callbacks.by_text_length: a term of the objective compares the rows of a batch, which parts would "
                "keep from one another: remove the callback (--callbacks.by_text_length null)"
            )

    def register(self, data: DataModule, module: TextToImage) -> None:
        self._length_bucket = data.length_bucket
        module.add_batch_transform(self.augment)

    def augment(self, batch: Batch) -> tuple[Batch, ...]:
        lengths = batch.text_lengths
        if lengths is None or self.parts == 1:
            return (batch,)
        order = np.argsort(lengths.sum(axis=1), kind="stable")
        return tuple(self._part(batch.rows(rows)) for rows in np.array_split(order, self.parts) if len(rows))

    def _part(self, batch: Batch) -> Batch:
        """The same with each text cut behind its longest, rounded up to ``data.length_bucket``."""
        assert batch.text_lengths is not None
        longest = -(-batch.text_lengths.max(axis=0) // self._length_bucket) * self._length_bucket
        texts = tuple(text.cut(int(length)) for text, length in zip(each_text(batch.text), longest, strict=True))
        return replace(batch, text=texts[0] if isinstance(batch.text, Text) else texts)
