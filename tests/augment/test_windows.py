"""Windows: sizes and places by their law, parts and coordinates in closed form."""

import numpy as np
import pytest
import torch

from t2ikit import rng
from t2ikit.augment.crop import coordinates, cropped, cut, sides, window_corners, window_size


def test_a_side_is_more_than_half_of_the_grid_but_not_all() -> None:
    assert list(sides(16)) == list(range(9, 16)) and list(sides(8)) == [5, 6, 7] and list(sides(3)) == [2]
    with pytest.raises(ValueError, match="grid of 2 tokens"):
        sides(2)


def test_sizes_are_uniform_and_keep_the_expected_share_of_the_tokens() -> None:
    numbers = rng.uniforms(0, "size", 0, 70_000, 2)
    square = np.array([window_size((16, 16), row) for row in numbers])
    assert np.array_equal(square[:, 0], square[:, 1])
    share = np.bincount(square[:, 0], minlength=17)[9:16] / len(square)
    assert np.allclose(share, 1 / 7, atol=0.005)
    assert (square.prod(1) / 256).mean() == pytest.approx(sum(g * g for g in range(9, 16)) / 7 / 256, abs=0.002)
    free = np.array([window_size((16, 16), row, "free") for row in numbers])
    assert abs(np.corrcoef(free.T)[0, 1]) < 0.02 and set(free[:, 1]) == set(range(9, 16))
    assert window_size((8, 16), np.array([0.99, 0.0])) == (7, 15)  # the shape of the grid
    assert window_size((8, 16), np.array([0.99, 0.0]), "free") == (7, 9)
    with pytest.raises(ValueError, match="aspect must be one of square, free"):
        window_size((8, 8), np.zeros(2), "wide")  # type: ignore[arg-type]


def test_places_are_uniform_over_all_that_lie_inside() -> None:
    corners = window_corners((16, 12), (9, 11), rng.uniforms(0, "place", 0, 80_000, 2))
    counts = np.zeros((8, 2))
    np.add.at(counts, tuple(corners.T), 1)
    assert corners.dtype == np.int64 and np.allclose(counts / len(corners), 1 / 16, atol=0.004)
    assert window_corners((16, 16), (9, 9), np.full((1, 2), np.nextafter(1, 0))).tolist() == [[7, 7]]


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_a_window_is_a_slice_and_its_coordinates_say_which(patch_size: int) -> None:
    grid, size = (6, 8), (4, 5)
    x = torch.randn(3, 4, 6 * patch_size, 8 * patch_size, dtype=torch.float64)
    corners = torch.tensor([[0, 0], [2, 3], [1, 2]])
    part, window = cut(x, corners, size, patch_size), coordinates(grid, size, corners)
    assert part.shape == (3, 4, 4 * patch_size, 5 * patch_size) and window.dtype == torch.float32
    for row, (x0, y0, x1, y1) in enumerate(window.tolist()):
        left, right = (round(value * x.shape[3]) for value in (x0, x1))
        top, bottom = (round(value * x.shape[2]) for value in (y0, y1))
        assert torch.equal(part[row], x[row, :, top:bottom, left:right])
    part.zero_()
    assert x.abs().min() > 0  # a new tensor


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 2 / 3, 1.0])
def test_the_share_is_exact_in_the_long_run(p: float) -> None:
    for first in (0, 10**10 + 7):
        chosen = cropped(np.arange(first, first + 19_200), p)
        assert abs(chosen.sum() - 19_200 * p) < 1
        for count in (1, 3, 10, 64):
            rows = np.convolve(chosen, np.ones(count), "valid")
            assert np.abs(rows - p * count).max() < 1
            if abs(p * count - round(p * count)) < 1e-9:
                assert set(rows) == {round(p * count)}  # static shapes
    assert cropped(np.array([5, 0, 3]), 0.5).tolist() == [True, False, True]
