"""What raters prefer: shares, intervals, tests, agreement and strengths against closed forms and published numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import preference
import pytest
from scipy.optimize import minimize

from t2ikit.cli import main
from t2ikit.report.preference.analysis import Analysis, analyse
from t2ikit.report.preference.building import Built
from t2ikit.report.preference.exports import Rater, Rating, read_exports
from t2ikit.report.preference.key import Key, Shown, read_key
from t2ikit.report.preference.orders import Comparison
from t2ikit.report.preference.statistics import exact_test, interval, krippendorff, resampled, shares
from t2ikit.report.preference.strengths import ELO, InfiniteStrengths, resampled_strengths, strengths

# Krippendorff, "Computing Krippendorff's alpha-reliability", 2011: a rater a line, a unit a letter.
TWO_BINARY = ("0100000010", "1110010000")
TWO_NOMINAL = ("aabbdcccedda", "babbbccceddd")
FOUR = ("123321412___", "1233224125_3", "_3332342251_", "12332441251_")


def units(*raters: str) -> list[tuple[int, int]]:
    """(unit, value) of every rating; "_" is none."""
    return [(unit, ord(value)) for rater in raters for unit, value in enumerate(rater) if value != "_"]


@pytest.mark.parametrize(
    ("raters", "ordinal", "alpha"),
    [(TWO_BINARY, False, 0.095), (TWO_NOMINAL, False, 0.692), (FOUR, False, 0.743), (FOUR, True, 0.815)],
)
def test_alpha_of_published_data(raters: tuple[str, ...], ordinal: bool, alpha: float) -> None:
    assert krippendorff(units(*raters), ordinal) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_two_values_has_a_closed_form() -> None:
    # Of two raters and two values: 1 - (n - 1) o_01 / (n_0 n_1); one order of two values is no other distance.
    ratings = units("00110101", "00110110")
    expected = 1 - 15 * 2 / (8 * 8)
    assert krippendorff(ratings, ordinal=False) == pytest.approx(expected)
    assert krippendorff(ratings, ordinal=True) == pytest.approx(expected)
    assert krippendorff(units("0123", "0123", "0123"), ordinal=True) == 1.0


def test_alpha_that_is_not_defined() -> None:
    assert krippendorff([], ordinal=False) is None
    assert krippendorff(units("01"), ordinal=False) is None  # no unit with two ratings
    assert krippendorff(units("00", "00"), ordinal=True) is None  # one value
    with_single = [*units("0011", "0101"), (9, ord("0"))]
    assert krippendorff(with_single, ordinal=False) == krippendorff(units("0011", "0101"), ordinal=False)


def test_exact_tests() -> None:
    test = exact_test(8, 2)
    assert test.p == pytest.approx(2 * (45 + 10 + 1) / 2**10) and test.share is not None
    assert (test.share.value, test.share.low, test.share.high) == pytest.approx((0.8, 0.44390, 0.97479), abs=1e-5)
    every = exact_test(5, 0)
    assert every.share is not None and every.share.low == pytest.approx(0.025 ** (1 / 5)) and every.share.high == 1.0
    assert exact_test(0, 0).share is None and exact_test(0, 0).p == 1.0 and exact_test(3, 3).p == 1.0


# ------------------------------------------------------------------ shares


def votes(question: str, counts: tuple[int, int, int]) -> list[Rating]:
    """Ratings of 495 prompts, first better, same, second better."""
    values = [value for value, count in zip((1, 0, -1), counts) for _ in range(count)]
    return [
        Rating(question, str(index % 495), ("vermeer", "sdxl"), value, ("right", "same", "left")[value + 1], 1.0)
        for index, value in enumerate(values)
    ]


def key_of(*models: str, prompts: int = 495, questions: tuple[str, ...] = ("quality", "consistency")) -> Key:
    shown = tuple(Shown(str(index), f"text {index}", {m: f"{m}{index}" for m in models}) for index in range(prompts))
    return Key("page", 0, "salt", questions, 0, {model: model for model in models}, shown, {})


def rater(ratings: list[Rating], name: str = "a") -> Rater:
    return Rater(name, Path(f"{name}.json"), tuple(ratings), (), len(ratings), True)


def test_the_shares_of_the_growing_paper() -> None:
    """Vermeer against SDXL: 44.0, 34.7 and 21.4 % of the ratings of both tasks, 61.4 % and +1.7 points in each."""
    number = 495 * 13
    quality, consistency = (
        [round(share * number / 100) for share in shares] for shares in ((61.4, 20.7, 17.9), (26.6, 48.5, 24.9))
    )
    ratings = votes("quality", tuple(quality)) + votes("consistency", tuple(consistency))  # type: ignore[arg-type]
    (pair,) = analyse([rater(ratings)], key_of("vermeer", "sdxl")).pairs
    found = {name: part.shares for name, part in pair.questions.items()}
    assert list(found) == ["quality", "consistency", "pooled"]
    pooled = found["pooled"]
    percent = [100 * part.value for part in (pooled.first, pooled.same, pooled.second)]
    assert percent == pytest.approx([44.0, 34.7, 21.4], abs=0.11)
    assert 100 * found["quality"].first.value == pytest.approx(61.4, abs=0.01)
    assert 100 * found["consistency"].net.value == pytest.approx(1.7, abs=0.02)
    assert pooled.net.value == pytest.approx((found["quality"].net.value + found["consistency"].net.value) / 2)


def test_questions_weigh_alike_whatever_their_numbers() -> None:
    counts = np.zeros((2, 4, 3))
    counts[0, :, 0] = 10  # forty ratings, all for the first
    counts[1, 0, 2] = 1  # one for the second
    pooled = shares(counts)[-1]
    assert (pooled.first.value, pooled.second.value, pooled.net.value) == (0.5, 0.5, 0.0)


def test_the_bootstrap_draws_prompts_and_not_ratings() -> None:
    # Thirteen equal votes a prompt: the interval is that of 50 prompts, not that of 650 ratings.
    counts = np.zeros((1, 50, 3))
    counts[0, :30, 0] = counts[0, 30:, 2] = 13
    first = shares(counts)[0].first
    error = math.sqrt(0.6 * 0.4 / 50)
    assert first.low == pytest.approx(0.6 - 1.96 * error, abs=0.015)
    assert first.high == pytest.approx(0.6 + 1.96 * error, abs=0.015)
    rows = np.concatenate(list(resampled(50)))
    assert rows.shape == (10_000, 50) and (rows.sum(axis=1) == 50).all()
    assert rows.mean() == 1.0 and rows.var(axis=0).mean() == pytest.approx(0.98, abs=0.02)  # multinomial


def test_one_prompt_has_no_interval_and_equal_prompts_none_to_speak_of() -> None:
    assert shares(np.array([[[1.0, 2.0, 1.0]]]))[0].first == shares(np.array([[[2.0, 4.0, 2.0]]]))[0].first
    alone = shares(np.array([[[1.0, 2.0, 1.0]]]))[0].net
    assert (alone.value, alone.low, alone.high) == (0.0, None, None)
    of_two = np.zeros((2, 3, 3))
    of_two[0, :, 0] = 1
    of_two[1, 0, 2] = 5  # all ratings of the second question are of one prompt
    quality, consistency, pooled = (part.net for part in shares(of_two))
    assert quality.low == 1.0 and consistency.low is None and pooled.low is None
    equal = shares(np.tile([1.0, 2.0, 1.0], (1, 9, 1)))[0].same
    assert (equal.value, equal.low, equal.high) == (0.5, 0.5, 0.5)
    assert interval(np.array([np.nan, np.nan])) == (None, None)


def test_the_sign_of_a_prompt_is_that_of_all_its_votes() -> None:
    values = {"0": (1, 1, -1), "1": (0, 0, 1), "2": (1, -1, 0), "3": (-1, 0, 0), "4": (1, 1, 1)}
    ratings = [
        Rating("quality", prompt, ("A", "B"), value, "left", 1.0) for prompt, row in values.items() for value in row
    ]
    (pair,) = analyse([rater(ratings)], key_of("A", "B", prompts=5)).pairs
    part = pair.questions["quality"]
    assert list(pair.questions) == ["quality"]  # the other one has no rating
    assert (part.prompts.hits, part.prompts.misses, part.prompts_tied) == (3, 1, 1)
    assert part.prompts.p == pytest.approx(10 / 16)


def test_pictures_of_one_text_are_one_prompt() -> None:
    key = key_of("A", "B", prompts=4)
    prompts = tuple(Shown(shown.prompt, "one text", shown.pictures) for shown in key.prompts)
    same = Key(key.page, 0, "salt", key.questions, 0, key.models, prompts, {})
    ratings = [Rating("quality", str(index), ("A", "B"), 1, "left", 1.0) for index in range(4)]
    assert analyse([rater(ratings)], key).prompts == 4
    found = analyse([rater(ratings)], same)
    assert found.prompts == 1 and found.pairs[0].questions["quality"].shares.first.low is None
    assert found.pairs[0].questions["quality"].prompts.hits == 1


# ------------------------------------------------------------------ strengths


def pairs_of(wins: Mapping[str, int], models: str = "ABC") -> np.ndarray:
    """[C, 3] of counts such as {"AB": 3, "BA": 1, "A=B": 2}."""
    return np.array(
        [
            [wins.get(first + second, 0), wins.get(f"{first}={second}", 0), wins.get(second + first, 0)]
            for first, second in combinations(models, 2)
        ],
        dtype=np.float64,
    )


def test_two_models_have_a_closed_form() -> None:
    found = strengths(np.array([[9.0, 2.0, 4.0]]), "AB")
    assert found[0] - found[1] == pytest.approx(math.log(10 / 5)) and found.sum() == pytest.approx(0)
    # Davidson 1970: the odds of two models are those of their wins, whatever the ties.
    tied = strengths(np.array([[9.0, 2.0, 4.0]]), "AB", davidson=True)
    assert tied[0] - tied[1] == pytest.approx(math.log(9 / 4))
    assert ELO * math.log(10) == pytest.approx(400)


def test_strengths_solve_the_equations_of_their_authors() -> None:
    counts = pairs_of({"AB": 10, "A=B": 4, "BA": 3, "AC": 12, "CA": 2, "BC": 7, "B=C": 5, "CB": 6})
    found = strengths(counts, "ABC")
    # Bradley and Terry 1952: the wins of every model are those that its strength expects.
    weights = np.exp(found)
    wins, expected = np.zeros(3), np.zeros(3)
    for (first, second), (better, same, worse) in zip(combinations(range(3), 2), counts):
        wins += np.eye(3)[first] * (better + same / 2) + np.eye(3)[second] * (worse + same / 2)
        share = weights[first] / (weights[first] + weights[second])
        expected += (better + same + worse) * (np.eye(3)[first] * share + np.eye(3)[second] * (1 - share))
    assert expected == pytest.approx(wins, rel=1e-8)

    def loss(values: np.ndarray) -> float:
        logs, total = np.append(values[:2], -values[:2].sum()), 0.0
        for (first, second), (better, same, worse) in zip(combinations(range(3), 2), counts):
            tie = values[2] + (logs[first] + logs[second]) / 2
            norm = np.logaddexp(np.logaddexp(logs[first], logs[second]), tie)
            total -= better * (logs[first] - norm) + worse * (logs[second] - norm) + same * (tie - norm)
        return float(total)

    reference = minimize(loss, np.zeros(3), tol=1e-12).x
    assert strengths(counts, "ABC", davidson=True)[:2] == pytest.approx(reference[:2], abs=1e-5)
    without = counts * [1, 0, 1]
    assert strengths(without, "ABC", davidson=True) == pytest.approx(strengths(without, "ABC"))


@pytest.mark.parametrize(
    ("wins", "davidson", "reason"),
    [
        ({"AB": 10, "BA": 3, "AC": 5, "BC": 4}, False, "one of C better than, or as good as, one of A, B"),
        ({"AB": 10, "AC": 5, "CB": 4, "BC": 4}, False, "one of B, C better than, or as good as, one of A"),
        ({"AB": 10, "BA": 3}, False, "nothing bounds"),  # C was never compared
        ({"AB": 4, "A=B": 3, "BC": 2, "AC": 1}, True, "better than one of A"),
        ({"A=B": 3, "B=C": 2, "A=C": 1}, True, "no rating prefers a model"),
    ],
)
def test_infinite_strengths_are_refused_with_the_models(wins: Mapping[str, int], davidson: bool, reason: str) -> None:
    with pytest.raises(InfiniteStrengths, match=reason):
        strengths(pairs_of(wins), "ABC", davidson)
    assert np.isnan(resampled_strengths(pairs_of(wins)[None], 3, davidson)).all()


def test_infinite_strengths_name_their_question() -> None:
    def answers(question: str, wins: tuple[str, ...]) -> list[Rating]:
        return [
            Rating(question, "0", (min(pair), max(pair)), 1 if pair[0] < pair[1] else -1, "left", 1.0)  # type: ignore[arg-type, type-var]
            for pair in wins
        ]

    key = key_of("A", "B", "C", prompts=1)
    finite = answers("quality", ("AB", "BA", "AC", "CA", "BC", "CB"))
    # A is better in every rating; B and C are better than each other once.
    infinite = answers("consistency", ("AB", "AC", "BC", "CB"))
    said = "^consistency: the strengths are infinite: in no rating is one of B, C better than, or as good as, one of A,"
    with pytest.raises(InfiniteStrengths, match=said):
        analyse([rater(finite + infinite)], key)


def test_a_tie_bounds_the_strengths() -> None:
    wins = {"AB": 10, "BA": 3, "AC": 5, "A=C": 1, "BC": 4}
    assert np.isfinite(strengths(pairs_of(wins), "ABC")).all()
    assert strengths(pairs_of({"A=B": 3, "B=C": 2, "A=C": 1}), "ABC") == pytest.approx([0, 0, 0])


def test_rows_are_fitted_as_alone() -> None:
    rows = np.random.default_rng(0).poisson(0.8, (200, 3, 3)).astype(np.float64)
    for davidson in (False, True):
        found = resampled_strengths(rows, 3, davidson)
        assert 0 < np.isnan(found).any(axis=1).sum() < 150
        for row, values in zip(rows[:50], found):
            try:
                assert strengths(row, "ABC", davidson) == pytest.approx(values, abs=1e-6)
            except InfiniteStrengths:
                assert np.isnan(values).all()


# ------------------------------------------------------------------ exports


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return preference.page(tmp_path, repeat=0.3)


def analysed(built: Built, *paths: Path) -> Analysis:
    return analyse(read_exports(paths, built.key), built.key)


def test_a_rater_who_always_prefers_one_model(tmp_path: Path, built: Built) -> None:
    path = preference.export(tmp_path / "a.json", built.key, "Zoë", preference.by_model("beta", "alpha"))
    found = analysed(built, path)
    part = found.pairs[0].questions["pooled"]
    assert (found.pairs[0].first, part.ratings, part.shares.second.value, part.shares.net.value) == ("alpha", 12, 1, -1)
    (line,) = found.raters
    assert (line.ratings, line.answered, line.asked, line.repeats, line.agreed) == (12, 16, 16, 4, 4)
    assert line.follows and line.same == 0.0 and found.ratings == 12  # a repeat is no second vote


def test_a_rater_who_always_says_left(tmp_path: Path, built: Built) -> None:
    path = preference.export(tmp_path / "a.json", built.key, "b", lambda *_: "left")
    found = analysed(built, path)
    assert found.sides["pooled"].hits == 12 and found.sides["pooled"].p == pytest.approx(2 / 2**12)
    assert (found.raters[0].left, found.raters[0].repeats, found.raters[0].agreed) == (1.0, 4, 0)
    assert found.raters[0].median_ms is not None and 1000 < found.raters[0].median_ms < 1016


def test_unfinished_exports_count(tmp_path: Path, built: Built) -> None:
    alpha = preference.by_model("alpha")
    paths = [
        preference.export(tmp_path / f"{count}.json", built.key, f"rater {count}", alpha, count) for count in (0, 3, 16)
    ]
    found = analysed(built, *paths)
    assert [line.answered for line in found.raters] == [0, 3, 16] and found.ratings == 15
    assert found.raters[0].median_ms is None and all(line.follows for line in found.raters)
    assert found.pairs[0].questions["quality"].alpha_nominal is None  # only one value
    with pytest.raises(ValueError, match="no answer"):
        read_exports(paths[:1], built.key)


def test_agreement_of_two_raters(tmp_path: Path, built: Built) -> None:
    def odd(comparison: Comparison, models: Mapping[str, str]) -> str:
        best = "alpha" if int(comparison.prompt) % 2 else "beta"
        return "left" if models[comparison.left] == best else "right"

    paths = [preference.export(tmp_path / f"{name}.json", built.key, name, odd) for name in ("a", "b")]
    part = analysed(built, *paths).pairs[0].questions
    assert part["quality"].alpha_nominal == part["quality"].alpha_ordinal == 1.0
    assert part["pooled"].alpha_nominal is None
    assert (part["pooled"].prompts.hits, part["pooled"].prompts.misses) == (3, 3)


def changed(path: Path, **fields: Any) -> Path:
    """The export with other fields of its second rating, or of its own."""
    content = json.loads(path.read_text())
    for name, value in fields.items():
        (content if name in content else content["ratings"][1])[name] = value
    path.with_name("changed.json").write_text(json.dumps(content))
    return path.with_name("changed.json")


def test_what_is_no_export_of_the_page_is_refused(tmp_path: Path, built: Built) -> None:
    good = preference.export(tmp_path / "a.json", built.key, "Anna", preference.by_model("alpha"), 4)
    first = json.loads(good.read_text())["ratings"][0]
    for fields, reason in (
        ({"page": "0" * 16}, "is of page '0000000000000000'"),
        ({"rater": " "}, "must be a name"),
        ({"ratings": {}}, "the ratings a list"),
        ({"question": "beauty"}, "rating 1: unknown question 'beauty'; the page asks quality, consistency"),
        ({"prompt": "x"}, "rating 1: the page has no prompt 'x'"),
        ({"left": "x"}, "are not two pictures of prompt"),
        ({"choice": "up"}, "the choice 'up' is none of left, same, right"),
        ({"choice": None}, "expected the texts"),
        ({"ms": -1}, "ms must be a number"),
        ({"ms": float("nan")}, "ms must be a number"),
        ({"ms": True}, "ms must be a number"),
        ({"ms": 10**400}, "changed.json, rating 1: ms must be a number"),
        ({"ms": 1.7e308}, "changed.json, rating 1: ms must be a number"),
        ({"rater": "An\x1b[2Jna"}, "a control character"),
        ({"rater": "An\u2028na"}, "a control character"),
        (first, "is answered again"),
    ):
        with pytest.raises(ValueError, match=reason):
            read_exports([changed(good, **fields)], built.key)
    for text, reason in (("{", "is no JSON file"), ("[]", "is no export"), ("[" * 10**5, "is no JSON file")):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            read_exports([tmp_path / "broken.json"], built.key)


@pytest.mark.parametrize("second", ["anna b", " Anna  B", "ANNA B "])
def test_a_rater_twice_is_refused(tmp_path: Path, built: Built, second: str) -> None:
    paths = [
        preference.export(tmp_path / f"{index}.json", built.key, name, preference.by_model("alpha"))
        for index, name in enumerate(("Anna B", second))
    ]
    with pytest.raises(ValueError, match=rf"0.json and .*1.json are both of the rater '{second}'"):
        read_exports(paths, built.key)


def test_answers_in_another_order_are_told(tmp_path: Path, built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    path = preference.export(tmp_path / "a.json", built.key, "Anna", preference.by_model("alpha"))
    assert main(["prefer", "analyse", str(path), "--key", str(built.key_path)]) == 0
    assert "changed by hand" not in capsys.readouterr().out
    answers = json.loads(path.read_text())["ratings"]
    other = changed(path, ratings=answers[::-1])
    assert main(["prefer", "analyse", str(other), "--key", str(built.key_path)]) == 0
    assert "Anna: the answers do not stand in the order of the page" in capsys.readouterr().out


def test_what_the_page_did_not_show_the_rater_is_refused(tmp_path: Path, built: Built) -> None:
    path = preference.export(tmp_path / "a.json", built.key, "Anna", preference.by_model("alpha"))
    asked = preference.asked(built.key, "Anna")
    once = next(index for index, shown in enumerate(asked) if shown.swapped() not in asked)
    answers = json.loads(path.read_text())["ratings"]
    swapped = answers[once] | {"left": answers[once]["right"], "right": answers[once]["left"]}
    with pytest.raises(ValueError, match=rf"changed.json, rating {once}: the page does not show"):
        read_exports([changed(path, ratings=[*answers[:once], swapped, *answers[once + 1 :]])], built.key)
    with pytest.raises(ValueError, match=rf"changed.json, rating {len(answers)}: the page does not show"):
        read_exports([changed(path, ratings=[*answers, swapped])], built.key)  # a repeat that nobody asked
    with pytest.raises(ValueError, match=r"changed.json, rating \d+: the page does not show .* rater 'Bob'"):
        read_exports([changed(path, rater="Bob")], built.key)


def _without(content: dict[str, Any], name: str) -> None:
    del content[name]


def _swap(content: dict[str, Any]) -> None:
    pictures = content["prompts"][1]["pictures"]
    pictures["alpha"], pictures["beta"] = pictures["beta"], pictures["alpha"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_swap, "prompt '00001' has another picture of 'alpha'"),
        (lambda key: key["prompts"][0]["pictures"].update(beta="0" * 24), "'00000' has another picture of 'beta'"),
        (lambda key: key["prompts"][0]["pictures"].pop("beta"), "'00000' needs every model"),
        (lambda key: key["prompts"].append(key["prompts"][0]), "a prompt is there twice"),
        (lambda key: key["prompts"][0].update(text=None), "a prompt and its text must be texts"),
        (lambda key: key.update(prompts={}), "prompts must be a list"),
        (lambda key: key.update(prompts=[1]), "a prompt must be an object"),
        (lambda key: key.update(salt="pepper"), "another picture"),
        (lambda key: key.update(salt=7), "salt must be a text"),
        (lambda key: key.update(page=7), "page must be a text"),
        (lambda key: key.update(repeats=True), "repeats must be a whole number"),
        (lambda key: key.update(repeats=-1), "repeats must be a whole number"),
        (lambda key: key.update(repeats="2"), "repeats must be a whole number"),
        (lambda key: key.update(repeats=4), "repeats must be a whole number from 0 to 3"),
        (lambda key: key.update(seed=0.0), "seed must be a whole number"),
        (lambda key: key.update(questions="quality"), "questions must be texts"),
        (lambda key: key.update(questions=["quality", 3]), "questions must be texts"),
        (lambda key: key.update(questions=["quality", "quality"]), "questions must be texts, each once"),
        (lambda key: key.update(models=["alpha", "beta"]), "models must be names"),
        (lambda key: key.update(left_out={"00009": 3}), "left_out must be"),
        (lambda key: _without(key, "seed"), "KeyError: 'seed'"),
    ],
)
def test_a_key_that_was_changed_is_refused(
    tmp_path: Path, built: Built, damage: Callable[[dict[str, Any]], object], reason: str
) -> None:
    content = json.loads(built.key_path.read_text())
    damage(content)
    (tmp_path / "damaged.key.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"--key .*damaged.key.json is no key of a page .*{reason}"):
        read_key(tmp_path / "damaged.key.json")


# ------------------------------------------------------------------ the command


def test_three_models_get_strengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = preference.page(tmp_path, "alpha", "beta", "gamma", repeat=0.0)

    def choose(comparison: Comparison, models: Mapping[str, str]) -> str:
        if int(comparison.prompt) in (0, 1):
            return preference.by_model("gamma", "beta", "alpha")(comparison, models)
        order = ("alpha", "beta") if int(comparison.prompt) < 5 else ()
        return preference.by_model(*order)(comparison, models)

    paths = [str(preference.export(tmp_path / f"{n}.json", built.key, n, choose)) for n in ("a", "b", "c")]
    words = ["prefer", "analyse", *paths, "--key", str(built.key_path)]
    assert main([*words, "--out", f"{tmp_path}/analysis.json"]) == 0
    said = capsys.readouterr().out
    assert "alpha against beta" in said and "beta against gamma" in said and "Bradley-Terry" in said
    found = json.loads((tmp_path / "analysis.json").read_text())
    elo = found["strengths"]["pooled"]["elo"]
    assert sum(entry["value"] for entry in elo.values()) == pytest.approx(0, abs=1e-6)
    # Each pair: 3 prompts of 6 for alpha, 2 against, 1 tied.
    assert elo["alpha"]["value"] > elo["beta"]["value"] > elo["gamma"]["value"]
    assert len(found["pairs"]) == 3 and found["ratings"] == 108 and found["ties"] == "half"
    assert main([*words, "--ties", "davidson"]) == 0
    assert "Elo (Davidson)" in capsys.readouterr().out
    assert main([*words, "--no-strengths"]) == 0
    assert "Elo" not in capsys.readouterr().out


def test_intervals_of_strengths_need_enough_finite_resamples() -> None:
    # One prompt of ten bounds the strengths: a third of the resamples do not draw it.
    ratings = [
        Rating("quality", str(prompt), pair, 1 if prompt else -1, "left", 1.0)
        for prompt in range(10)
        for pair in combinations("ABC", 2)
    ]
    found = analyse([rater(ratings)], key_of("A", "B", "C", prompts=10)).strengths["quality"]
    assert found.left_out == pytest.approx(10_000 * 0.9**10, rel=0.05)
    assert found.elo["A"].value > 0 and found.elo["A"].low is None
    ratings = [
        Rating("quality", str(prompt), pair, 1 if prompt % 2 else -1, "left", 1.0)
        for prompt in range(20)
        for pair in combinations("ABC", 2)
    ]
    found = analyse([rater(ratings)], key_of("A", "B", "C", prompts=20)).strengths["quality"]
    low, high = found.elo["A"].low, found.elo["A"].high
    assert found.left_out < 10 and low is not None and high is not None and low < 0 < high


def test_the_command_refuses_what_it_cannot_say(
    tmp_path: Path, built: Built, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(preference.export(tmp_path / "a.json", built.key, "Anna", preference.by_model("alpha")))
    (tmp_path / "link.json").symlink_to(path)
    key = ["--key", str(built.key_path)]
    for words, message in (
        ([path, "--key", path], "is no key of a page"),
        ([path, "--key", f"{tmp_path}/x.json"], "no key"),
        ([path, path, *key], "are both of the rater 'Anna'"),
        ([f"{tmp_path}/x.json", *key], "no export"),
        ([path, *key, "--ties", "davidson"], "three or more models"),
        ([path, *key, "--out", str(tmp_path)], "is a folder"),
        ([path, *key, "--out", str(built.key_path)], "no key"),
        ([path, *key, "--out", f"{tmp_path}/other.key.json"], "no key"),
        ([path, *key, "--out", str(built.page)], "name a JSON file"),
        ([path, *key, "--out", f"{tmp_path}/three.pdf"], "name a JSON file"),
        ([path, *key, "--out", f"{tmp_path}/alpha/../a.json"], "a.json, which is read"),
        ([path, *key, "--out", f"{tmp_path}/link.json"], "link.json is"),
        ([path, "--key", path, "--out", path], "which is read"),  # before anything is read
        ([f"{tmp_path}/x.json", "--key", "x", "--out", f"{tmp_path}/{'n' * 240}.json"], ".json: File name too long"),
        ([f"{tmp_path}/x.json", "--key", "x", "--out", f"{path}/out.json"], "is a file, no folder"),
    ):
        before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
        assert main(["prefer", "analyse", *words]) == 2, words
        said = capsys.readouterr().err
        assert message in said and ".partial" not in said
        assert {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    three = preference.page(tmp_path / "three", "alpha", "beta", "gamma")
    one_sided = preference.export(tmp_path / "b.json", three.key, "a", preference.by_model("alpha", "beta", "gamma"))
    words = ["prefer", "analyse", str(one_sided), "--key", str(three.key_path), "--out", f"{tmp_path}/out.json"]
    assert main(words) == 2
    assert "the strengths are infinite" in capsys.readouterr().err and not (tmp_path / "out.json").exists()
    assert main([*words, "--no-strengths"]) == 0 and (tmp_path / "out.json").exists()
