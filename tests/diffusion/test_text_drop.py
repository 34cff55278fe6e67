"""The conditioning drop with the texts of several encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from t2ikit.batch import Batch, Text, Texts, each_text, map_texts, text_rows
from t2ikit.diffusion import Denoising
from t2ikit.rng import Keyed

ROWS, SLOT, RNG = 400, 7, Keyed(3)


def text(value: float, rows: int, pooled: int = 0) -> Text:
    vectors = torch.full((rows, pooled), value) if pooled else None
    return Text(torch.full((rows, 2, 3), value), torch.ones(rows, 2, dtype=torch.bool), vectors)


def batch(texts: Texts, rows: int = ROWS) -> Batch:
    numbers = torch.arange(rows)
    return Batch(torch.zeros(rows, 1, 2, 2), texts, torch.zeros(rows), numbers, numbers, slot=SLOT)


def dropped(objective: Denoising, texts: Texts, empty: Texts) -> list[torch.Tensor]:
    """[B] bool of every encoder."""
    objective.unconditional = empty
    after = objective.draw(batch(texts), RNG, 0).text
    assert isinstance(after, Text) == isinstance(texts, Text)
    return [encoded.embeddings[:, 0, 0] == 0.0 for encoded in each_text(after)]


BOTH = (text(1.0, ROWS, pooled=4), text(2.0, ROWS)), (text(0.0, 1, pooled=4), text(0.0, 1))


def test_one_joint_drop_takes_the_numbers_of_a_single_text() -> None:
    (alone,) = dropped(Denoising(text_drop=0.3), text(1.0, ROWS), text(0.0, 1))
    assert torch.equal(alone, torch.from_numpy(RNG.uniforms("drop", SLOT, ROWS)[:, 0] < 0.3))
    for column in dropped(Denoising(text_drop=0.3), *BOTH):
        assert torch.equal(column, alone)
    for column in dropped(Denoising(text_drop=0.3, text_drop_each=[0.0, 0.0]), *BOTH):
        assert torch.equal(column, alone)


def test_each_encoder_has_a_drop_of_its_own() -> None:
    first, second = (column.numpy() for column in dropped(Denoising(text_drop=0.0, text_drop_each=[0.2, 0.5]), *BOTH))
    assert abs(first.mean() - 0.2) < 0.06 and abs(second.mean() - 0.5) < 0.08
    assert abs((first & second).mean() - 0.1) < 0.05  # independent
    joint = dropped(Denoising(text_drop=0.3), *BOTH)[0].numpy()
    together = dropped(Denoising(text_drop=0.3, text_drop_each=[0.2, 0.5]), *BOTH)
    assert np.array_equal(together[0].numpy(), first | joint) and np.array_equal(together[1].numpy(), second | joint)


def test_pooled_vectors_are_dropped_with_their_text() -> None:
    objective = Denoising(text_drop=0.5)
    objective.unconditional = BOTH[1]
    first, _ = objective.draw(batch(BOTH[0]), RNG, 0).text
    assert torch.equal(first.pooled[:, 0] == 0.0, first.embeddings[:, 0, 0] == 0.0)
    objective.unconditional = (text(0.0, 1), text(0.0, 1))
    with pytest.raises(ValueError, match="only one has a pooled vector"):
        objective.draw(batch(BOTH[0]), RNG, 0)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"text_drop_each is a probability.*1\.5"):
        Denoising(text_drop_each=[0.1, 1.5])
    with pytest.raises(ValueError, match="text_drop_each has 1 .*2 text encoders"):
        dropped(Denoising(text_drop_each=[0.1]), *BOTH)
    with pytest.raises(ValueError, match="of 1 and of 2 text encoders do not fit"):
        dropped(Denoising(text_drop=0.1), BOTH[0], text(0.0, 1))


def test_parts_of_a_batch_keep_their_texts() -> None:
    numbers = torch.arange(6.0)
    first = Text(numbers.view(6, 1, 1), torch.ones(6, 1, dtype=torch.bool), numbers.view(6, 1))
    part = batch((first, text(2.0, 6)), 6).part(2, 5)
    assert isinstance(part.text, tuple) and part.text[0].pooled is not None
    assert part.text[0].embeddings.flatten().tolist() == part.text[0].pooled.flatten().tolist() == [2.0, 3.0, 4.0]
    assert text_rows(part.text) == 3 and part.slot == SLOT + 2
    moved = batch((first, text(2.0, 6)), 6).to(torch.float64)
    assert all(encoded.embeddings.dtype == torch.float64 for encoded in each_text(moved.text))


def test_texts_are_joined_and_mapped_together() -> None:
    short = Text(torch.ones(2, 1, 3), torch.ones(2, 1, dtype=torch.bool))
    joined = Text.join([text(2.0, 1), short])
    assert joined.mask.tolist() == [[True, True], [True, False], [True, False]] and joined.pooled is None
    assert Text.join([text(1.0, 1, 4), text(2.0, 2, 4)]).pooled[:, 0].tolist() == [1.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="only some"):
        Text.join([text(1.0, 1, 4), text(1.0, 1)])
    pairs = map_texts(lambda *rows: Text.join(rows), (short, text(1.0, 2)), (short, text(1.0, 2)))
    assert [len(encoded) for encoded in pairs] == [4, 4]
    with pytest.raises(ValueError, match="same rows"):
        text_rows((text(1.0, 2), text(1.0, 3)))
