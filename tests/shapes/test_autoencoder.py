"""The embedded autoencoders of shapes: loaded by the ordinary path, as good as their files say, small."""

from __future__ import annotations

import json

import pytest
import torch

from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.prepare.autoencoder import DESCRIPTION
from t2ikit.pretrained import find_pretrained
from t2ikit.shapes.autoencoder import RenderedPictures

NAME = "embedded:shapes-full"


@pytest.mark.parametrize(("difficulty", "shape"), [("full", (3, 8, 8)), ("simple", (4, 4, 4))])
def test_it_decodes_scenes_as_its_description_says(difficulty: str, shape: tuple[int, int, int]) -> None:
    name, channels = f"embedded:shapes-{difficulty}", shape[0]
    folder = find_pretrained(name, None, "--autoencoder").folder
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    known = json.loads((folder / DESCRIPTION).read_text())
    assert known["command"].startswith(
        f"t2ikit prepare autoencoder --source shapes --size 32 --difficulty {difficulty}"
    )
    space = LatentSpace(name, normalisation="autoencoder", channels=channels, batch_size=64)
    pictures = RenderedPictures(difficulty, 32, known["options"]["seed"])
    images = pictures.held_out(128)
    mean, std = space.encode(torch.from_numpy(images))
    assert mean.shape == (128, *shape) and space.reference.name == name and space.reference.revision is None
    x_0 = space.x_0(torch.stack([mean, std], 1))
    sampled = space.x_0(
        torch.stack([mean, std], 1), torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    )
    torch.testing.assert_close(sampled.mean((0, 2, 3)), torch.zeros(channels), atol=0.2, rtol=0)
    torch.testing.assert_close(sampled.std((0, 2, 3)), torch.ones(channels), atol=0.2, rtol=0)
    decoded = (space.images(x_0) * 255).round().to(torch.uint8).numpy()
    # 128 scenes of the 1,000 of the description: three standard errors.
    right = known["scores"]["scenes_right"]
    assert right >= 0.95
    error = 3 * (right * (1 - right) / 128) ** 0.5
    assert pictures.score(images, decoded)["scenes_right"] == pytest.approx(right, abs=error)


def test_stored_latents_of_it_are_known_by_its_name() -> None:
    space = LatentSpace(NAME, normalisation="autoencoder", channels=3)
    space.check(space.reference)
    assert space.channels == 3
