"""Encoding with several text encoders, one after the other, and pictures beside latents."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from t2ikit.batch import Text
from t2ikit.cli import main
from t2ikit.data.streams import TrainingStream
from t2ikit.encoders import TextEncoder, build_small_t5
from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.check.check import prepare_check
from t2ikit.prepare.cutmix import prepare_cutmix
from t2ikit.prepare.encode.caption_encoder import CaptionEncoder, EncodedTexts
from t2ikit.prepare.encode.encode import prepare_encode
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.images import prepare_images
from t2ikit.records.compressed import Compressed
from t2ikit.records.manifest import Manifest, StoredArray
from t2ikit.records.record_set import RecordSet

WORDS = "An image of crane maillot tench and"
PIXELS: dict[str, Any] = {"autoencoder": "pixels", "launch": Launch("cpu", 1, batch_size=4), "shard_size": 8}


class WithVectors(TextEncoder):
    """A text encoder that gives a pooled vector, too."""

    def encode_pooled(self, prompts: list[str]) -> tuple[list[Tensor], Tensor]:
        states = TextEncoder(self.model, self.tokenizer, self.reference, self.max_tokens).encode(prompts)
        return states, torch.stack([rows.mean(0)[:12] for rows in states])


@pytest.fixture
def encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Folders of two tiny encoders, the second of which gives pooled vectors."""
    folders = [build_small_t5(tmp_path / f"t5-{dim}", [WORDS], dim=dim, layers=1, seed=dim) for dim in (32, 80)]
    load = TextEncoder.load.__func__  # type: ignore[attr-defined]
    pooling = {str(folders[1]): WithVectors}
    monkeypatch.setattr(TextEncoder, "load", lambda name, *rest: load(pooling.get(name, TextEncoder), name, *rest))
    return str(folders[0]), str(folders[1])


def test_two_encoders_give_what_each_gives_alone(prepared: Path, encoders: tuple[str, str]) -> None:
    alone = []
    for encoder in encoders:
        prepare_encode(prepared, text_encoder=encoder, overwrite=True, **PIXELS)
        alone.append([RecordSet(prepared / "train")[index] for index in range(12)])
    empty = RecordSet(prepared / "train").empty_prompt["t5"]
    manifests = prepare_encode(prepared, text_encoder=encoders, overwrite=True, **PIXELS)
    manifest = manifests["train"]
    assert list(manifest.texts) == ["t5", "t5-2"] and manifest.text_dim == (32, 80)
    assert [text.pooled for text in manifest.texts.values()] == [0, 12]
    assert [reference.name for reference in manifest.text_encoders] == list(encoders)
    records = RecordSet(prepared / "train")
    for record, first, second in zip(records, *alone, strict=True):
        assert list(record.arrays) == ["image", "text.t5.0", "text.t5-2.0", "pooled.t5-2.0"]
        assert np.array_equal(record.image, first.image) and record.metadata == first.metadata
        for mine, theirs in ((record.texts["t5"], first.texts["t5"]), (record.texts["t5-2"], second.texts["t5"])):
            assert np.array_equal(mine[0].tokens.values, theirs[0].tokens.values)
            assert np.array_equal(mine[0].tokens.scales, theirs[0].tokens.scales)  # type: ignore[arg-type]
        assert np.array_equal(record.texts["t5-2"][0].pooled, second.texts["t5"][0].pooled)  # type: ignore[arg-type]
    both = records.empty_prompt
    assert both["t5"].pooled is None
    assert np.array_equal(both["t5-2"].tokens.values, empty.tokens.values)
    assert np.array_equal(both["t5-2"].pooled, empty.pooled)  # type: ignore[arg-type]
    assert prepare_check(prepared) == []
    text = TrainingStream(records, global_batch=12)[0].text()
    assert isinstance(text, tuple) and [part.embeddings.shape[2] for part in text] == [32, 80]
    assert isinstance(text[1], Text) and text[1].pooled is not None and text[1].pooled.shape == (12, 12)
    assert not list(prepared.glob(".*"))
    prepare_encode(prepared, text_encoder=encoders, **PIXELS)  # up to date
    with pytest.raises(FileExistsError, match="--text-encoder differs"):
        prepare_encode(prepared, text_encoder=encoders[::-1], **PIXELS)


def test_one_text_encoder_is_in_memory_and_a_pass_that_is_done_is_kept(
    prepared: Path, encoders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[TextEncoder] = []
    encoded: list[tuple[int, bool]] = []
    load, encode = TextEncoder.load, CaptionEncoder.encode

    def load_alone(*arguments: Any) -> TextEncoder:
        assert all(encoder.device.type == "meta" for encoder in loaded)
        loaded.append(load(*arguments))
        return loaded[-1]

    def encode_or_stop(self: CaptionEncoder, prompts: list[str]) -> EncodedTexts:
        encoded.append((self.encoder.dim, prompts != [""]))
        if self.encoder.dim == 32 and prompts != [""] and stops:
            raise RuntimeError("stopped")
        return encode(self, prompts)

    monkeypatch.setattr(TextEncoder, "load", load_alone)
    monkeypatch.setattr(CaptionEncoder, "encode", encode_or_stop)
    for name in ("train", "val", "train_cmall"):
        shutil.rmtree(prepared / name)
    stops = True
    with pytest.raises(RuntimeError, match="stopped"):
        prepare_encode(prepared, text_encoder=encoders, **PIXELS)
    assert (prepared / ".train.part-0.t5-2.work").is_dir() and not (prepared / "train").exists()
    before = list(encoded)
    stops = False
    encoded.clear()
    loaded.clear()
    prepare_encode(prepared, text_encoder=encoders, **PIXELS)
    resumed = encoded[: encoded.index((32, True))]
    assert (80, True) in before and (80, True) not in resumed  # the pass over train is not done again
    assert not list(prepared.glob(".*"))


def test_options_that_do_not_fit_each_other_are_refused(prepared: Path) -> None:
    with pytest.raises(ValueError, match="each once"):
        prepare_encode(prepared, text_encoder=["a", "a"])
    with pytest.raises(ValueError, match="--text-encoder-revision is given 1 times and --text-encoder 2 times"):
        prepare_encode(prepared, text_encoder=["a", "b"], text_encoder_revision="main")
    with pytest.raises(ValueError, match="--keep-picture keeps the picture beside latents"):
        prepare_encode(prepared, autoencoder="pixels", text_encoder="small", keep_picture=True)


def test_the_command_takes_an_encoder_several_times(prepared: Path, encoders: tuple[str, str]) -> None:
    words = ["--text-encoder", encoders[0], "--text-encoder", encoders[1]]
    done = main(["prepare", "encode", "--out", str(prepared), "--autoencoder", "pixels", *words, "--overwrite"])
    assert done == 0 and list(Manifest.read(prepared / "val").texts) == ["t5", "t5-2"]


@pytest.mark.parametrize("picture_format", ["png", "webp"])
def test_a_picture_beside_latents(photos: Path, tmp_path: Path, picture_format: str) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    autoencoder = tmp_path / "vae"
    AutoencoderKL(**blocks, block_out_channels=(8,), norm_num_groups=4).save_pretrained(autoencoder)
    root = tmp_path / "data"
    prepare_images(str(photos), root, 16, picture_format="png")
    prepare_cutmix(root, "cm4")
    prepare_captions(root)
    with pytest.raises(FileExistsError, match="--picture-format was png and is raw now"):
        prepare_images(str(photos), root, 16)
    options = {"autoencoder": str(autoencoder), "text_encoder": "small", "text_dim": 16}
    prepare_encode(root, keep_picture=True, picture_format=picture_format, **options)  # type: ignore[arg-type]
    for name in ("train", "val", "train_cm4"):
        records, images = RecordSet(root / name), RecordSet(root / "images" / name)
        assert images.manifest.image_codec == "png"
        assert records.manifest.arrays["picture"] == StoredArray(picture_format, (3, 16, 16))
        for record, image in zip(records, images, strict=True):
            picture, source = record.arrays["picture"], image.arrays["image"]
            assert isinstance(picture, Compressed) and isinstance(source, Compressed)
            assert np.array_equal(picture.decode(), image.image)
            assert picture.codec == picture_format and (picture.content == source.content or picture_format == "webp")
    stream = TrainingStream(RecordSet(root / "train"), global_batch=4, arrays=("image", "picture"))
    assert stream[0].array("picture").shape == (4, 3, 16, 16)
    assert prepare_check(root) == []
    with pytest.raises(FileExistsError, match="--keep-picture"):
        prepare_encode(root, **options)  # type: ignore[arg-type]


def test_compressed_pixels_stay_compressed(photos: Path, tmp_path: Path) -> None:
    raw, webp = tmp_path / "raw", tmp_path / "webp"
    for root, picture_format in ((raw, "raw"), (webp, "webp")):
        prepare_images(str(photos), root, 16, picture_format=picture_format)
        prepare_captions(root)
        prepare_encode(root, autoencoder="pixels", text_encoder="small", text_dim=16)
    records = RecordSet(webp / "train")
    assert records.manifest.image_codec == "webp" and isinstance(records[0].arrays["image"], Compressed)
    assert records.manifest.mismatch(RecordSet(raw / "train").manifest) is None  # both may share a batch
    mine, theirs = (TrainingStream(RecordSet(root / "train"), global_batch=4)[0] for root in (webp, raw))
    assert torch.equal(mine.image, theirs.image) and torch.equal(mine.texts["t5"].tokens, theirs.texts["t5"].tokens)
    assert prepare_check(webp) == []
