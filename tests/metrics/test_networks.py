"""The published feature networks, small, saved and loaded in their ordinary format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from t2ikit.metrics.features.inception import build_inception
from t2ikit.metrics.features.networks import CLIPFeatures, DINOv2Features, InceptionFeatures, position_table
from t2ikit.metrics.features.pixels import preprocess


def images(count: int, size: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    state = build_inception().state_dict()
    # The published file has the classifier, too.
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


def test_inception_variants(inception_weights: Path) -> None:
    clean = InceptionFeatures("clean", str(inception_weights))
    features = clean(images(1))
    assert features.shape == (1, 2048)
    torch.testing.assert_close(features[0], clean.network(preprocess("inception_clean", images(1)[0])[None])[0])
    assert clean.fingerprint()["resize"] == clean.name == "inception_clean"
    assert InceptionFeatures("torch_fidelity", "unread").pipeline == "inception_torch_fidelity"
    with pytest.raises(ValueError, match="variant must be one of clean"):
        InceptionFeatures("tensorflow")


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
def test_inception_equals_the_port_of_clean_fid(inception_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = pytest.importorskip("cleanfid.inception_pytorch")
    state = torch.load(inception_weights)
    monkeypatch.setattr(port, "load_state_dict_from_url", lambda *_, **__: state)
    reference = port.InceptionV3(resize_input=False, normalize_input=False).eval()
    x = torch.randn(1, 3, 155, 155, generator=torch.Generator().manual_seed(1))
    expected = reference(x)[0].flatten(1)
    torch.testing.assert_close(InceptionFeatures(weights=str(inception_weights)).network(x), expected)


def test_inception_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="features.init_args.weights"):
        InceptionFeatures(weights=str(tmp_path / "none.pth"))(images(1))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is no Inception v3"):
        InceptionFeatures(weights=str(tmp_path / "other.pth"))(images(1))


def test_dinov2(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    features = DINOv2Features(str(tmp_path), dim=32)
    found = features(images(2))
    assert found.shape == (2, 32)
    # With the resized table in place the network sees its own size and leaves the table alone.
    pixels = torch.stack([preprocess("dinov2", image) for image in images(2)])
    model.embeddings.position_embeddings.data = position_table(model.embeddings.position_embeddings, 16)
    torch.testing.assert_close(found, model(pixels).last_hidden_state[:, 0])
    assert features.fingerprint()["features_sha256"]
    with pytest.raises(ValueError, match="set features.init_args.dim to 32"):
        DINOv2Features(str(tmp_path))(images(1))


def test_position_table() -> None:
    table = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    resized = position_table(table, 16)
    assert resized.shape == (1, 257, 3)
    assert torch.equal(resized[:, 0], table[:, 0])
    assert torch.equal(position_table(table, 37), table)
    # A ramp over the table reads at (i + 0.5) * 37 / 16.1 - 0.5, up to the ripple of the cubic; the offset shifts it.
    ramp = torch.arange(37.0).repeat(37, 1).reshape(1, -1, 1)
    row = position_table(torch.cat([torch.zeros(1, 1, 1), ramp], dim=1), 16)[0, 1 + 16 * 8 : 1 + 16 * 9, 0]
    places = torch.arange(16) + 0.5
    assert (row - (places * 37 / 16.1 - 0.5))[2:-2].abs().max() < 0.05
    assert (row - (places * 37 / 16 - 0.5))[12:-1].abs().min() > 0.1


def test_clip(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=336,
        patch_size=56,
        projection_dim=24,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    model.save_pretrained(tmp_path)
    pixels = torch.stack([preprocess("cmmd_336", image) for image in images(3)])
    expected = model(pixel_values=pixels).image_embeds
    plain = CLIPFeatures(str(tmp_path), dim=24, unit_length=False)
    torch.testing.assert_close(plain(images(3)), expected)
    unit = CLIPFeatures(str(tmp_path), dim=24)
    torch.testing.assert_close(unit(images(3)), functional.normalize(expected, dim=1))
    assert unit.fingerprint()["resize"] == "cmmd_336"
    with pytest.raises(ValueError, match="unknown pixel pipeline"):
        CLIPFeatures(str(tmp_path), pipeline="cmmd")
    with pytest.raises(FileNotFoundError, match="features.init_args.model"):
        CLIPFeatures(str(tmp_path / "nothing"))(images(1))
