"""What the papers claim, and what the cells of the mini-paper say of it.

A verdict is taken from paired differences: one number a seed and network, their mean with its 95 % interval by
Student's t. A claim appears where the interval lies on the claimed side of 0, is contradicted where it lies on the
other one, and cannot be said where it holds 0.
"""

from __future__ import annotations

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
        score: name of the score, or `GAP`.
        first, second: of `KINDS`.
        sign: +1 where the claim is that the first has more of the score, -1 less.
        other_score: score of the second one, where it is not ``score``.
    """

    text: str
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


CLAIMS = (
    Claim("Long captions raise GenEval (extended prompts)", f"{EXTENDED}/overall", "ta", "aio"),
    Claim("Long captions raise GenEval (original prompts)", f"{ORIGINAL}/overall", "ta", "aio"),
    Claim("CutMix raises two objects, pairs never seen", f"{EXTENDED}/two_object", "cmall", "ta"),
    Claim("CutMix raises position, pairs never seen", f"{EXTENDED}/position", "cmall", "ta"),
    Claim("CutMix raises two objects, pairs seen", f"{SEEN}/two_object", "cmall", "ta"),
    Claim("CutMix raises position, pairs seen", f"{SEEN}/position", "cmall", "ta"),
    Claim("CutMix raises two objects, by colour and place alone", f"{PLACES}/two_object", "cmall", "ta"),
    Claim("CutMix raises position, by colour and place alone", f"{PLACES}/position", "cmall", "ta"),
    Claim("CutMix raises GenEval", f"{EXTENDED}/overall", "cmall", "ta"),
    Claim("CutMix delays overfitting", GAP, "cmall", "ta", -1),
    Claim("CutMix delays overfitting, 2,000 scenes", GAP, "few cmall", "few ta", -1),
    Claim("CutMix ends with a lower held-out loss, 2,000 scenes", HELD_OUT, "few cmall", "few ta", -1),
    Claim("CutMix ends with a lower Frechet distance, 2,000 scenes", DISTANCE, "few cmall", "few ta", -1),
    Claim("Crop delays overfitting", GAP, "crop", "ta", -1),
    Claim("Crop delays overfitting, 2,000 scenes", GAP, "few crop", "few ta", -1),
    Claim("Crop ends with a lower held-out loss, 2,000 scenes", HELD_OUT, "few crop", "few ta", -1),
    Claim("Crop ends with a lower Frechet distance, 2,000 scenes", DISTANCE, "few crop", "few ta", -1),
    Claim("Crop raises two objects, pairs seen", f"{SEEN}/two_object", "crop", "ta"),
    Claim("Crop lowers the Frechet distance", DISTANCE, "crop", "ta", -1),
    Claim("Tau 0.4 scores higher than CutMix at every t", f"{EXTENDED}/overall", "tau 0.4", "tau 0"),
    Claim("Tau 0.4 has a lower Frechet distance than CutMix at every t", DISTANCE, "tau 0.4", "tau 0", -1),
    Claim("Tau 0.4 scores higher than tau 0.6", f"{EXTENDED}/overall", "tau 0.4", "tau 0.6"),
    Claim("Tau 0.6 has a lower Frechet distance than tau 0.4", DISTANCE, "tau 0.6", "tau 0.4", -1),
    Claim("GenEval falls with a higher p (CM 1/4)", f"{EXTENDED}/overall", "p 0.25", "p 1"),
    Claim("The Frechet distance rises with a higher p (CM 1/4)", DISTANCE, "p 0.25", "p 1", -1),
    Claim(
        "Extended prompts score higher than original ones", f"{EXTENDED}/overall", "ta", "ta", 1, f"{ORIGINAL}/overall"
    ),
)


def value(scores: CellScores, name: str) -> float | None:
    """A score of a cell, or the gap of its losses; None where it has none."""
    if name == GAP:
        held_out, train = scores.scores.get(HELD_OUT), scores.scores.get(f"{HELD_OUT}_train")
        return None if held_out is None or train is None else held_out - train
    return scores.scores.get(name)


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


def verdict(gaps: Sequence[float], sign: int) -> str:
    """In words what paired differences say of a claim."""
    if not gaps:
        return "not run"
    if len(gaps) < 3:
        return "cannot be said: fewer than three pairs"
    mean, half = mean_and_interval(gaps)
    assert half is not None
    if sign * mean > half:
        return "**appears**"
    return "**contradicted**" if -sign * mean > half else "cannot be said: the interval holds 0"
