"""Draws: functions of (seed, purpose, slot) and of nothing else."""

import numpy as np
import pytest
import torch

from t2ikit import rng

GOLDEN_UNIFORMS = [[0.6276581232397387, 0.9478249832411736], [0.9640381598747116, 0.3466432762291489]]
GOLDEN_PERMUTATION = [2, 5, 0, 1, 3, 4]


def test_uniforms_do_not_depend_on_the_split() -> None:
    whole = rng.uniforms(3, "source", 100, 50, columns=6)
    parts = [rng.uniforms(3, "source", 100 + first, size, columns=6) for first, size in [(0, 7), (7, 1), (8, 42)]]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(whole[:, :2], rng.uniforms(3, "source", 100, 50, columns=2))


def test_uniforms_do_not_change_between_versions() -> None:
    """A resumed run must draw what the first part would have drawn, also after an upgrade."""
    assert rng.uniforms(0, "source", 0, 2, 2).tolist() == GOLDEN_UNIFORMS
    assert rng.permutation(0, "chunks", 1, 6).tolist() == GOLDEN_PERMUTATION


def test_uniforms_are_uniform_and_unrelated() -> None:
    first = rng.uniforms(0, "source", 0, 200_000, 2)
    other_purpose = rng.uniforms(0, "caption", 0, 200_000, 2)
    other_seed = rng.uniforms(1, "source", 0, 200_000, 2)
    assert first.min() >= 0 and first.max() < 1
    counts = np.histogram(first, bins=20, range=(0, 1))[0]
    expected = first.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi-square, 19 degrees: 0.001 quantile is 43.8
    for other in (other_purpose, other_seed):
        assert abs(np.corrcoef(first[:, 0], other[:, 0])[0, 1]) < 0.01
    assert abs(np.corrcoef(first[:, 0], first[:, 1])[0, 1]) < 0.01
    assert abs(np.corrcoef(first[1:, 0], first[:-1, 0])[0, 1]) < 0.01


def test_far_slots_work() -> None:
    assert rng.uniforms(0, "source", 10**12, 3).shape == (3, 1)
    assert rng.uniforms(0, "source", 5, 0).shape == (0, 1)
    with pytest.raises(ValueError, match="first slot >= 0"):
        rng.uniforms(0, "source", -1, 3)


def test_numbers_of_slots_that_are_not_consecutive_are_those_of_the_slots() -> None:
    slots, places = np.array([13, 11, 40, 20, 21]), [2, 0, 29, 9, 10]
    assert np.array_equal(rng.uniforms(3, "drop", slots, 5, 6), rng.uniforms(3, "drop", 11, 30, 6)[places])
    assert torch.equal(rng.normal(3, "noise", slots, 5, (4, 2)), rng.normal(3, "noise", 11, 30, (4, 2))[places])
    assert np.array_equal(rng.share(3, "keep", slots, 5, 0.4), rng.share(3, "keep", 11, 30, 0.4)[places])
    assert rng.uniforms(3, "drop", slots[:0], 0).shape == (0, 1)
    with pytest.raises(ValueError, match="count 4"):
        rng.uniforms(3, "drop", slots, 4)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_share_is_exact_in_the_long_run_and_even_in_every_batch(rate: float) -> None:
    chosen = rng.share(0, "keep", 10**12, 200_000, rate)
    for every in (1, 2, 5):  # also of the slots that another share leaves
        rows = chosen[::every]
        assert abs(rows.sum() - rate * len(rows)) < 8
        for count in (10, 64, 1024):
            sums = np.convolve(rows, np.ones(count), "valid")
            assert np.abs(sums - rate * count).max() < 5
    other = rng.share(0, "other", 10**12, 200_000, rate)
    assert rate in (0.0, 1.0) or not np.array_equal(chosen, other)


def test_permutation_changes_with_the_epoch_and_the_stream() -> None:
    orders = [rng.permutation(0, "chunks", epoch, 50, stream) for epoch in range(3) for stream in range(2)]
    for order in orders:
        assert order.dtype == np.int64 and sorted(order) == list(range(50))
    assert len({tuple(order) for order in orders}) == len(orders)
    firsts = np.bincount([rng.permutation(0, "chunks", epoch, 5)[0] for epoch in range(2000)], minlength=5)
    assert firsts.min() > 320 and firsts.max() < 480


@pytest.mark.parametrize("splits", [[29], [1, 28], [8, 8, 13], [3, 2, 24]])
def test_normal_does_not_depend_on_the_split(splits: list[int]) -> None:
    whole = rng.normal(5, "noise", 11, 29, (4, 3, 3))
    parts, first = [], 11
    for size in splits:
        parts.append(rng.normal(5, "noise", first, size, (4, 3, 3)))
        first += size
    assert torch.equal(whole, torch.cat(parts))


def test_normal_is_normal_and_never_repeats() -> None:
    values = rng.normal(0, "noise", 0, 4096, (64,))
    assert values.dtype == torch.float32
    assert abs(values.mean().item()) < 0.01 and abs(values.std().item() - 1) < 0.01
    assert abs((values**4).mean().item() - 3) < 0.05
    assert len(torch.unique(values[:, 0])) > 4090
    assert not torch.equal(values[:8], rng.normal(1, "noise", 0, 8, (64,)))
    assert not torch.equal(values[:8], rng.normal(0, "posterior", 0, 8, (64,)))


def test_normal_of_no_slots_and_of_one_number_a_slot() -> None:
    assert rng.normal(0, "noise", 3, 0, (2,)).shape == (0, 2)
    assert rng.normal(0, "noise", 3, 5, ()).shape == (5,)


def test_derived_seeds_are_unlike() -> None:
    seeds = {rng.derived_seed(seed, "image", index) for seed in range(10) for index in range(1000)}
    assert len(seeds) == 10_000 and min(seeds) >= 0 and max(seeds) < 2**63
