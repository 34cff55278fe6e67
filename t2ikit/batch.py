"""What travels through a training step: text, predictions, stored and ready batches.

Shape legend of the whole project::

    B  samples in a batch          C, H, W  channels, height, width of x_0 (latents or pixels)
    L  text tokens (padded)        D        width of the text states
    S  text tokens of a batch, packed without padding (sum of the lengths)
    N  data tokens (patches)       M        latent tokens of CAD-I

``t`` in [0, 1]: 0 is clean, 1 is noise. ``u`` in [0, 1] is the noise quantile, ``t = process.t(u)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Moved = TypeVar("Moved", bound="Movable")


@dataclass
class Movable:
    """Moves every tensor of a dataclass, those in nested movables, tuples and dicts too; leaves the rest as it is."""

    def _map(self: Moved, function: Callable[[Any], Any]) -> Moved:
        def mapped(value: Any) -> Any:
            if isinstance(value, (Tensor, Movable)):
                return function(value)
            if isinstance(value, dict):
                return {key: mapped(entry) for key, entry in value.items()}
            return tuple(mapped(entry) for entry in value) if isinstance(value, tuple) else value

        return type(self)(**{attribute.name: mapped(getattr(self, attribute.name)) for attribute in fields(self)})

    def to(self: Moved, *args: Any, **kwargs: Any) -> Moved:
        """The same with every tensor moved; arguments as in ``Tensor.to`` (a dtype reaches floating tensors only)."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor) and not value.is_floating_point():
                device = torch._C._nn._parse_to(*args, **kwargs)[0]
                non_blocking = bool(kwargs.get("non_blocking", False))
                return value if device is None else value.to(device, non_blocking=non_blocking)
            return value.to(*args, **kwargs)

        return self._map(move)

    def pin_memory(self: Moved) -> Moved:
        """The same in page-locked memory, so that the copy to the device is asynchronous."""
        return self._map(lambda value: value.pin_memory())


@dataclass
class Text(Movable):
    """States of a text encoder, padded to the longest of the batch.

    Attributes:
        embeddings: [B, L, D] float.
        mask: [B, L] bool, True at a real token; numbers are taken as such (1 = real). Every row has at least one.
        pooled: [B, P] float, one vector a text, for encoders that give one.
    """

    embeddings: Tensor
    mask: Tensor
    pooled: Tensor | None = None

    def __post_init__(self) -> None:
        self.mask = self.mask.bool()
        if self.embeddings.dim() != 3 or self.mask.shape != self.embeddings.shape[:2]:
            raise ValueError(
                "Text needs embeddings [B, L, D] and mask [B, L]; got "
                f"{tuple(self.embeddings.shape)} and {tuple(self.mask.shape)}"
            )

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    def rows(self, index: Tensor | slice) -> Text:
        """The texts at ``index`` [K] int64, in that order (a row may be taken several times), or in a slice."""
        pooled = None if self.pooled is None else self.pooled[index]
        return Text(self.embeddings[index], self.mask[index], pooled)

    def pad(self, length: int) -> Text:
        """The same padded with masked zeros to ``length`` tokens; ``length`` must not be shorter than L."""
        extra = length - self.mask.shape[1]
        if extra < 0:
            raise ValueError(f"cannot pad {self.mask.shape[1]} tokens to {length}")
        if extra == 0:
            return self
        embeddings = torch.nn.functional.pad(self.embeddings, (0, 0, 0, extra))
        return Text(embeddings, torch.nn.functional.pad(self.mask, (0, extra)), self.pooled)

    def cut(self, length: int) -> Text:
        """The same without its columns from ``length`` on, which must be padding in every row; no copy."""
        if length >= self.mask.shape[1]:
            return self
        return Text(self.embeddings[:, :length], self.mask[:, :length], self.pooled)

    def replace(self, drop: Tensor, other: Text) -> Text:
        """The texts where ``drop`` [B] bool is False, and the single text of ``other`` where it is True.

        This is the conditioning drop of classifier-free guidance: ``other`` is the encoding of the empty prompt.

        Raises:
            ValueError: only one of the two has a pooled vector.
        """
        if (self.pooled is None) != (other.pooled is None):
            raise ValueError("of a text and the empty prompt only one has a pooled vector: encode both alike")
        length = max(self.mask.shape[1], other.mask.shape[1])
        kept, substitute = self.pad(length), other.pad(length)
        embeddings = torch.where(drop[:, None, None], substitute.embeddings.to(kept.embeddings), kept.embeddings)
        pooled = kept.pooled
        if pooled is not None and substitute.pooled is not None:
            pooled = torch.where(drop[:, None], substitute.pooled.to(pooled), pooled)
        return Text(embeddings, torch.where(drop[:, None], substitute.mask, kept.mask), pooled)

    @staticmethod
    def from_rows(rows: Sequence[Tensor], pooled: Tensor | None = None) -> Text:
        """Pads states of different lengths, each [L_i, D], to one text batch [B, max L_i, D]; ``pooled`` is [B, P]."""
        if not rows:
            raise ValueError("Text.from_rows needs at least one row")
        embeddings = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=embeddings.device)
        mask = torch.arange(embeddings.shape[1], device=embeddings.device)[None] < lengths[:, None]
        return Text(embeddings, mask, pooled)

    @staticmethod
    def join(texts: Sequence[Text]) -> Text:
        """The rows of all these texts, one text after the other, padded to the longest.

        Raises:
            ValueError: no text, or only some of them have a pooled vector.
        """
        if not texts:
            raise ValueError("Text.join needs at least one text")
        pooled = [text.pooled for text in texts if text.pooled is not None]
        if len(pooled) not in (0, len(texts)):
            raise ValueError("only some of the texts have a pooled vector: encode all of them alike")
        length = max(text.mask.shape[1] for text in texts)
        padded = [text.pad(length) for text in texts]
        embeddings, mask = torch.cat([text.embeddings for text in padded]), torch.cat([text.mask for text in padded])
        return Text(embeddings, mask, torch.cat(pooled) if pooled else None)


Texts = Text | tuple[Text, ...]
"""The conditioning: the text of the only text encoder, or a tuple with that of each, all of the same B rows."""


def each_text(texts: Texts) -> tuple[Text, ...]:
    """The text of every encoder.

    Raises:
        ValueError: something else than texts.
    """
    if isinstance(texts, Text):
        return (texts,)
    if not isinstance(texts, tuple) or not all(isinstance(text, Text) for text in texts):
        raise ValueError(
            f"a Text was expected, or a tuple with one for each of several text encoders; got a {type(texts).__name__}"
        )
    return texts


def map_texts(function: Callable[..., Text], *texts: Texts) -> Texts:
    """``function`` of the text of each encoder: one text where one is given, else a tuple.

    Args:
        function: takes as many texts as ``texts`` has entries.
        texts: all of the same encoders.

    Raises:
        ValueError: they are of unlike numbers of encoders.
    """
    counts = {len(each_text(entry)) for entry in texts}
    if len(counts) > 1:
        raise ValueError(f"texts of {' and of '.join(map(str, sorted(counts)))} text encoders do not fit each other")
    mapped = tuple(function(*group) for group in zip(*map(each_text, texts), strict=True))
    return mapped[0] if isinstance(texts[0], Text) else mapped


def text_rows(texts: Texts) -> int:
    """B, the number of rows of a conditioning.

    Raises:
        ValueError: the texts of its encoders have unlike numbers of rows.
    """
    counts = {len(text) for text in each_text(texts)}
    if len(counts) != 1:
        raise ValueError(f"the texts of all encoders must have the same rows; they have {sorted(counts)}")
    return counts.pop()


@dataclass
class Prediction:
    """What a denoiser returns.

    Attributes:
        output: [B, C, H, W], the network's target (epsilon, v or velocity: the process knows).
        state: opaque; handed to the next call of the same denoiser (CAD-I's latents), or None.
        features: [B, N, D], the image tokens after each block that was asked for (``taps``), in that order.
    """

    output: Tensor
    state: Any = None
    features: tuple[Tensor, ...] = ()


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """One after the other along the rows; a single one is itself, without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


@dataclass
class StepOutput:
    """What a training step hands to callbacks, under "step" of its outputs; nothing of it has a graph.

    Attributes:
        loss: [B], of every sample.
        parts: what ``loss`` is made of, each [B] under its name.
        batch: the batches of the step, whose rows follow each other in ``loss``; those of a classifier have no t.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    batch: tuple[Any, ...]

    @cached_property
    def source(self) -> Tensor:
        """[B] int64, which stream a sample came from."""
        return joined([batch.source for batch in self.batch])

    @cached_property
    def index(self) -> Tensor:
        """[B] int64, the record's index in that stream."""
        return joined([batch.index for batch in self.batch])

    @cached_property
    def t(self) -> Tensor | None:
        """[B] in [0, 1], the noise time; None where the batches have none."""
        if any(getattr(batch, "t", None) is None for batch in self.batch):
            return None
        return joined([batch.t for batch in self.batch])


@dataclass
class StoredText(Movable):
    """What one text encoder gave for the captions of a batch, as it is stored.

    Attributes:
        tokens: [S, D] int8 (or float16, then ``scales`` is None): the text states, packed without padding.
        scales: [S, ceil(D / group)] float16; the last group of channels may be narrower.
        positions: [S] int64, ``row * max_length + column`` of each packed token in the padded batch.
        rows: B.
        max_length: L of the padded text; a Python number, so that unpacking needs no host sync.
        group: channels that share one scale.
        pooled: [B, P] float16, or None for an encoder that gives no pooled vectors.
        lengths: [B] int64 on the host, tokens of each caption; None where nobody counted them.
    """

    tokens: Tensor
    scales: Tensor | None
    positions: Tensor
    rows: int
    max_length: int
    group: int = 64
    pooled: Tensor | None = None
    lengths: np.ndarray | None = None

    def text(self) -> Text:
        """Dequantised and padded on the device of the batch: embeddings [B, max_length, D] float32."""
        states = self.tokens.to(torch.float32)
        if self.scales is not None:
            whole, rest = divmod(states.shape[1], self.group)  # groups of full width, channels of a narrower one
            end = whole * self.group
            states[:, :end].unflatten(1, (whole, self.group)).mul_(self.scales[:, :whole, None])
            if rest:
                states[:, end:].mul_(self.scales[:, whole:])
        padded = states.new_zeros(self.rows * self.max_length, states.shape[1])
        padded.index_copy_(0, self.positions, states)
        mask = torch.zeros(self.rows * self.max_length, dtype=torch.bool, device=states.device)
        mask.index_fill_(0, self.positions, True)
        pooled = None if self.pooled is None else self.pooled.to(torch.float32)
        return Text(padded.view(self.rows, self.max_length, -1), mask.view(self.rows, self.max_length), pooled)


@dataclass
class StoredBatch(Movable):
    """Records as they are stored, with the noise quantile and the source of every slot.

    Attributes:
        image: [B, 3, H, W] uint8 pixels, or [B, 2, C, H, W] float16 posterior mean and standard deviation.
        texts: what each text encoder gave for the captions, by its name in the manifest and in that order.
        u: [B] float32 noise quantile.
        source: [B] int64, 0 = raw, then the gated streams in order.
        index: [B] int64, the record's index in its source.
        slot: first global slot of the batch in the whole run; its rows are consecutive slots.
        arrays: [B, ...] by name, further arrays of the records that were asked for.
    """

    image: Tensor
    texts: dict[str, StoredText]
    u: Tensor
    source: Tensor
    index: Tensor
    slot: int
    arrays: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.u.shape[0]

    def array(self, name: str) -> Tensor:
        """The array of the records of that name, [B, ...]; KeyError for one that was not asked for."""
        return self.image if name == "image" else self.arrays[name]

    def to(self, *args: Any, **kwargs: Any) -> StoredBatch:
        """As ``Tensor.to``; a batch in page-locked memory is copied to its device without waiting for it."""
        return super().to(*args, **{"non_blocking": self.u.is_pinned(), **kwargs})

    def text(self) -> Text | tuple[Text, ...]:
        """Dequantised and padded on the device of the batch; of several text encoders a tuple, in their order."""
        texts = tuple(text.text() for text in self.texts.values())
        return texts[0] if len(texts) == 1 else texts

    def text_lengths(self) -> np.ndarray | None:
        """[B, E] int64 on the host, tokens of each caption for each of E text encoders; None where unknown."""
        lengths = [text.lengths for text in self.texts.values() if text.lengths is not None]
        return np.stack(lengths, axis=1) if lengths and len(lengths) == len(self.texts) else None


@dataclass
class Batch(Movable):
    """A batch ready for the objective.

    Attributes:
        latents: [B, C, H, W] float32, x_0 in normalised units.
        text: the conditioning, before the conditioning drop; a tuple where several text encoders made it.
        t: [B] float32 in [0, 1].
        source: [B] int64, which stream a sample came from.
        index: [B] int64, the record's index in that stream.
        window: [B, 4] float32 (x0, y0, x1, y1) in [0, 1], the part of the image that is seen; None = all of it.
        extra: [B, ...] by name, the arrays of the records that the objective named; of whole images.
        slot: the key of every random number of the batch (``t2ikit.rng``): the global slot of the first row, where the
            slots of the rows are consecutive, or those of all rows, [B] int64.
        text_lengths: [B, E] int64 on the host, tokens of each row's text for each of E text encoders; None = unknown.
    """

    latents: Tensor
    text: Texts
    t: Tensor
    source: Tensor
    index: Tensor
    window: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    slot: int | np.ndarray = 0
    text_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return self.t.shape[0]

    @property
    def slots(self) -> np.ndarray:
        """[B] int64, the global slots of the rows."""
        return self.slot if isinstance(self.slot, np.ndarray) else np.arange(self.slot, self.slot + len(self))

    def part(self, start: int, end: int) -> Batch:
        """Rows ``start`` .. ``end - 1``, with the slots that they have in the whole: random numbers stay theirs."""
        slot = self.slot[start:end] if isinstance(self.slot, np.ndarray) else self.slot + start
        lengths = None if self.text_lengths is None else self.text_lengths[start:end]
        return self._at(slice(start, end), slot, lengths)

    def rows(self, index: np.ndarray) -> Batch:
        """The rows at ``index`` [K] int64, in that order, with the slots that they have in the whole."""
        lengths = None if self.text_lengths is None else self.text_lengths[index]
        return self._at(torch.from_numpy(index).to(self.t.device, non_blocking=True), self.slots[index], lengths)

    def _at(self, rows: Tensor | slice, slot: int | np.ndarray, text_lengths: np.ndarray | None) -> Batch:
        return Batch(
            latents=self.latents[rows],
            text=map_texts(lambda text: text.rows(rows), self.text),
            t=self.t[rows],
            source=self.source[rows],
            index=self.index[rows],
            window=None if self.window is None else self.window[rows],
            extra={name: array[rows] for name, array in self.extra.items()},
            slot=slot,
            text_lengths=text_lengths,
        )
