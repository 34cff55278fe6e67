"""Image spaces, on a tiny AutoencoderKL of the real class in the real format."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from t2ikit.encoders.autoencoders import CHANNEL_MEANS, CHANNEL_STDS, LatentSpace, PixelSpace, _channel_statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    path = tmp_path_factory.mktemp("models") / "autoencoder"
    model.save_pretrained(path)
    return path


def test_pixels_there_and_back() -> None:
    space = PixelSpace()
    stored = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    x_0 = space.x_0(stored)
    assert x_0.dtype == torch.float32 and (x_0.min(), x_0.max()) == (-1.0, 1.0)
    assert torch.equal((space.images(x_0) * 255).round().to(torch.uint8), stored)
    assert space.images(torch.full((1, 3, 2, 2), 1.5)).max() == 1.0
    assert torch.equal(x_0, space.x_0(stored))  # the stored image is not touched
    with pytest.raises(ValueError, match="LatentSpace"):
        space.x_0(torch.zeros(1, 2, 4, 8, 8))


def test_scalar_normalisation() -> None:
    space = LatentSpace("not-needed")
    stored = torch.randn(2, 2, 4, 8, 8).half()
    noise = torch.randn(2, 4, 8, 8)
    mean, std = stored.float().unbind(1)
    torch.testing.assert_close(space.x_0(stored, noise), 0.18215 * (mean + std * noise))
    torch.testing.assert_close(space.x_0(stored), 0.18215 * mean)
    assert space.std == 1.0


def test_channelwise_normalisation() -> None:
    space = LatentSpace("not-needed", normalisation="channelwise")
    means, stds = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
    raw = torch.randn(5000, 4, 2, 2) * stds.view(4, 1, 1) + means.view(4, 1, 1)
    x_0 = space.normalise(raw)
    torch.testing.assert_close(x_0.mean((0, 2, 3)), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(x_0.std((0, 2, 3)), torch.full((4,), space.std), atol=0.02, rtol=0)
    torch.testing.assert_close(space.denormalise(x_0), raw)
    torch.testing.assert_close(space.normalise(means.view(1, 4, 1, 1) + 4.17), 0.5 * (4.17 / stds).view(1, 4, 1, 1))
    with pytest.raises(ValueError, match="4 channels, not 8"):
        LatentSpace("not-needed", normalisation="channelwise", channels=8)
    with pytest.raises(ValueError, match="scalar, channelwise or autoencoder"):
        LatentSpace("not-needed", normalisation="whitened")  # type: ignore[arg-type]


def test_channels_of_another_standard_deviation() -> None:
    default, unit = (LatentSpace("not-needed", normalisation="channelwise", channel_std=std) for std in (None, 1.0))
    raw = torch.randn(2, 4, 2, 2) * 4.0
    torch.testing.assert_close(unit.normalise(raw), 2.0 * default.normalise(raw))
    torch.testing.assert_close(unit.denormalise(unit.normalise(raw)), raw)
    assert (unit.std, unit.bound) == (1.0, 4.0)
    # A checkpoint of the default says what it always said; one of another value cannot be taken for it.
    named = {"space": "LatentSpace", "normalisation": "channelwise"}
    assert default.description() == named
    assert LatentSpace("not-needed", normalisation="channelwise", channel_std=0.5).description() == named
    assert unit.description() == {**named, "channel_std": "1.0"}
    for std in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="channel_std is a standard deviation, above 0"):
            LatentSpace("not-needed", normalisation="channelwise", channel_std=std)
    with pytest.raises(ValueError, match="channel_std acts with the channelwise normalisation, not with scalar"):
        LatentSpace("not-needed", channel_std=1.0)


def test_normalisation_by_the_statistics_of_the_autoencoder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="latents_mean for 0 .* choose normalisation scalar"):
        LatentSpace(str(folder), normalisation="autoencoder").normalise(torch.zeros(1, 4, 2, 2))
    shutil.copytree(folder, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    statistics = {"latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [0.5, 1.0, 2.0, 4.0]}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | statistics))
    space = LatentSpace(str(tmp_path / "own"), normalisation="autoencoder")
    raw = torch.tensor([1.5, 3.0, 5.0, 8.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(space.normalise(raw), torch.ones(1, 4, 1, 1))
    torch.testing.assert_close(space.denormalise(torch.ones(1, 4, 1, 1)), raw)
    assert space.std == 1.0 and space._loaded is None  # the statistics alone need no weights


def test_embedded_names_are_refused_by_name() -> None:
    for name in ("embedded:nothing", "embedded:../encoders"):
        with pytest.raises(FileNotFoundError, match="not shipped with the kit.*--autoencoder"):
            LatentSpace(name).load()


def test_encode_is_the_posterior_in_one_pass(folder: Path) -> None:
    space = LatentSpace(str(folder), batch_size=2)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    calls = []
    handle = space.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    mean, std = space.encode(images)
    handle.remove()
    assert len(calls) == 2 and mean.shape == std.shape == (3, 4, 8, 8)
    posterior = space.model.encode(images / 127.5 - 1.0).latent_dist
    torch.testing.assert_close(mean, posterior.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, posterior.std, rtol=1e-4, atol=1e-5)
    floats = space.encode(images / 255)
    torch.testing.assert_close(mean, floats[0], rtol=1e-4, atol=1e-5)
    assert space.downsampling == 2 and len(space.reference.sha256) == 64 and space.reference.revision is None


def test_images_undo_the_normalisation(folder: Path) -> None:
    for normalisation in ("scalar", "channelwise"):
        space = LatentSpace(str(folder), normalisation=normalisation)  # type: ignore[arg-type]
        raw = torch.randn(2, 4, 8, 8)
        images = space.images(space.normalise(raw))
        expected = (space.model.decode(raw).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_stored_images_of_another_space_are_refused(folder: Path, tmp_path: Path) -> None:
    from t2ikit.pretrained import EncoderReference

    space = LatentSpace(str(folder))
    stored = EncoderReference(str(folder), None, "0" * 64)
    space.check(stored)  # the same name: compared when it is loaded
    with pytest.raises(ValueError, match="prepare encode --autoencoder"):
        space.images(torch.zeros(1, 4, 8, 8))
    loaded = LatentSpace(str(folder))
    loaded.check(EncoderReference("elsewhere", None, loaded.reference.sha256))
    with pytest.raises(ValueError, match="latents are those of elsewhere"):
        LatentSpace(str(folder)).check(EncoderReference("elsewhere", None, "0" * 64))
    with pytest.raises(ValueError, match="PixelSpace"):
        loaded.check(None)
    PixelSpace().check(None)
    with pytest.raises(ValueError, match="LatentSpace"):
        PixelSpace().check(stored)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--autoencoder"):
        LatentSpace(str(tmp_path / "missing")).encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="`channels` of LatentSpace"):
        LatentSpace(str(folder), channels=8).reference.sha256.upper()
    with pytest.raises(ValueError, match="multiples of 2.*--size"):
        LatentSpace(str(folder)).encode(torch.zeros(1, 3, 15, 15, dtype=torch.uint8))
    with pytest.raises(ValueError, match="PixelSpace"):
        LatentSpace(str(folder)).x_0(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_channel_statistics_are_put_on_a_device_once_and_serve_training_after_inference() -> None:
    space = LatentSpace(normalisation="channelwise")
    raw = torch.randn(1, 4, 2, 2)
    with torch.inference_mode():
        space.normalise(raw)
    numbers = CHANNEL_MEANS, CHANNEL_STDS
    first, again = (_channel_statistics(*numbers, torch.float32, torch.device("cpu")) for _ in range(2))
    assert first[0] is again[0] and first[1] is again[1] and not first[0].is_inference()
