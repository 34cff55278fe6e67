"""Patches, positions, noise-level embedding."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from t2ikit.denoisers.embeddings import (
    LevelEmbed,
    PatchEmbed,
    frequencies,
    grid_of,
    patchify,
    sincos,
    sincos_grid,
    unpatchify,
)


def test_patch_embed_is_the_strided_convolution() -> None:
    torch.manual_seed(0)
    layer = PatchEmbed(3, 8, 2).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    expected = F.conv2d(x, layer.weight, layer.bias, stride=2).flatten(2).mT
    torch.testing.assert_close(layer(x), expected)
    # Fans of a convolution: in 3 * 4, out 8 * 4.
    assert layer.weight.abs().max() <= math.sqrt(6 / (12 + 32))


def test_unpatchify_puts_the_channel_fastest() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    tokens = torch.stack(
        [x[:, :, r : r + 2, c : c + 2].permute(0, 2, 3, 1).flatten(1) for r in (0, 2) for c in (0, 2, 4)], dim=1
    )
    assert torch.equal(unpatchify(tokens, 2, (2, 3)), x)
    assert patchify(x, 2).shape == tokens.shape


def test_level_embedding_matches_the_check_vectors(sample_data: Path) -> None:
    data = load_file(sample_data / "vectors" / "time_embedding.safetensors")
    layer = LevelEmbed(64)
    layer.load_state_dict({name[2:]: value for name, value in data.items() if name.startswith("w.map_time")})
    gamma = data["gamma"]
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(frequencies(8, gamma.device), data["freqs"], **close)
    torch.testing.assert_close(sincos(gamma, 16), data["sincos"], **close)
    torch.testing.assert_close(layer.features(gamma), data["normalised"], **close)
    torch.testing.assert_close(layer(gamma), data["token"], **close)


def test_level_features_are_normalised_with_n_minus_one() -> None:
    features = LevelEmbed(64).features(torch.tensor([0.0, 0.3, 1.0]))
    torch.testing.assert_close(features.mean(-1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(features.var(-1, correction=1), torch.ones(3))


def test_level_is_embedded_in_fp32_whatever_the_weights_are() -> None:
    layer = LevelEmbed(256)
    level = torch.tensor([0.5, 0.5001])
    full = layer.features(level)
    assert torch.equal(layer.bfloat16().features(level), full)
    assert layer(level).dtype == torch.bfloat16


def test_grid_positions_follow_the_pixart_rule() -> None:
    table = sincos_grid((32, 16), 16, torch.device("cpu"))
    row, column = 6, 5
    # Column half first; 32 rows span the range of 16.
    for half, index in ((0, column), (8, row / 2)):
        angles = [index * 10000 ** (-i / 4) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(table[row, column, half : half + 8], torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_grid_of_refuses_a_size_that_patches_do_not_tile() -> None:
    assert grid_of((8, 12), 2) == (4, 6)
    with pytest.raises(ValueError, match="input_size 9 x 9 must be a multiple of patch_size 2"):
        grid_of(9, 2)
