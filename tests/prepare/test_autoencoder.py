"""``prepare autoencoder``: what it learns, that it goes on bit for bit, what it refuses, the folder that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from t2ikit.cli import main
from t2ikit.encoders.autoencoders import LatentSpace
from t2ikit.prepare import autoencoder
from t2ikit.prepare.autoencoder import DESCRIPTION, StoredPictures, prepare_autoencoder, reconstruction_loss
from t2ikit.prepare.autoencoder_options import AutoencoderOptions
from t2ikit.shapes.autoencoder import RenderedPictures
from t2ikit.shapes.dataset import build_shapes

WEIGHTS = "diffusion_pytorch_model.safetensors"
OPTIONS = AutoencoderOptions(block_channels=(8, 16), steps=6, batch_size=4, scored=8, latent_channels=3)
PICTURES = RenderedPictures("simple", 16, 0)


def trained(out: Path, options: AutoencoderOptions = OPTIONS, pictures: autoencoder.Pictures = PICTURES) -> dict:
    return prepare_autoencoder(pictures, out, options, "cpu", False, options.command(source="shapes"), None)


@pytest.mark.long
def test_a_short_form_learns_and_is_loaded_as_any_autoencoder(tmp_path: Path) -> None:
    out = tmp_path / "autoencoder"
    words = "prepare autoencoder --source shapes --size 16 --difficulty simple --block-channels 16 32 --steps 200"
    words += " --batch-size 8 --half --scored 64"
    assert main([*words.split(), "--out", str(out)]) == 0
    known = json.loads((out / DESCRIPTION).read_text())
    assert known["scores"]["psnr"] > 16 and known["scores"]["scenes_right_before"] == 1.0
    assert 0 <= known["scores"]["scenes_right"] <= 1
    assert known["command"] == f"t2ikit {words}"
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1  # whoever may read one file may read all
    space = LatentSpace(str(out), normalisation="autoencoder")
    images = torch.from_numpy(PICTURES.held_out(64))
    mean, std = space.encode(images)
    x_0 = space.x_0(torch.stack([mean, std], 1))
    sampled = space.x_0(
        torch.stack([mean, std], 1), torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    )
    torch.testing.assert_close(sampled.mean((0, 2, 3)), torch.zeros(4), atol=0.05, rtol=0)
    torch.testing.assert_close(sampled.std((0, 2, 3)), torch.ones(4), atol=0.05, rtol=0)
    error = (space.images(x_0) - images / 255).square().mean()
    assert -10 * error.log10() == pytest.approx(known["scores"]["psnr"], abs=0.1)


class Interrupted(RenderedPictures):
    """Stops the training when a slot is asked for."""

    def batch(self, first_slot: int, count: int) -> np.ndarray:
        if first_slot >= 16:
            raise KeyboardInterrupt
        return super().batch(first_slot, count)


def test_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "whole")
    monkeypatch.setattr(autoencoder, "_SECONDS_BETWEEN_SAVES", -1.0)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", pictures=Interrupted("simple", 16, 0))
    state = tmp_path / ".cut.training.pt"
    assert torch.load(state, weights_only=True)["step"] == 4 and not (tmp_path / "cut").exists()
    torch.manual_seed(7)  # nothing depends on the global state
    with pytest.raises(FileExistsError, match="other options.*--overwrite"):
        trained(tmp_path / "cut", AutoencoderOptions(steps=7, block_channels=(8, 16)))
    trained(tmp_path / "cut")
    for name in (WEIGHTS, "config.json", DESCRIPTION):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not state.exists()


def test_what_is_there_is_kept_and_another_one_refused(tmp_path: Path) -> None:
    out = tmp_path / "autoencoder"
    known = trained(out)
    before = (out / WEIGHTS).stat().st_mtime_ns
    assert trained(out) == known and (out / WEIGHTS).stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="--overwrite"):
        trained(out, AutoencoderOptions(steps=7, block_channels=(8, 16)))
    data = tmp_path / "data"
    data.mkdir()
    (data / "manifest.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds something else, no autoencoder.*choose another --out"):
        prepare_autoencoder(PICTURES, data, OPTIONS, "cpu", True, "", None)
    assert (data / "manifest.json").exists()
    with pytest.raises(ValueError, match="16 x 16 cannot be halved 5 times"):
        trained(tmp_path / "other", AutoencoderOptions(block_channels=(8,) * 6))
    with pytest.raises(ValueError, match="--block-channels must be multiples of 8"):
        AutoencoderOptions(block_channels=(12,))
    for value in (float("nan"), float("inf"), -1.0):
        for option in ("learning_rate", "kl_weight", "edge_weight"):
            with pytest.raises(ValueError, match="--learning-rate must be above 0"):
                AutoencoderOptions(**{option: value})  # type: ignore[arg-type]


def test_pictures_of_a_prepared_set_come_once_an_epoch(tmp_path: Path) -> None:
    build_shapes(tmp_path, count=8, val_count=4, settings=())
    pictures = StoredPictures(tmp_path, seed=0)
    epochs = [pictures.batch(first, 8) for first in (0, 8)]
    assert epochs[0].shape == (8, 3, 16, 16) and not np.array_equal(*epochs)
    assert sorted(image.tobytes() for image in epochs[0]) == sorted(image.tobytes() for image in epochs[1])
    assert np.array_equal(pictures.batch(6, 4), np.concatenate([epochs[0][6:], epochs[1][:2]]))
    assert len(pictures.held_out(9)) == 4
    assert trained(tmp_path / "autoencoder", pictures=pictures)["scores"].keys() == {"psnr", "empty_channels"}


def test_a_channel_of_noise_alone_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "prepare autoencoder --source shapes --size 16 --difficulty simple --block-channels 8 8 --steps 20"
    words += " --batch-size 4 --scored 16 --latent-channels 2 --kl-weight 1000"
    assert main([*words.split(), "--out", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    known = json.loads((tmp_path / "out" / DESCRIPTION).read_text())
    assert known["scores"]["empty_channels"] == 2
    assert "2 of the latent channels hold noise alone" in capsys.readouterr().out
    assert all(0.5 < std < 2 for std in config["latents_std"])  # that of the noise, not of the means


def test_edges_cost_more_than_an_even_error() -> None:
    images = torch.zeros(1, 3, 4, 4)
    even, edge = torch.full_like(images, 0.1), images.clone()
    edge[..., 0] = 0.4  # the same mean absolute error
    gap = [reconstruction_loss(image, images, 1.0) - reconstruction_loss(image, images, 0.0) for image in (even, edge)]
    assert gap[0] == 0 and gap[1] > 0.1
