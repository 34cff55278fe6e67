"""What the papers claim, and what the cells of the mini-paper say of it.

A verdict is taken from paired differences, first kind minus second, of cells of one seed and network: their mean with
its 95 % interval by Student's t. Over both networks it is the mean of the networks' means, with the spread that
remains within them. An effect appears where the interval lies on the claimed side of 0, is opposite where it lies on
the other one, and cannot be said where it holds 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from t2ikit.run.sweep_scores import CellScores, mean_and_interval

NETWORKS = {"cad_i": "CAD-I", "dit_i": "DiT-I"}
METHODS = {"aio": "AIO", "ta": "TA", "crop": "TA + Crop", "cmall": "TA + CutMix"}
EXTENDED, SEEN, ORIGINAL, PLACES = "geneval", "geneval_seen", "geneval_original", "geneval/colors_and_places"
DISTANCE, HELD_OUT = "val/frechet_distance", "val/loss_fixed_t"
GAP = "gap"
"""Loss at fixed t on held-out scenes minus that on as many training scenes: how far a network has overfitted."""

Done = Mapping[str, CellScores]
"""Finished cells by name, of every sweep: the names of their grids differ."""


@dataclass(frozen=True)
class Kind:
    """Cells that differ in seed and network alone.

    Attributes:
        cells: their names without the seed; ``{network}`` stands for a network, and without it they are CAD-I's.
        words: what they are, as the page says it.
    """

    cells: str
    words: str

    def names(self, network: str, seeds: Iterable[int]) -> list[str]:
        """The cells of a network; none where only another one was trained."""
        if "{network}" not in self.cells and network != "cad_i":
            return []
        return [f"{self.cells.format(network=network)}-seed{seed}" for seed in seeds]


KINDS = {
    **{method: Kind(f"main-{{network}}-{method}", words) for method, words in METHODS.items()},
    **{f"few {method}": Kind(f"few-cad_i-{method}", f"{METHODS[method]}, 2,000 scenes") for method in METHODS},
    "tau 0": Kind("tau-tau_0", "tau 0"),
    "tau 0.4": Kind("main-cad_i-cmall", "tau 0.4"),
    "tau 0.6": Kind("tau-tau_0_6", "tau 0.6"),
    "p 0.25": Kind("p-p_0_25", "p 0.25"),
    "p 1": Kind("p-p_1", "p 1"),
}


@dataclass(frozen=True)
class Claim:
    """What the papers say of a difference between two kinds of cells.

    Attributes:
        text: the claim.
        paper: the same difference in the paper's tables (CAD-I, DiT-I), or where it is said.
        score: name of the score, or `GAP`.
        first, second: of `KINDS`.
        sign: +1 where the claim is that the first has more of the score, -1 less.
        other_score: score of the second one, where it is not ``score``.
    """

    text: str
    paper: str
    score: str
    first: str
    second: str
    sign: int = 1
    other_score: str | None = None

    @property
    def difference(self) -> str:
        """Which difference is measured."""
        first, second = KINDS[self.first].words, KINDS[self.second].words
        score = "loss gap" if self.score == GAP else f"`{self.score}`"
        if self.other_score is not None:
            return f"{score} − `{self.other_score}`, {first}"
        return f"{score}, {first} − {second}"


ALL, TWO, PLACE, COLOR = "overall", "two_object", "position", "color_attr"
TWO_BY_CUTMIX, PLACE_BY_CUTMIX, COLOR_BY_CUTMIX = (
    f"{numbers} (v2 Table 2)" for numbers in ("+0.08, +0.06", "+0.09, +0.02", "+0.01, +0.02")
)
LATER = "a curve that turns later (v2 Figure 3)"
LOWER = "a lower curve for longer (v2 Figure 3)"
IMPLIED = "implied by the method; no table"
CLAIMS = (
    Claim(
        "Long captions raise GenEval, extended prompts", "+0.51, +0.55 (v1 Table 1)", f"{EXTENDED}/{ALL}", "ta", "aio"
    ),
    Claim(
        "Long captions raise GenEval, original prompts", "+0.34, +0.18 (v1 Table 1)", f"{ORIGINAL}/{ALL}", "ta", "aio"
    ),
    Claim(
        "Extended prompts score higher than original ones",
        "+0.04, +0.30 (v1 Table 1)",
        f"{EXTENDED}/{ALL}",
        "ta",
        "ta",
        1,
        f"{ORIGINAL}/{ALL}",
    ),
    Claim("CutMix raises GenEval, extended prompts", "+0.02, +0.03 (v2 Table 2)", f"{EXTENDED}/{ALL}", "cmall", "ta"),
    Claim("CutMix raises GenEval, original prompts", "+0.04, -0.01 (v1 Table 1)", f"{ORIGINAL}/{ALL}", "cmall", "ta"),
    Claim("CutMix raises two objects, pairs never seen", TWO_BY_CUTMIX, f"{EXTENDED}/{TWO}", "cmall", "ta"),
    Claim("CutMix raises two objects, pairs seen", TWO_BY_CUTMIX, f"{SEEN}/{TWO}", "cmall", "ta"),
    Claim("CutMix raises two objects, colour and place alone", TWO_BY_CUTMIX, f"{PLACES}/{TWO}", "cmall", "ta"),
    Claim("CutMix raises position, pairs never seen", PLACE_BY_CUTMIX, f"{EXTENDED}/{PLACE}", "cmall", "ta"),
    Claim("CutMix raises position, pairs seen", PLACE_BY_CUTMIX, f"{SEEN}/{PLACE}", "cmall", "ta"),
    Claim("CutMix raises position, colour and place alone", PLACE_BY_CUTMIX, f"{PLACES}/{PLACE}", "cmall", "ta"),
    Claim("CutMix raises colour attribution, pairs seen", COLOR_BY_CUTMIX, f"{SEEN}/{COLOR}", "cmall", "ta"),
    Claim("Crop raises GenEval", "-0.01, -0.01 (v2 Table 2; its text: +0.02)", f"{EXTENDED}/{ALL}", "crop", "ta"),
    Claim("Crop raises two objects, pairs seen", "+0.01, -0.05 (v2 Table 2)", f"{SEEN}/{TWO}", "crop", "ta"),
    Claim("CutMix has a smaller loss gap", LATER, GAP, "cmall", "ta", -1),
    Claim("CutMix has a smaller loss gap, 2,000 scenes", LATER, GAP, "few cmall", "few ta", -1),
    Claim("Crop has a smaller loss gap", LATER, GAP, "crop", "ta", -1),
    Claim("Crop has a smaller loss gap, 2,000 scenes", LATER, GAP, "few crop", "few ta", -1),
    Claim("CutMix lowers the Frechet distance", f"+0.46, +1.01 (v2 Table 3); {LOWER}", DISTANCE, "cmall", "ta", -1),
    Claim("CutMix lowers the Frechet distance, 2,000 scenes", LOWER, DISTANCE, "few cmall", "few ta", -1),
    Claim("CutMix lowers the held-out loss, 2,000 scenes", "none", HELD_OUT, "few cmall", "few ta", -1),
    Claim("Crop lowers the Frechet distance", f"DiT-I -0.09 (v2 Table 3); {LOWER}", DISTANCE, "crop", "ta", -1),
    Claim("Crop lowers the Frechet distance, 2,000 scenes", LOWER, DISTANCE, "few crop", "few ta", -1),
    Claim("Crop lowers the held-out loss, 2,000 scenes", "none", HELD_OUT, "few crop", "few ta", -1),
    Claim("CutMix at t above 0.4 scores higher than at every t", IMPLIED, f"{EXTENDED}/{ALL}", "tau 0.4", "tau 0"),
    Claim("The same, original prompts", IMPLIED, f"{ORIGINAL}/{ALL}", "tau 0.4", "tau 0"),
    Claim("The same has a lower Frechet distance", IMPLIED, DISTANCE, "tau 0.4", "tau 0", -1),
    Claim("Tau 0.4 scores higher than tau 0.6", "+0.02 (v2 Table 14)", f"{EXTENDED}/{ALL}", "tau 0.4", "tau 0.6"),
    Claim("The same, original prompts", "+0.07 (v2 Table 14)", f"{ORIGINAL}/{ALL}", "tau 0.4", "tau 0.6"),
    Claim("Tau 0.6 has a lower Frechet distance", "-0.72 (v2 Table 14)", DISTANCE, "tau 0.6", "tau 0.4", -1),
    Claim("GenEval falls as p rises (CM 1/4)", "+0.09 (v1 Table 5)", f"{EXTENDED}/{ALL}", "p 0.25", "p 1"),
    Claim("The same, original prompts", "+0.07 (v1 Table 5)", f"{ORIGINAL}/{ALL}", "p 0.25", "p 1"),
    Claim(
        "A p above 0.5 raises the Frechet distance (CM 1/4)",
        "-0.08 (v1 Table 5; at 0.75 highest)",
        DISTANCE,
        "p 0.25",
        "p 1",
        -1,
    ),
)


def series(scores: CellScores, name: str) -> list[tuple[int, float]]:
    """Steps and values of a score of a cell, or of the gap of its losses; empty where it has none."""
    if name != GAP:
        return [(step, number) for step, number in scores.series.get(name, ())]
    train = dict(series(scores, f"{HELD_OUT}_train"))
    return [(step, number - train[step]) for step, number in series(scores, HELD_OUT) if step in train]


def value(scores: CellScores, name: str) -> float | None:
    """The last value of `series`; None where there is none."""
    return next((number for _, number in reversed(series(scores, name))), None)


def seed_of(cell: str) -> int:
    """The seed in the name of a cell."""
    return int(cell.rpartition("-seed")[2])


def seeds_of(done: Done) -> list[int]:
    """The seeds of the finished cells."""
    return sorted({seed_of(name) for name in done})


def finished(done: Done, kind: str, network: str) -> list[CellScores]:
    """The finished cells of a kind and network, by seed."""
    return [done[name] for name in KINDS[kind].names(network, seeds_of(done)) if name in done]


def differences(done: Done, claim: Claim, networks: Iterable[str] = NETWORKS) -> list[float]:
    """First minus second of every pair of finished cells that differ in what the claim is on alone."""
    seeds = seeds_of(done)
    found = []
    for network in networks:
        firsts, seconds = (KINDS[kind].names(network, seeds) for kind in (claim.first, claim.second))
        for one, other in zip(firsts, seconds, strict=True):
            if one not in done or other not in done:
                continue
            first, second = value(done[one], claim.score), value(done[other], claim.other_score or claim.score)
            if first is not None and second is not None:
                found.append(first - second)
    return found


def interval(groups: Iterable[Sequence[float]]) -> tuple[float, float | None]:
    """Mean over groups of their means, and the half width of its 95 % interval from the variance within them.

    Args:
        groups: differences by network; empty ones are left out. One group: as `mean_and_interval`.

    Returns:
        None for the half width where no group has two values.
    """
    from scipy.stats import t

    groups = [group for group in groups if group]
    if len(groups) == 1:
        return mean_and_interval(groups[0])
    means = [math.fsum(group) / len(group) for group in groups]
    free = sum(map(len, groups)) - len(groups)
    mean = math.fsum(means) / len(means)
    if not free:
        return mean, None
    squares = math.fsum((v - own) ** 2 for group, own in zip(groups, means, strict=True) for v in group)
    error = math.sqrt(squares / free * math.fsum(1 / len(group) for group in groups)) / len(groups)
    return mean, float(t.ppf(0.975, free)) * error


def verdict(groups: Sequence[Sequence[float]], sign: int) -> str:
    """In words what paired differences, by network, say of a claim."""
    count = sum(map(len, groups))
    if not count:
        return "not run"
    if count < 3:
        return "cannot be said: fewer than three pairs"
    mean, half = interval(groups)
    assert half is not None  # three values in two groups at the most
    if sign * mean > half:
        return "**appears**"
    return "**opposite**" if -sign * mean > half else "cannot be said"
