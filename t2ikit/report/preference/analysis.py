"""What raters prefer: everything that an analysis says of the exports of one page.

Pooled numbers are means of the questions, which weighs these alike however many ratings each got; the exact test of the
sides needs counts, and takes those of all questions together. A prompt is a text:
pictures of one text with several numbers are one prompt for intervals and tests. Repeats count in the agreement of a
rater with himself alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import combinations
from statistics import median

import numpy as np
from numpy.typing import NDArray

from t2ikit.report.preference.exports import Rater, Rating
from t2ikit.report.preference.key import Key
from t2ikit.report.preference.statistics import (
    Estimate,
    ExactTest,
    Shares,
    exact_test,
    interval,
    krippendorff,
    resampled,
    several_prompts,
    shares,
)
from t2ikit.report.preference.strengths import ELO, InfiniteStrengths, resampled_strengths, strengths

POOLED = "pooled"
MOST_INFINITE = 0.025
"""Share of resamples with infinite strengths up to which an interval is given, without them: a tail of the interval."""


@dataclass(frozen=True)
class Preference:
    """Two models in one question, or in all of them.

    Attributes:
        ratings: their number.
        shares: of all ratings.
        prompts: those of which most votes are for the first model (hits), or for the second (misses).
        prompts_tied: those with as many votes for both.
        alpha_nominal, alpha_ordinal: Krippendorff's alpha; None pooled, or where it is not defined.
    """

    ratings: int
    shares: Shares
    prompts: ExactTest
    prompts_tied: int
    alpha_nominal: float | None
    alpha_ordinal: float | None


@dataclass(frozen=True)
class Pair:
    """Two models.

    Attributes:
        first, second: names.
        questions: name -> what was preferred, of the questions with ratings; ``pooled`` last, where there are several.
    """

    first: str
    second: str
    questions: dict[str, Preference]


@dataclass(frozen=True)
class Strengths:
    """The models of one question, or of all.

    Attributes:
        elo: model -> points, with mean 0.
        left_out: resamples with infinite strengths, which no interval counts.
    """

    elo: dict[str, Estimate]
    left_out: int


@dataclass(frozen=True)
class RaterSummary:
    """One rater.

    Attributes:
        name: as the page keeps it.
        ratings: without repeats.
        answered, asked: comparisons, repeats included.
        same, left: shares of the ratings; left of those that prefer a picture, None where none does.
        median_ms: of an answer; None without any.
        repeats, agreed: comparisons that were answered twice, and those with the same answer.
        follows: whether the answers stand in the order of the page.
    """

    name: str
    ratings: int
    answered: int
    asked: int
    same: float | None
    left: float | None
    median_ms: float | None
    repeats: int
    agreed: int
    follows: bool


@dataclass(frozen=True)
class Analysis:
    """Everything that is said of the exports.

    Attributes:
        page: identity of the page.
        models: names.
        ratings, prompts: counts.
        pairs: every two models that were compared.
        ties: "half" or "davidson", how strengths read ties; None without strengths.
        strengths: question -> strengths, ``pooled`` last, where there are several; empty without.
        sides: question -> how often the left picture was preferred (hits) and the right one (misses); pooled last, the
            sum of the questions.
        raters: in the order of the exports.
    """

    page: str
    models: list[str]
    ratings: int
    prompts: int
    pairs: list[Pair]
    ties: str | None
    strengths: dict[str, Strengths]
    sides: dict[str, ExactTest]
    raters: list[RaterSummary]

    def to_json(self) -> str:
        """All of it, with names of fields as here."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"


def analyse(raters: Sequence[Rater], key: Key, ties: str | None = "half") -> Analysis:
    """The analysis of the exports of a page.

    Args:
        raters: see :func:`t2ikit.report.preference.exports.read_exports`.
        key: of the page.
        ties: "half" or "davidson" for the strengths of three or more models, None for no strengths.

    Raises:
        ValueError: there is no answer.
        InfiniteStrengths: of a question; names it and says why.
    """
    ratings = [rating for rater in raters for rating in rater.ratings]
    if not ratings:
        raise ValueError("the exports hold no answer")
    texts = {shown.prompt: shown.text for shown in key.prompts}
    pairs = [_pair(models, ratings, key, texts) for models in combinations(key.models, 2)]
    ties = ties if len(key.models) > 2 else None
    return Analysis(
        page=key.page,
        models=list(key.models),
        ratings=len(ratings),
        prompts=len({texts[rating.prompt] for rating in ratings}),
        pairs=[pair for pair in pairs if pair.questions],
        ties=ties,
        strengths={} if ties is None else _strengths(ratings, key, texts, ties == "davidson"),
        sides=_sides(ratings, key),
        raters=[_summary(rater) for rater in raters],
    )


def _asked(ratings: Sequence[Rating], key: Key) -> list[str]:
    """The questions with ratings, in the order of the page."""
    answered = {rating.question for rating in ratings}
    return [question for question in key.questions if question in answered]


# ------------------------------------------------------------------ two models


def _pair(models: tuple[str, str], every: Sequence[Rating], key: Key, texts: dict[str, str]) -> Pair:
    ratings = [rating for rating in every if rating.models == models]
    questions = _asked(ratings, key)
    if not questions:
        return Pair(*models, {})
    counts = _counts(ratings, questions, [models], texts)[:, :, 0]  # [Q, P, 3]
    found = {}
    for name, part in zip([*questions, POOLED], shares(counts), strict=True):
        chosen = [rating for rating in ratings if name in (rating.question, POOLED)]
        votes = _votes(counts if name == POOLED else counts[[questions.index(name)]])
        units = [((rating.prompt, rating.models), rating.value) for rating in chosen]
        alphas = [None if name == POOLED else krippendorff(units, ordinal) for ordinal in (False, True)]
        test = exact_test(sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes))
        found[name] = Preference(len(chosen), part, test, sum(vote == 0 for vote in votes), *alphas)
    if len(questions) == 1:
        del found[POOLED]
    return Pair(*models, found)


def _votes(counts: NDArray[np.float64]) -> list[Fraction]:
    """For every prompt with ratings, the mean over its questions of (first - second) / ratings; from [Q, P, 3]."""
    votes = []
    for prompt in counts.transpose(1, 0, 2).astype(int).tolist():
        parts = [Fraction(row[0] - row[2], sum(row)) for row in prompt if any(row)]
        if parts:
            votes.append(sum(parts, Fraction(0)) / len(parts))
    return votes


def _counts(
    ratings: Sequence[Rating], questions: Sequence[str], pairs: Sequence[tuple[str, str]], texts: dict[str, str]
) -> NDArray[np.float64]:
    """[Q, P, C, 3] ratings: first better, same, second better."""
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts[rating.prompt] for rating in ratings))}
    counts = np.zeros((len(questions), len(rows), len(pairs), 3))
    for rating in ratings:
        place = (questions.index(rating.question), rows[texts[rating.prompt]], pairs.index(rating.models))
        counts[(*place, 1 - rating.value)] += 1
    return counts


# ------------------------------------------------------------------ three models or more


def _strengths(ratings: Sequence[Rating], key: Key, texts: dict[str, str], davidson: bool) -> dict[str, Strengths]:
    models, questions = list(key.models), _asked(ratings, key)
    counts = _counts(ratings, questions, list(combinations(models, 2)), texts)  # [Q, P, C, 3]
    rows_of = zip(questions, counts.sum(axis=1), strict=True)
    values = np.stack([ELO * _strengths_of(name, part, models, davidson) for name, part in rows_of])  # [Q, K]
    enough = several_prompts(counts.sum(axis=(2, 3)))
    blocks = [
        [resampled_strengths(np.einsum("rp,pcx->rcx", rows, part), len(models), davidson) for part in counts]
        for rows in resampled(counts.shape[1])
    ]
    drawn = ELO * np.concatenate([np.stack(block) for block in blocks], axis=1)  # [Q, R, K]
    parts = {name: (values[row], drawn[row]) for row, name in enumerate(questions)}
    if len(questions) > 1:
        parts[POOLED] = (values.mean(axis=0), drawn.mean(axis=0))
    found = {}
    for index, (name, (value, rows)) in enumerate(parts.items()):
        left_out = int(np.isnan(rows).any(axis=1).sum())
        bounded = enough[index] and left_out <= MOST_INFINITE * len(rows)
        limits = [interval(rows[:, column]) if bounded else (None, None) for column in range(len(models))]
        elo = {model: Estimate(float(value[column]), *limits[column]) for column, model in enumerate(models)}
        found[name] = Strengths(elo, left_out)
    return found


def _strengths_of(question: str, counts: NDArray[np.float64], models: list[str], davidson: bool) -> NDArray[np.float64]:
    try:
        return strengths(counts, models, davidson)
    except InfiniteStrengths as error:
        raise InfiniteStrengths(f"{question}: {error}") from error


# ------------------------------------------------------------------ sides and raters


def _sides(ratings: Sequence[Rating], key: Key) -> dict[str, ExactTest]:
    questions = _asked(ratings, key)
    found = {}
    for name in questions if len(questions) == 1 else [*questions, POOLED]:
        choices = [rating.choice for rating in ratings if name in (rating.question, POOLED)]
        found[name] = exact_test(choices.count("left"), choices.count("right"))
    return found


def _summary(rater: Rater) -> RaterSummary:
    choices = [rating.choice for rating in rater.ratings]
    decided = choices.count("left") + choices.count("right")
    return RaterSummary(
        name=rater.name,
        ratings=len(choices),
        answered=len(choices) + len(rater.repeats),
        asked=rater.asked,
        same=choices.count("same") / len(choices) if choices else None,
        left=choices.count("left") / decided if decided else None,
        median_ms=float(median(rating.ms for rating in rater.ratings)) if choices else None,
        repeats=len(rater.repeats),
        agreed=sum(first == again for first, again in rater.repeats),
        follows=rater.follows,
    )
