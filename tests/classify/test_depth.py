"""Depth maps: the steps of the released program around the network, and that each is made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from class_pictures import tiny_depth_anything

from t2ikit.classify import ClassFolders
from t2ikit.classify.depth import DepthMaps, centre_square, to_grey


def test_grey_values_are_cut_off_not_rounded() -> None:
    depth = torch.tensor([[2.0, 3.0], [2.5, 6.0]])
    assert to_grey(depth).tolist() == [[0, 63], [31, 255]]
    with pytest.warns(UserWarning, match="depth map of x is constant"):
        assert to_grey(torch.full((2, 2), 7.0), "x").tolist() == [[0, 0], [0, 0]]


def test_the_centre_square_goes_down() -> None:
    picture = np.arange(3 * 4 * 7).reshape(3, 4, 7)
    assert np.array_equal(centre_square(picture), picture[:, :, 1:5])


def test_maps_are_made_once_and_shown(
    tmp_path: Path, options: Callable[..., dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))
    model = str(tiny_depth_anything(tmp_path / "depth"))
    data = ClassFolders(**options(view="depth", depth_model=model))  # type: ignore[arg-type]
    data.prepare_data()
    first = data.sets.train
    assert data.depth is not None
    depth = data.read(first, 0)
    assert depth.shape == (3, 28, 28) and depth.min() == 0 and depth.max() == 255
    assert (depth[0] == depth[1]).all() and (depth[0] == depth[2]).all()
    assert len(list((tmp_path / "cache" / "depth").rglob("*.png"))) == 36
    monkeypatch.setattr(DepthMaps, "_load", None)  # a second time no network is loaded
    data.prepare_data()
    assert data.training_stream()[0].images.shape == (7, 3, 16, 16)
    assert data.description()["depth"]["sha256"] == data.depth.source.reference.sha256
