"""The embedded data set as latents: the same records, with what the autoencoder makes of their images."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from t2ikit.denoisers import CADI, Denoiser
from t2ikit.encoders import LatentSpace
from t2ikit.encoders.text import TextEncoder
from t2ikit.evaluation.reference_images import real_images
from t2ikit.evaluation.settings import Sampling
from t2ikit.evaluation.validation import validation_losses
from t2ikit.metrics.fingerprint import Score
from t2ikit.module import TextToImage
from t2ikit.prepare.autoencoder import build_autoencoder
from t2ikit.prepare.autoencoder_options import AutoencoderOptions
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.shapes import ShapesData, latents
from t2ikit.shapes.latents import encoding_beside
from tiny import shallow_cad_i

SMALL = {"size": 16, "count": 24, "val_count": 8, "batch_size": 8}
AUTOENCODER = "embedded:shapes-full"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("latents") / "root"
    ShapesData(root=str(root), autoencoder=AUTOENCODER, **SMALL).prepare_data()
    return root


@pytest.mark.parametrize("name", ["val", "train", "train_cmall"])
def test_records_are_those_of_the_images_with_posteriors(root: Path, name: str) -> None:
    images, encoded = RecordSet(root / "images" / name), RecordSet(root / name)
    assert (encoded.manifest.kind, len(encoded)) == ("latents", len(images))
    assert encoded.manifest.text_encoders == images.manifest.text_encoders
    space = LatentSpace(AUTOENCODER, channels=0)
    pixels = torch.from_numpy(np.stack([record.image for record in images]))
    mean, std = space.encode(pixels)
    for index, (image, latent) in enumerate(zip(images, encoded, strict=True)):
        assert (image.captions, image.metadata) == (latent.captions, latent.metadata)
        states = (record.texts["t5"][0].tokens for record in (image, latent))
        assert np.array_equal(*(tokens.values for tokens in states))
        expected = torch.stack([mean[index], std[index]])
        np.testing.assert_allclose(latent.image.astype(np.float32), expected, rtol=2e-3, atol=2e-3)


def test_a_second_call_writes_nothing_and_a_lost_set_is_made_again(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    data = ShapesData(root=str(copy), autoencoder=AUTOENCODER, **SMALL)
    data.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before
    hashes = RecordSet(copy / "train").manifest.chunk_sha256
    shutil.rmtree(copy / "train")
    shutil.rmtree(copy / "text_encoder")
    data.prepare_data()
    assert RecordSet(copy / "train").manifest.chunk_sha256 == hashes
    assert (copy / "text_encoder" / "config.json").is_file()


def test_images_are_encoded_while_others_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ShapesData(root=str(tmp_path / "images"), settings=(), **SMALL).prepare_data()
    begun, posteriors = Event(), latents._posteriors

    def seen(space: LatentSpace, block: list[Record]) -> np.ndarray:
        begun.set()
        return posteriors(space, block)

    monkeypatch.setattr(latents, "_posteriors", seen)
    with encoding_beside(tmp_path, ["val", "train"], AUTOENCODER):
        assert begun.wait(60)
    assert [len(RecordSet(tmp_path / name)) for name in ("val", "train")] == [8, 24]
    assert not (tmp_path / "text_encoder").exists()  # may be written anew at the time: copied when all is drawn


def test_a_failure_beside_the_encoding_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ShapesData(root=str(tmp_path / "images"), settings=(), **SMALL | {"count": 2000}).prepare_data()
    encoded, begun, posteriors = [], Event(), latents._posteriors

    def slow(space: LatentSpace, block: list[Record]) -> np.ndarray:
        encoded.append(len(block))
        begun.set()
        time.sleep(0.1)
        return posteriors(space, block)

    monkeypatch.setattr(latents, "_posteriors", slow)
    with pytest.raises(KeyboardInterrupt), encoding_beside(tmp_path, ["train"], AUTOENCODER):
        assert begun.wait(60)
        raise KeyboardInterrupt
    assert 0 < sum(encoded) < 1000
    assert not (tmp_path / "train").exists()
    with pytest.raises(FileNotFoundError), encoding_beside(tmp_path, ["nothing"], AUTOENCODER):
        pass


def test_another_autoencoder_encodes_again_and_another_folder(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build_autoencoder(AutoencoderOptions(latent_channels=3, block_channels=(8, 8)), (16, 16)).save_pretrained(other)
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    ShapesData(root=str(copy), autoencoder=str(other), **SMALL).prepare_data()
    assert RecordSet(copy / "train").manifest.image_shape == (2, 3, 8, 8)
    names = {ShapesData(autoencoder=name, **SMALL).root for name in (None, AUTOENCODER, str(other))}
    assert len(names) == 3


def test_references_are_the_images_before_encoding(root: Path) -> None:
    data = ShapesData(root=str(root), autoencoder=AUTOENCODER, **SMALL)
    data.setup()
    assert np.array_equal(real_images(data, "val")[0:1][0], RecordSet(root / "images" / "val")[0].image)


def losses(root: Path, seed: int, self_conditioned: bool = False) -> dict[str, Score]:
    """Validation losses of an untrained CAD-I by name."""
    data = ShapesData(root=str(root), autoencoder=AUTOENCODER, **SMALL)
    data.setup()
    torch.manual_seed(0)
    denoiser = shallow_cad_i(in_channels=3, text_dim=data.manifest.text_dim)
    if self_conditioned:
        torch.nn.init.normal_(denoiser.ln_previous.weight)
    module = TextToImage(denoiser, space=LatentSpace(AUTOENCODER, channels=3), seed=seed)
    return {score.name: score for score in validation_losses(module, data, Sampling(), "raw", 0, "test")}


def test_the_loss_at_fixed_t_and_its_fingerprint_know_no_seed(root: Path) -> None:
    first, second = losses(root, 1), losses(root, 2)
    for name in ("loss_fixed_t", "loss_fixed_t_train"):
        assert first[name] == second[name] and first[name].fingerprint.extra["posterior"] == "0"
    assert first["loss"].value != second["loss"].value and "posterior" not in first["loss"].fingerprint.extra


def test_validation_has_no_first_pass_that_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: score.value for name, score in losses(root, 1).items()}
    passes, first = [], CADI._first_latents

    def counted(*arguments: Any) -> Tensor:
        passes.append(1)
        return first(*arguments)

    monkeypatch.setattr(CADI, "_first_latents", counted)
    assert {name: score.value for name, score in losses(root, 1).items()} == before and not passes
    with monkeypatch.context() as always:
        always.setattr(CADI, "fixed_weights", Denoiser.fixed_weights)
        assert {name: score.value for name, score in losses(root, 1).items()} == before and passes
    passes.clear()
    losses(root, 1, self_conditioned=True)
    assert passes


def test_what_cannot_be_encoded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.size must be a multiple of \d, .*; got 18"):
        ShapesData(root=str(tmp_path), autoencoder=AUTOENCODER, **SMALL | {"size": 18}).prepare_data()
    with pytest.raises(FileNotFoundError, match=r"data\.autoencoder"):
        ShapesData(autoencoder="./nowhere", **SMALL)


def test_a_text_encoder_that_knows_the_order_of_words_makes_the_states_anew(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root / "images", copy / "images")
    data = ShapesData(root=str(copy), autoencoder=AUTOENCODER, word_order=True, **SMALL)
    data.prepare_data()
    encoder = TextEncoder.load(str(copy / "text_encoder"))
    for name in ("val", "train", "train_cmall"):
        plain, ordered = RecordSet(root / name), RecordSet(copy / name)
        [reference] = ordered.manifest.text_encoders
        assert (reference.name, reference.sha256) == ("text_encoder", encoder.reference.sha256)
        for before, after in zip(plain, ordered, strict=True):
            assert (before.captions, before.metadata) == (after.captions, after.metadata)
            assert np.array_equal(before.image, after.image)
            [expected] = encoder.encode(after.captions)
            states = after.texts["t5"][0].tokens.dequantise()
            np.testing.assert_allclose(states, expected, atol=0.02 * np.abs(expected).max())
            assert not np.allclose(states, before.texts["t5"][0].tokens.dequantise(), atol=0.1)
        empty = ordered.empty_prompt["t5"].tokens.dequantise()
        np.testing.assert_allclose(empty, encoder.encode([""])[0], atol=0.05)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    data.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before


def test_word_order_has_a_folder_of_its_own_and_needs_latents() -> None:
    names = {ShapesData(autoencoder=AUTOENCODER, word_order=order, **SMALL).root for order in (False, True)}
    assert len(names) == 2
    with pytest.raises(ValueError, match="data.word_order needs latents: set data.autoencoder"):
        ShapesData(word_order=True, **SMALL)
