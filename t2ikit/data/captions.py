"""Which of several captions a slot gets: a pure function of the number that was drawn for it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from t2ikit.records.manifest import Manifest

CaptionWeights = Sequence[float] | Mapping[str, float]
"""One weight a caption, in their order, or by the kinds that the manifest names."""


def caption_kinds(manifest: Manifest) -> tuple[str, ...]:
    """Kinds of the captions of every record, in their order: ("long", "aio") for a manifest that says "long+aio"."""
    return tuple(kind for kind in manifest.captions.split("+") if kind)


def check_weights(weights: CaptionWeights) -> None:
    """Raises ValueError for weights that are negative or not finite, or all 0."""
    values = list(weights.values() if isinstance(weights, Mapping) else weights)
    if not all(math.isfinite(value) and value >= 0 for value in values) or not sum(values) > 0:
        raise ValueError(f"data.caption_weights must be at least 0, and not all 0: {values}")


class CaptionChoice:
    """Maps a uniform number and the captions of a record to one of them.

    Args:
        weights: relative weights, see :data:`CaptionWeights`; None takes every caption equally often, however many a
            record has. A weight of 0 leaves a caption out.
        kinds: of the captions of every record, for weights by name.
        place: of the set, for messages.

    Raises:
        ValueError: a weight is negative or not finite, or all are 0; weights by name that are not the kinds of the set.

    Example:
        >>> choice = CaptionChoice({"aio": 0.1, "long": 0.9}, kinds=("long", "aio"))
        >>> choice(0.89, 2), choice(0.91, 2)
        (0, 1)
    """

    def __init__(
        self, weights: CaptionWeights | None = None, kinds: Sequence[str] = (), place: str = "the set"
    ) -> None:
        self.place = place
        self._ends: list[float] = []
        if weights is None:
            return
        if isinstance(weights, Mapping):
            if sorted(weights) != sorted(kinds) or len(set(kinds)) < len(kinds):
                raise ValueError(
                    f"data.caption_weights names the captions {', '.join(weights)}, but {place} has "
                    f"{', '.join(kinds) or 'captions of no named kind'}: name those, each once (0 leaves one out), or "
                    "give a list of weights"
                )
            weights = [float(weights[kind]) for kind in kinds]
        check_weights(weights)
        self._ends = [end / math.fsum(weights) for end in accumulate(weights)]
        last = max(place for place, weight in enumerate(weights) if weight > 0)
        self._ends[last:] = [1.0] * (len(weights) - last)  # whatever the rounding

    def __call__(self, part: float, count: int) -> int:
        """The caption for a uniform number.

        Args:
            part: in [0, 1).
            count: captions of the record.

        Raises:
            ValueError: there are not as many weights as captions.
        """
        if not self._ends:
            return int(part * count)
        if len(self._ends) != count:
            raise ValueError(
                f"data.caption_weights has {len(self._ends)} weights, but a record of {self.place} has {count} "
                "captions: give one weight a caption"
            )
        return bisect_right(self._ends, part)
