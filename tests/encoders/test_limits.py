"""Prompts that a text encoder does not take as they are: how many, and which."""

from __future__ import annotations

import pytest

from t2ikit.encoders.limits import cut_texts, with_remarks
from t2ikit.encoders.small_t5 import build_small_t5
from t2ikit.encoders.text import TextEncoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = build_small_t5(tmp_path_factory.mktemp("t5") / "small", ["a red circle and a blue square"], dim=16)
    return TextEncoder.load(str(folder), max_tokens=5)


def test_texts_that_are_cut_are_counted(encoder: TextEncoder) -> None:
    fits, too_long = "a red circle and", "a red circle and a"  # 4 and 5 tokens before the end token
    assert cut_texts(encoder, [fits, "", "red"]) == (0, "")
    assert cut_texts(encoder, [fits, too_long, f"{too_long} square"] * 1000) == (2000, too_long)


def test_what_an_encoder_does_not_take_is_printed(encoder: TextEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(with_remarks([encoder], ["a red circle", "a blue square"])) == [encoder]
    assert capsys.readouterr().out == ""
    list(with_remarks([encoder], ["a red circle and a square", "a green circle", "a green circle", "two dogs"]))
    printed = capsys.readouterr().out
    assert "1 of 3 prompts are longer than the 5 tokens that the text encoder" in printed
    assert "2 of 3 prompts hold words that the text encoder" in printed
    assert "'green', 'two', 'dogs'" in printed
