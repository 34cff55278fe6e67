"""Encoding: pixels and latents, states of the captions, and what makes a set out of date."""

import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from t2ikit.encoders import LatentSpace, TextEncoder, build_small_t5
from t2ikit.prepare.captions.caption_file import CaptionSet
from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.captions.lines import CaptionLines
from t2ikit.prepare.check.check import prepare_check
from t2ikit.prepare.encode.caption_encoder import CaptionEncoder
from t2ikit.prepare.encode.encode import prepare_encode
from t2ikit.prepare.encode.encoders import Encoded, Encoders
from t2ikit.prepare.encode.work import Encoding
from t2ikit.prepare.engine.launch import Launch
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import Tokens, quantise_tokens


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(**blocks, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1)
    path = tmp_path_factory.mktemp("models") / "autoencoder"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = "An image of crane maillot tench and"
    return build_small_t5(tmp_path_factory.mktemp("models") / "t5", [words], dim=80, layers=1)


def test_pixel_records(prepared_once: Path) -> None:
    encoder = TextEncoder.load(str(prepared_once / "text_encoder"))
    for name in ("train", "val", "train_cmall"):
        records, images = RecordSet(prepared_once / name), RecordSet(prepared_once / "images" / name)
        manifest = records.manifest
        assert manifest.kind == "pixels" and manifest.image_shape == (3, 16, 16) and manifest.autoencoder is None
        assert (manifest.text_dim, manifest.token_format, manifest.captions) == (32, "int8", "aio")
        assert manifest.setting == ("cmall" if name == "train_cmall" else None)
        assert (manifest.token_limit, manifest.text_dtype, manifest.normalisation) == (256, "float32", "none")
        assert manifest.captioners == {"aio": {"kind": "aio"}} and len(manifest.parts) == 1
        assert [encoder.name for encoder in manifest.text_encoders] == ["text_encoder"]
        assert manifest.text_encoders[0].sha256 == encoder.reference.sha256
        assert set(manifest.versions) >= {"t2ikit", "torch", "transformers"}
        for record, image, (key, texts) in zip(records, images, CaptionSet(prepared_once, name), strict=True):
            assert record.metadata == image.metadata and record.metadata["key"] == key
            assert np.array_equal(record.image, image.image) and record.captions == texts
            states = encoder.encode(texts)[0].numpy()
            stored = record.texts["t5"][0].tokens.dequantise()
            assert stored.shape == states.shape
            assert np.linalg.norm(stored - states) < 0.02 * np.linalg.norm(states)
        empty = records.empty_prompt["t5"].tokens
        assert len(empty) == 1
        assert np.abs(empty.dequantise() - encoder.encode([""])[0].numpy()).max() < 0.05


def test_small_encoder_knows_every_word(prepared_once: Path) -> None:
    encoder = TextEncoder.load(str(prepared_once / "text_encoder"))
    assert encoder.unknown_words("An image of tench and maillot") == []
    assert encoder.unknown_words("An image of zebra") == ["zebra"]


def test_latent_records(prepared: Path, autoencoder: Path, text_encoder: Path) -> None:
    with pytest.raises(
        FileExistsError, match="inputs: --autoencoder differs; the shape of .*; --text-encoder differs.*--overwrite"
    ):
        prepare_encode(prepared, autoencoder=str(autoencoder), text_encoder=str(text_encoder))
    manifests = prepare_encode(
        prepared,
        autoencoder=str(autoencoder),
        text_encoder=str(text_encoder),
        token_format="float16",
        launch=Launch(devices=1, batch_size=5),
        overwrite=True,
    )
    assert list(manifests) == ["train", "val", "train_cmall"]
    space, encoder = LatentSpace(str(autoencoder)), TextEncoder.load(str(text_encoder))
    records, images = RecordSet(prepared / "train"), RecordSet(prepared / "images/train")
    assert records.manifest.image_shape == (2, 4, 8, 8) and records.manifest.autoencoder == space.reference
    assert records.manifest.text_encoders == (encoder.reference,) and records.manifest.autoencoder_dtype == "float32"
    mean, std = space.encode(torch.from_numpy(np.stack([image.image for image in images])))
    for index, record in enumerate(records):
        assert record.image.dtype == np.float16
        stored = torch.from_numpy(record.image).float()
        torch.testing.assert_close(stored, torch.stack([mean[index], std[index]]), rtol=2e-3, atol=2e-3)
        expected = quantise_tokens(encoder.encode(record.captions)[0], "float16").dequantise()
        np.testing.assert_allclose(record.texts["t5"][0].tokens.dequantise(), expected, atol=2e-3)


def test_one_model_call_a_batch_and_a_caption_only_once(
    prepared: Path, autoencoder: Path, text_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images: list[int] = []
    texts: list[str] = []
    encode_images, encode_texts = LatentSpace.encode, CaptionEncoder.encode
    monkeypatch.setattr(LatentSpace, "encode", lambda self, x: images.append(len(x)) or encode_images(self, x))
    monkeypatch.setattr(CaptionEncoder, "encode", lambda self, x: texts.extend(x) or encode_texts(self, x))
    prepare_encode(
        prepared,
        autoencoder=str(autoencoder),
        text_encoder=str(text_encoder),
        launch=Launch("cpu", 1, batch_size=8),
        overwrite=True,
    )
    assert images == [8, 4, 6, 8, 4]  # one call a batch: 12 of train, 6 of val, 12 of train_cmall
    captions = [
        text for name in ("train", "val", "train_cmall") for _, own in CaptionSet(prepared, name) for text in own
    ]
    encoded = Counter(text for text in texts if text)
    assert set(encoded) == set(captions) and max(encoded.values()) <= 2  # once a shard: train and val share a class
    assert len(captions) > sum(encoded.values())


def test_second_run_does_nothing(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    files = [prepared / name / "manifest.json" for name in ("train", "val", "train_cmall")]
    before = [file.stat().st_mtime_ns for file in files]
    prepare_encode(prepared, autoencoder="pixels", text_encoder="small", text_dim=32)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert capsys.readouterr().out.count("up to date") == 3


def test_new_captions_make_the_sets_out_of_date(prepared: Path, tmp_path: Path) -> None:
    rows = [(record.metadata["key"], "tench and image") for record in RecordSet(prepared / "images/val")]
    (tmp_path / "t.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in rows))
    prepare_captions(prepared, file=str(tmp_path / "t.tsv"), overwrite=True)
    with pytest.raises(
        FileExistsError,
        match="val was made from other inputs: --name .*images or captions differ",
    ):
        prepare_encode(prepared, autoencoder="pixels", text_encoder="small", text_dim=32)
    prepare_encode(prepared, autoencoder="pixels", text_encoder="small", text_dim=32, overwrite=True)
    assert RecordSet(prepared / "val")[0].captions == ("tench and image",)
    assert Manifest.read(prepared / "train").captions == "aio"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_tokens": 5}, "--max-tokens was 256 and is 5 now"),
        ({"token_format": "float16"}, "--token-format was int8 and is float16 now"),
        ({"text_dtype": "bfloat16"}, "--text-dtype was float32 and is bfloat16 now"),
    ],
)
def test_the_option_that_differs_is_named(prepared: Path, change: dict[str, Any], named: str) -> None:
    options = {"autoencoder": "pixels", "text_encoder": "small", "text_dim": 32}
    with pytest.raises(FileExistsError, match=f"made from other inputs: {named}.*--overwrite"):
        prepare_encode(prepared, **{**options, **change})


def test_a_data_set_of_the_first_version_is_encoded_anew_from_its_images(prepared: Path) -> None:
    """Its photos may be gone: images and captions stay as they are."""
    options = {"autoencoder": "pixels", "text_encoder": "small", "text_dim": 32}
    expected = [record.to_bytes() for record in RecordSet(prepared / "train")]
    shutil.rmtree(prepared / "captions")
    for name in ("train", "val", "train_cmall"):
        images = tiny.to_version_1(prepared / "images" / name)
        encoder = {"name": "text_encoder", "revision": None, "sha256": "ab"}
        old = {**images, "text_dim": 32, "text_encoder": encoder}
        (prepared / name / "manifest.json").write_text(json.dumps(old))
    prepare_captions(prepared)
    before = {path: path.read_bytes() for path in prepared.glob("images/*/*")}
    with pytest.raises(ValueError, match=f"earlier version(.|\n)*prepare encode --out {prepared} --overwrite"):
        prepare_encode(prepared, **options)
    assert any("earlier version" in finding for finding in prepare_check(prepared))
    prepare_encode(prepared, **options, overwrite=True)
    assert [record.to_bytes() for record in RecordSet(prepared / "train")] == expected
    assert {path: path.read_bytes() for path in prepared.glob("images/*/*")} == before
    assert prepare_check(prepared) == []


def test_captions_that_are_cut_are_counted(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"autoencoder": "pixels", "text_encoder": "small", "text_dim": 32, "overwrite": True}
    prepare_encode(prepared, max_tokens=5, **options)  # "An image of crane" and the end token
    printed = capsys.readouterr().out
    assert "val: " in printed and "val: 6 captions" not in printed
    cut = len(RecordSet(prepared / "train_cmall"))  # of two classes: "An image of crane and tench"
    assert f"train_cmall: {cut} captions are longer than the 5 tokens that " in printed


def test_small_encoder_that_lacks_words_is_refused(prepared: Path, tmp_path: Path) -> None:
    rows = [(record.metadata["key"], "a zebra") for record in RecordSet(prepared / "images/val")]
    (tmp_path / "t.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in rows))
    prepare_captions(prepared, file=str(tmp_path / "t.tsv"), overwrite=True)
    with pytest.raises(FileExistsError, match="does not know 'a'.*--overwrite"):
        prepare_encode(prepared, autoencoder="pixels", text_encoder="small", text_dim=32)
    with pytest.raises(FileExistsError, match="--text-dim 32"):
        prepare_encode(prepared, autoencoder="pixels", text_encoder="small", text_dim=64)
    prepare_encode(prepared, autoencoder="pixels", text_encoder="small", text_dim=48, overwrite=True)
    hashes = {Manifest.read(prepared / name).text_encoders for name in ("train", "val", "train_cmall")}
    assert len(hashes) == 1 and TextEncoder.load(str(prepared / "text_encoder")).dim == 48


def test_refusals(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="prepare images --source"):
        prepare_encode(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="--text-encoder"):
        prepare_encode(prepared, autoencoder="pixels", text_encoder=str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="--token-format"):
        prepare_encode(prepared, token_format="int4")
    with pytest.raises(ValueError, match="--text-dtype"):
        prepare_encode(prepared, text_dtype="float16")
    with pytest.raises(ValueError, match="--batch-size"):
        prepare_encode(prepared, launch=Launch(batch_size=0))
    captions = prepared / "captions/val.jsonl"
    header, *rows = captions.read_text().splitlines(keepends=True)
    captions.write_text("".join([json.dumps(json.loads(header) | {"images": "0"}) + "\n", *rows]))
    with pytest.raises(ValueError, match="belongs to other images.*--overwrite"):
        prepare_encode(prepared, autoencoder="pixels", text_encoder="small", text_dim=32)


def test_every_set_is_looked_at_before_the_first_is_encoded(prepared: Path) -> None:
    """A set that may not be replaced, behind one that takes a day."""
    options = {"autoencoder": "pixels", "text_encoder": "small", "text_dim": 32}
    shutil.rmtree(prepared / "train")
    path = prepared / "train_cmall" / "manifest.json"
    path.write_text(path.read_text().replace('"token_limit": 256', '"token_limit": 77'))
    with pytest.raises(FileExistsError, match=r"train_cmall was made from .*: --max-tokens was 77 and is 256 now"):
        prepare_encode(prepared, **options)
    assert not (prepared / "train").exists()


def test_the_disk_must_hold_all_sets(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself fits; what is found after the first set is found a day too late."""
    for name in ("train", "train_cmall", "val"):
        shutil.rmtree(prepared / name)
    one = 12 * (3 * 16 * 16 + 400)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2 * one))
    with pytest.raises(ValueError, match=r"train_cmall needs about .* free, .* for the sets before"):
        prepare_encode(prepared, autoencoder="pixels", text_encoder="small", text_dim=32)
    assert not (prepared / "train").exists()


def test_a_damaged_line_of_captions_is_named(prepared: Path) -> None:
    path = prepared / "captions" / "train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:4], lines[4][:20] + "\n", *lines[5:]]), encoding="utf-8")
    rows = CaptionLines(path)
    with pytest.raises(ValueError, match=r"line 5 of .*train.jsonl is damaged .*--overwrite"):
        rows[3]


def test_a_device_is_not_waited_for_before_the_shard_is_written(
    prepared: Path, autoencoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: every batch of a shard is sent before the first is fetched, in the thread that writes."""
    shutil.rmtree(prepared / "captions")
    prepare_captions(prepared)
    options = {"autoencoder": str(autoencoder), "text_encoder": str(prepared / "text_encoder"), "shard_size": 8}
    launch = Launch("cpu", 1, batch_size=2)
    for name in ("train", "train_cmall", "val"):
        shutil.rmtree(prepared / name)
    prepare_encode(prepared, launch=launch, **options)
    wanted = {name: [record.to_bytes() for record in RecordSet(prepared / name)] for name in ("train", "train_cmall")}
    events: list[tuple[str, int]] = []
    begin, result = Encoders.begin, Encoded.result

    def began(self: Encoders, pixels: np.ndarray, texts: list[str], encoder: Any) -> Encoded:
        events.append(("sent", threading.get_ident()))
        return begin(self, pixels, texts, encoder)

    def fetched(self: Encoded, stream: None = None) -> tuple[np.ndarray, list[Tokens]]:
        events.append(("fetched", threading.get_ident()))
        return result(self, stream)

    monkeypatch.setattr(Encoders, "begin", began)
    monkeypatch.setattr(Encoded, "result", fetched)
    monkeypatch.setattr(Encoding, "_defers", True)
    for name in ("train", "train_cmall", "val"):
        shutil.rmtree(prepared / name)
    prepare_encode(prepared, launch=launch, **options)
    for name, records in wanted.items():
        assert [record.to_bytes() for record in RecordSet(prepared / name)] == records
    assert [event for event, _ in events[:4]] == ["sent"] * 4  # the batches of the first shard
    senders = {thread for event, thread in events if event == "sent"}
    assert senders == {threading.get_ident()} and senders.isdisjoint(t for event, t in events if event == "fetched")
