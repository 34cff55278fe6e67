"""Names of evaluations: one for what is the same, another for what is not, and none too long for a file system."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from t2ikit.config.compose import changed, compose
from t2ikit.config.files import shipped_experiments
from t2ikit.config.overrides import take_overrides
from t2ikit.run.evaluation_name import LONGEST, evaluation_name
from t2ikit.run.search import SEARCH


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return compose(shipped_experiments() / "quickstart.yaml")


def name_of(plain: dict[str, Any], *words: str, first: str = "step-00000002", **options: Any) -> str:
    _, overrides = take_overrides(words)
    none = dict.fromkeys(["weights", "method", "steps", "seed", "limit", "guidance", *SEARCH])
    args = argparse.Namespace(**{**none, "snapshot": "geneval", **options}, overrides=overrides)
    return evaluation_name(first, args, changed(plain, overrides), plain)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("", ""),
        ("--callbacks.geneval.prompts.extended false", "-prompts.extended-false"),
        ("--callbacks.geneval.prompts.init_args.per_task 1", "-prompts.per_task-1"),
        ("--callbacks.geneval.prompts.per_task 48", ""),  # as the experiment has it
        ("--callbacks.geneval.guidance 3.0 --callbacks.geneval.steps 5", "-guidance-3.0-steps-5"),
        ("--callbacks.geneval.steps 5 --callbacks.geneval.guidance 3.0", "-guidance-3.0-steps-5"),
        ("--trainer.precision bf16", "-trainer.precision-bf16"),
        ("--data.val_count 1e2", "-data.val_count-100.0"),
        ("--data.root elsewhere --data.num_workers 3", ""),
        ("--callbacks.val.steps 7 --callbacks.ema.decay 0.5", ""),  # of another snapshot, and of none
    ],
)
def test_a_name_says_what_has_changed(plain: dict[str, Any], words: str, name: str) -> None:
    assert name_of(plain, *words.split()) == f"step-00000002{name}"


def test_mappings_that_merge_have_the_name_of_their_sum(plain: dict[str, Any]) -> None:
    key = "--callbacks.geneval.prompts"
    first, second = "{init_args: {per_task: 3}}", "{init_args: {extended: false}}"
    both = name_of(plain, key, first, key, second)
    assert both == name_of(plain, key, second, key, first) == "step-00000002-prompts.extended-false-prompts.per_task-3"
    assert name_of(plain, key, second) != both


def test_values_that_are_no_plain_words_stand_as_hashes(plain: dict[str, Any]) -> None:
    key = "--callbacks.geneval.metrics"
    one, other = (name_of(plain, key, f"[t2ikit.shapes.{name}]") for name in ("LargestColorShare", "ColorsAndPlaces"))
    assert one != other and one.startswith("step-00000002-metrics-") and "/" not in one and len(one) < 40


def test_options_stand_before_overrides_and_pictures_have_them_too(plain: dict[str, Any]) -> None:
    words = ("--callbacks.geneval.prompts.extended", "false")
    assert name_of(plain, *words, first="PICTURES", limit=4) == "PICTURES-limit-4-prompts.extended-false"
    assert name_of(plain, *words, guidance=[0.0, 2.0], seed=3).endswith("-seed-3-guidance-sweep-prompts.extended-false")


def test_the_arguments_of_a_verifier_are_part_of_its_name(plain: dict[str, Any]) -> None:
    one, same, other = (
        name_of(plain, verifier=text)
        for text in ("a.Judge", "{class_path: a.Judge}", "{class_path: a.Judge, init_args: {seed: 1}}")
    )
    assert one == same == "step-00000002-verifier-Judge" and other.startswith(f"{one}-") and len(other) == len(one) + 9


def test_a_long_name_is_cut_and_still_differs(plain: dict[str, Any]) -> None:
    long = [f"--callbacks.geneval.{'option' * 10}{number} 1" for number in range(5)]
    names = {name_of(plain, *" ".join(long[:count]).split()) for count in (3, 4, 5)}
    assert len(names) == 3 and all(LONGEST < len(name) < 200 for name in names)
