"""Which of its captions a record is seen with.

A pure function of a uniform number, so that it is the same for any number of ranks or workers, and after any resume.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate as running_sums

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
        folder: of the set, for messages.

    Raises:
        ValueError: a weight is negative or not finite, or all are 0; weights by name that are not the kinds of the set.

    Example:
        >>> choice = CaptionChoice({"aio": 0.1, "long": 0.9}, kinds=("long", "aio"))
        >>> choice(0.89, 2), choice(0.91, 2)
        (0, 1)
    """

    def __init__(
        self, weights: CaptionWeights | None = None, kinds: Sequence[str] = (), folder: str = "the set"
    ) -> None:
        self.folder = folder
        self._ends: list[float] = []
        if weights is None:
            return
        if isinstance(weights, Mapping):
            if sorted(weights) != sorted(kinds) or len(set(kinds)) < len(kinds):
                raise ValueError(
                    f"data.caption_weights names the captions {', '.join(weights)}, but {folder} has "
                    f"{', '.join(kinds) or 'captions of no named kind'}: name those, each once (0 leaves one out), or "
                    "give a list of weights"
                )
            weights = [float(weights[kind]) for kind in kinds]
        check_weights(weights)
        self._ends = [end / math.fsum(weights) for end in running_sums(weights)]
        last = max(caption for caption, weight in enumerate(weights) if weight > 0)
        self._ends[last:] = [1.0] * (len(weights) - last)  # whatever the rounding

    def __call__(self, uniform: float, count: int) -> int:
        """The caption for a uniform number in [0, 1), of a record with ``count`` captions.

        Raises:
            ValueError: there are not as many weights as captions.
        """
        if not self._ends:
            return int(uniform * count)
        if len(self._ends) != count:
            raise ValueError(
                f"data.caption_weights has {len(self._ends)} weights, but a record of {self.folder} has {count} "
                "captions: give one weight a caption"
            )
        return bisect_right(self._ends, uniform)
