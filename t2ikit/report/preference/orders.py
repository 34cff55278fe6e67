"""The order of a rater's comparisons: a pure function of (seed, rater, question, prompt, pair).

The page computes it as ``templates/preference_order.js``, since only there the rater is known; an analysis computes it
again, to see which answers do not come from the page. Both take SHA-256 of the same text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

MOST_REPEATED = 0.5
"""Share of the comparisons that may be shown again: a repeat comes half of all comparisons later."""


@dataclass(frozen=True)
class Comparison:
    """Two pictures of one prompt, as a rater sees them.

    Attributes:
        question: its name.
        prompt: identity of the prompt.
        left, right: names of the pictures.
    """

    question: str
    prompt: str
    left: str
    right: str

    def swapped(self) -> Comparison:
        """The same with its sides changed."""
        return Comparison(self.question, self.prompt, self.right, self.left)


def repeats_of(share: float, count: int) -> int:
    """How many of ``count`` comparisons are shown again: ``share`` of them, rounded up."""
    return math.ceil(round(share * count, 6))  # 0.1 * 30 is a little more than 3


def comparisons_of(
    seed: int, rater: str, question: str, prompts: Sequence[tuple[str, Sequence[str]]], repeats: int
) -> list[Comparison]:
    """All comparisons of one question, in the order of a rater.

    Every pair of pictures of a prompt is compared. The SHA-256 of (seed, rater, question, prompt, pair) orders the
    comparisons and says which picture is left. Of the first half, those whose hash has the smallest second half are
    shown again with their sides swapped, each half of all comparisons after its first time.

    Args:
        seed: of the page.
        rater: name, as the page keeps it.
        question: name.
        prompts: identity and names of the pictures, sorted, of each prompt.
        repeats: how many are shown again, at most half of the comparisons, rounded up.
    """
    drawn = sorted(_drawn(seed, rater, question, prompts), key=lambda entry: entry[0])
    half = math.ceil(len(drawn) / 2)
    early = sorted(drawn[:half], key=lambda entry: entry[0][32:])
    repeated = {key for key, _ in early[:repeats]}
    order = []
    for index, (_, comparison) in enumerate(drawn):
        order.append(comparison)
        if index >= half - 1 and drawn[index - half + 1][0] in repeated:
            order.append(drawn[index - half + 1][1].swapped())
    return order


def _drawn(
    seed: int, rater: str, question: str, prompts: Sequence[tuple[str, Sequence[str]]]
) -> Iterator[tuple[str, Comparison]]:
    for prompt, pictures in prompts:
        for first, second in combinations(pictures, 2):
            words = (str(seed), rater, question, prompt, first, second)
            key = hashlib.sha256("\0".join(words).encode()).hexdigest()
            left, right = (second, first) if int(key[-1], 16) % 2 else (first, second)
            yield key, Comparison(question, prompt, left, right)
