"""Sets that do not fit the experiment are refused before training, by field and option."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2ikit.data.datamodule import DataModule
from t2ikit.denoisers import CADI
from t2ikit.encoders.autoencoders import LatentSpace, PixelSpace
from t2ikit.encoders.small_t5 import build_small_t5
from t2ikit.module import TextToImage
from t2ikit.pretrained import EncoderReference, find_pretrained
from t2ikit.records.fits import check_text_encoder
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set

VAE = EncoderReference("stabilityai/sd-vae-ft-ema", "a" * 40, "ab" * 32)
T5 = EncoderReference("google/flan-t5-xl", "b" * 40, "cd" * 32)
LATENTS = Manifest("latents", (2, 4, 8, 8), texts={"t5": TextSource(16, T5)}, autoencoder=VAE)


def write_root(root: Path, manifest: Manifest) -> Path:
    states = quantise_tokens(np.ones((1, manifest.text_dim), np.float32), manifest.token_format)
    image = np.zeros(manifest.image_shape, np.uint8 if manifest.kind == "pixels" else np.float16)
    for split in ("train", "val"):
        write_set(
            root / split, [Record({"image": image, "text.t5.0": states}, ("a",))], manifest, {"t5": States(states)}
        )
    return root


def model(space: Any = None) -> TextToImage:
    options = {"num_latents": 4, "latent_dim": 16, "num_blocks": 1, "num_layers": 1, "data_dim": 16}
    heads = {"read_write_heads": 2, "compute_heads": 2, "num_registers": 1}
    denoiser = CADI(input_size=8, in_channels=4, patch_size=2, text_dim=16, **options, **heads)
    return TextToImage(denoiser, space=space or LatentSpace(VAE.name))


def test_a_set_that_fits_is_taken(tmp_path: Path) -> None:
    data = DataModule(str(write_root(tmp_path, LATENTS)), 1, text_encoder=T5.name)
    data.find_data()
    data.setup("fit")
    model().check_manifest(data.manifest)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"image_shape": (2, 4, 16, 16)}, ["(4, 16, 16)", "(4, 8, 8)", "input_size", "--size"]),  # another size
        ({"image_shape": (2, 16, 8, 8)}, ["(16, 8, 8)", "in_channels"]),  # other latent channels
        ({"texts": {"t5": TextSource(32, T5)}}, ["32", "16", "text_dim", "--text-encoder"]),
        ({"kind": "pixels", "image_shape": (3, 8, 8), "autoencoder": None}, ["pixels", "model.init_args.space"]),
    ],
    ids=["size", "channels", "text width", "kind"],
)
def test_the_model_names_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], messages: list[str]) -> None:
    data = DataModule(str(write_root(tmp_path, replace(LATENTS, **changes))), 1)
    data.setup("fit")
    with pytest.raises(ValueError) as caught:
        model().check_manifest(data.manifest)
    for message in messages:
        assert message in str(caught.value)


def test_another_autoencoder_is_refused(tmp_path: Path) -> None:
    """Its weights are compared by their hash, those of a real small autoencoder in a folder."""
    from diffusers import AutoencoderKL

    folder = tmp_path / "vae"
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    AutoencoderKL(**blocks, block_out_channels=(8,), norm_num_groups=4, latent_channels=4).save_pretrained(folder)
    own = find_pretrained(str(folder), None, "--autoencoder").reference
    model(LatentSpace(str(folder))).check_manifest(replace(LATENTS, autoencoder=own))
    moved = replace(own, name="/elsewhere/vae")
    model(LatentSpace(str(folder))).check_manifest(replace(LATENTS, autoencoder=moved))  # the same weights
    with pytest.raises(ValueError, match=r"sd-vae-ft-ema \(SHA-256 abab.*`autoencoder` of LatentSpace"):
        model(LatentSpace(str(folder))).check_manifest(LATENTS)
    with pytest.raises(ValueError, match="latents.*model.init_args.space"):
        model(PixelSpace()).check_manifest(LATENTS)


def test_another_text_encoder_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    root = str(write_root(tmp_path, LATENTS))
    DataModule(root, text_encoder=None).find_data()
    for step in ("find_data", "setup"):
        with pytest.raises(ValueError) as caught:
            getattr(DataModule(root, text_encoder="google/t5-v1_1-xl"), step)()
        for part in ("text_encoder", T5.name, "cdcdcd", "data.text_encoder is google/t5-v1_1-xl", "prepare encode"):
            assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match="--data.text_encoder"):
        DataModule(root, text_encoder=str(tmp_path / "none")).find_data()


def test_a_local_text_encoder_is_compared_by_its_weights(tmp_path: Path) -> None:
    folder = build_small_t5(tmp_path / "t5", ["a fish"], dim=16)
    other = build_small_t5(tmp_path / "other", ["a fish"], dim=16, seed=1)
    own = find_pretrained(str(folder), None, "", ("tokenizer.json", "spiece.model")).reference
    manifest = replace(LATENTS, texts={"t5": TextSource(16, replace(own, name="made/elsewhere"))})
    check_text_encoder(manifest, str(folder), "train")
    check_text_encoder(manifest, "made/elsewhere", "train")
    with pytest.raises(ValueError, match=f"{own.sha256[:12]}, of the wanted one"):
        check_text_encoder(manifest, str(other), "train")
    with pytest.raises(ValueError, match="no text states.*prepare encode"):
        check_text_encoder(replace(manifest, texts={}), "a/b", "train")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"texts": {"t5": TextSource(16, replace(T5, sha256="ef" * 32))}}, "text_encoders"),
        ({"autoencoder": replace(VAE, sha256="ef" * 32)}, "autoencoder"),
        ({"token_format": "float16"}, "token_format"),
        ({"image_shape": (2, 4, 4, 4)}, "image_shape"),
        ({"texts": {"t5": TextSource(8, T5)}}, "text_dim"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_gated_set_must_fit_the_raw_one(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    write_root(tmp_path, LATENTS)
    write_root(tmp_path / "other", replace(LATENTS, **changes))
    (tmp_path / "other" / "train").rename(tmp_path / "train_cm4")
    data = DataModule(str(tmp_path), 1)
    data.setup("fit")
    with pytest.raises(ValueError, match=f"cm4.*{field} is "):
        data.add_stream("cm4", "train_cm4", 0.4, 0.5)
