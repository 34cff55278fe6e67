"""TIFA: choices, means over captions, pooled types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from t2ikit.metrics.questions.tifa import SentenceEncoder, TIFAQuestion, choose, mean_pooled, score


def question(caption: str, answer: str, kind: str = "object") -> TIFAQuestion:
    return TIFAQuestion(caption, "What is it?", ("a", "b", "c"), answer, kind)


def test_scores() -> None:
    questions = [
        question("1", "a"),
        question("1", "b", "color"),
        question("2", "c"),
        question("2", "c"),
        question("3", "a"),
    ]
    result = score(questions, ["a", "c", "c", "c", "b"])
    assert result["tifa_average"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert result["tifa_stdev"] == pytest.approx(0.5)
    assert result["accuracy_by_type"] == {"color": 0, "object": 0.75}


def test_a_free_answer_goes_to_the_nearest_choice() -> None:
    asked: list[Sequence[str]] = []

    def embed(sentences: Sequence[str]) -> torch.Tensor:
        asked.append(sentences)
        return torch.tensor([[1.0, 0.1], [0.0, 5.0], [0.5, 0.0], [-9.0, 0.0]])

    assert choose("dog", ["cat", "dog", "cow"], embed) == "dog"
    assert not asked
    assert choose("puppy", ["cat", "dog", "cow"], embed) == "dog"
    assert asked == [["puppy", "cat", "dog", "cow"]]
    with pytest.raises(ValueError, match="without choices"):
        choose("dog", [], embed)


def test_mean_pooling_leaves_the_padding_out() -> None:
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [99.0, 99.0]]])
    torch.testing.assert_close(mean_pooled(states, torch.tensor([[1, 1, 0]])), torch.tensor([[0.6, 0.8]]))


def test_sentence_encoder(tmp_path: Path) -> None:
    from transformers import BertTokenizer, MPNetConfig, MPNetModel

    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "red", "green", "a", "dog"]
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, mask_token="<mask>", **special)
    tokenizer.save_pretrained(tmp_path)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = MPNetModel(MPNetConfig(**tower, vocab_size=len(words), max_position_embeddings=20)).eval()
    model.save_pretrained(tmp_path)
    encoder = SentenceEncoder(str(tmp_path), max_tokens=8)
    together = encoder(["red", "a green dog"])
    assert together.shape == (2, 16)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encoder(["red"])[0], together[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        states = model(input_ids=torch.tensor([[0, 7, 6, 8, 2]])).last_hidden_state
    torch.testing.assert_close(together[1], mean_pooled(states, torch.ones(1, 5))[0], rtol=1e-4, atol=1e-5)
    assert len(encoder.fingerprint()["sentences_sha256"]) == 64
    with pytest.raises(FileNotFoundError, match=r"sentences\.init_args\.model"):
        SentenceEncoder("./nowhere")(["red"])


def test_errors() -> None:
    with pytest.raises(ValueError, match="1 questions and 2 answers"):
        score([question("1", "a")], ["a", "b"])
    with pytest.raises(ValueError, match="lacks choices, answer"):
        score([{"id": "1", "question": "?", "element_type": "object"}], ["a"])
    row = {"id": "1", "question": "?", "choices": ["yes", "no"], "answer": "yes", "element_type": "object"}
    assert score([row], ["yes"])["tifa_average"] == 1
