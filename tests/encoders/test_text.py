"""Text encoders, on a small T5 of the real class in the real format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.word_order import probe
from t2ikit.encoders.small_t5 import build_small_t5
from t2ikit.encoders.text import TextEncoder

TEXTS = ["An image of crane.", "A red circle, left of two blue squares", "An image of maillot"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small_t5(tmp_path_factory.mktemp("models") / "text_encoder", TEXTS)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return TextEncoder.load(str(folder))


def test_empty_prompt_is_one_token(encoder: TextEncoder) -> None:
    (states,) = encoder.encode([""])
    assert states.shape == (1, 64) and states.dtype == torch.float32
    assert encoder.encode([]) == []


def test_real_lengths_and_punctuation(encoder: TextEncoder) -> None:
    assert encoder.lengths(["An image of crane.", "an image of crane", ""]) == [6, 5, 1]
    tokens = encoder.tokenizer.convert_ids_to_tokens(encoder.tokenizer("An image of zebra.").input_ids)
    assert tokens == ["an", "image", "of", "<unk>", ".", "</s>"]


def test_padding_does_not_reach_the_states(encoder: TextEncoder) -> None:
    together = encoder.encode(TEXTS)
    for text, states in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(encoder.encode([text])[0], states, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0][:4], together[2][:4], atol=1e-3)  # later words reach earlier states


def test_batches_are_padded_and_masked(encoder: TextEncoder) -> None:
    text = encoder(TEXTS)
    assert text.embeddings.shape == (3, 10, 64)
    assert text.mask.sum(1).tolist() == [6, 10, 5]
    assert (text.embeddings[~text.mask] == 0).all()


def test_many_prompts_go_in_passes_of_one_length(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["image", "crane", *TEXTS, "image", "zebra", "of"]
    alone = [encoder.encode([text])[0] for text in texts]
    masks: list[torch.Tensor] = []
    forward = type(encoder.model).forward

    def seen(self: torch.nn.Module, *args: Any, attention_mask: torch.Tensor, **options: Any) -> Any:
        masks.append(attention_mask)
        return forward(self, *args, attention_mask=attention_mask, **options)

    monkeypatch.setattr(type(encoder.model), "forward", seen)
    rows = encoder.encode_rows(texts, batch_size=3)
    for one, together in zip(alone, rows, strict=True):
        torch.testing.assert_close(one, together.embeddings[0], rtol=1e-5, atol=1e-5)
    assert [tuple(mask.shape) for mask in masks] == [(1, 10), (1, 6), (1, 5), (3, 2), (1, 2)]  # "image" once
    assert all(mask.all() for mask in masks) and encoder.encode_rows([]) == []


def test_cut_keeps_the_end_token(folder: Path) -> None:
    encoder = TextEncoder.load(str(folder), max_tokens=4)
    assert encoder.lengths(["an image of crane", ""]) == [4, 1]
    ids = encoder.tokenizer("an image of crane", truncation=True, max_length=4).input_ids
    assert ids[-1] == encoder.tokenizer.eos_token_id
    assert TextEncoder.load(str(folder)).lengths(["image " * 400]) == [256]


def test_same_seed_same_files(folder: Path, tmp_path: Path, encoder: TextEncoder) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = build_small_t5(tmp_path / "again", TEXTS)
    assert torch.equal(before, torch.random.get_rng_state())
    for file in folder.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert TextEncoder.load(str(again)).reference.sha256 == encoder.reference.sha256
    assert build_small_t5(again, TEXTS) == again
    with pytest.raises(FileExistsError, match="delete it"):
        build_small_t5(again, TEXTS, seed=1)
    build_small_t5(again, TEXTS, seed=1, overwrite=True)
    assert TextEncoder.load(str(again)).reference.sha256 != encoder.reference.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_other_words_give_another_reference(tmp_path: Path, encoder: TextEncoder) -> None:
    swapped = build_small_t5(tmp_path / "swapped", [text.replace("crane", "drake") for text in TEXTS])
    assert TextEncoder.load(str(swapped)).reference.sha256 != encoder.reference.sha256


def test_refusals(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder.*--text-encoder"):
        TextEncoder.load(str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="no weights.*--text-encoder"):
        TextEncoder.load(str(tmp_path))
    with pytest.raises(ValueError, match="no revision"):
        TextEncoder.load(str(folder), revision="main")
    with pytest.raises(ValueError, match="multiple of heads"):
        build_small_t5(tmp_path / "odd", TEXTS, dim=30)
    with pytest.raises(ValueError, match="none of them has a word"):
        build_small_t5(tmp_path / "empty", ["", " "])


@pytest.mark.parametrize(("word_order", "least", "most"), [(False, 0.0, 0.9), (True, 0.97, 1.0)])
def test_word_order_is_what_tells_which_adjective_belongs_to_a_noun(
    tmp_path: Path, word_order: bool, least: float, most: float
) -> None:
    """A linear map of the state of a noun finds its own adjective of the two in a text."""
    adjectives, nouns = ["striped", "dotted", "checked", "plain"], ["ring", "star", "heart", "cross", "arrow"]
    rng = np.random.default_rng(0)
    pairs = [(rng.permutation(adjectives)[:2], rng.permutation(nouns)[:2]) for _ in range(1500)]
    texts = [f"There is a {a[0]} {n[0]} and a {a[1]} {n[1]} on the left." for a, n in pairs]
    encoder = TextEncoder.load(str(build_small_t5(tmp_path / "t5", texts, word_order=word_order)))
    states = torch.stack([row[[4, 8][index % 2]] for index, row in enumerate(encoder.encode(texts))]).double()
    own = torch.tensor([adjectives.index(a[index % 2]) for index, (a, _) in enumerate(pairs)])
    right, _ = probe(states, own)
    assert least <= right <= most
