"""Records of several arrays: one or two text encoders, pooled vectors, features, compressed pictures."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from t2ikit.batch import StoredText
from t2ikit.data.datamodule import DataModule
from t2ikit.data.gate import Gate
from t2ikit.data.loaders import EvaluationStream
from t2ikit.data.streams import TrainingStream
from t2ikit.photos import compress
from t2ikit.pretrained import EncoderReference
from t2ikit.records import compressed
from t2ikit.records.compressed import Compressed, stored_picture
from t2ikit.records.layout import Layout
from t2ikit.records.manifest import Manifest, StoredArray, TextSource
from t2ikit.records.record import Record, text_arrays
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.view import RecordView
from t2ikit.records.writing import write_set

T5, CLIP, DINO = (EncoderReference(name, None, name * 32) for name in ("t5", "clip", "dino"))
FURTHER = {
    "picture": StoredArray("png", (3, 16, 16)),
    "features.dino": StoredArray("float32", (4, 8), DINO),
    "boxes": StoredArray("int64", (None, 4)),
}
MANIFEST = Manifest(
    "latents",
    (2, 4, 2, 2),
    texts={"t5": TextSource(100, T5), "clip": TextSource(24, CLIP, pooled=6)},
    further=FURTHER,
)


def states(random: np.random.Generator, length: int, width: int, pooled: int = 0) -> States:
    vector = random.standard_normal(pooled).astype(np.float16) if pooled else None
    return States(quantise_tokens(random.standard_normal((length, width))), vector)


def make_record(index: int, captions: int = 2) -> Record:
    random = np.random.default_rng(index)
    pixels = random.integers(0, 256, (3, 16, 16)).astype(np.uint8)
    return Record(
        {
            "image": random.random((2, 4, 2, 2)).astype(np.float16),
            "picture": stored_picture(pixels, "png"),
            **text_arrays("t5", [states(random, 1 + (index + c) % 5, 100) for c in range(captions)]),
            **text_arrays("clip", [states(random, 2 + (index + c) % 3, 24, 6) for c in range(captions)]),
            "features.dino": random.standard_normal((4, 8)).astype(np.float32),
            "boxes": random.integers(0, 9, (1 + index % 3, 4)),
        },
        tuple(f"caption {c} of {index}" for c in range(captions)),
        {"key": str(index)},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(99)
    empty = {"t5": states(random, 1, 100), "clip": states(random, 2, 24, 6)}
    for name in ("train", "val"):
        write_set(tmp_path / name, (make_record(index) for index in range(12)), MANIFEST, empty, chunk_bytes=8000)
    return tmp_path


class Touched:
    """Counts the bytes of records that are looked at: numpy's views of them, and compressed pictures."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        view, decode = np.frombuffer, compressed.decompress

        def frombuffer(buffer: Any, *arguments: Any) -> np.ndarray:
            array = view(buffer, *arguments)
            self.bytes += array.nbytes
            return array

        def decompress(content: Any) -> np.ndarray:
            self.bytes += len(content)
            return decode(content)

        patch.setattr(np, "frombuffer", frombuffer)
        patch.setattr(compressed, "decompress", decompress)


@pytest.mark.parametrize("arrays", [("image",), ("image", "features.dino"), ("image", "picture")])
def test_only_what_is_used_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, arrays: tuple[str, ...]) -> None:
    stream = TrainingStream(RecordSet(folder / "train"), global_batch=12, length_bucket=4, arrays=arrays)
    stream[0]  # maps the chunks
    touched = Touched(monkeypatch)
    batch = stream[1]
    monkeypatch.undo()
    wanted = 0
    records = [make_record(index) for index in batch.index.tolist()]
    *_, uniforms = stream.plan(1)
    chosen = [int(2 * uniform) for uniform in uniforms]
    for record, caption in zip(records, chosen, strict=True):
        image, picture = record.arrays["image"], record.arrays["picture"]
        assert isinstance(image, np.ndarray) and isinstance(picture, Compressed)
        wanted += image.nbytes
        for row in record.texts.values():
            tokens, pooled = row[caption].tokens, row[caption].pooled
            assert tokens.scales is not None
            wanted += tokens.values.nbytes + tokens.scales.nbytes + (0 if pooled is None else pooled.nbytes)
        wanted += {"features.dino": 4 * 8 * 4, "picture": len(picture.content), "image": 0}[arrays[-1]]
    decoded = {"picture": 12 * 3 * 16 * 16}.get(arrays[-1], 0)  # Pillow's planes become an array
    assert touched.bytes == wanted + decoded
    assert set(batch.arrays) == set(arrays[1:])
    for name in arrays:
        for row, record in enumerate(records):
            expected = record.image if name == "image" else record.arrays[name]
            if isinstance(expected, Compressed):
                expected = expected.decode()
            assert np.array_equal(batch.array(name)[row].numpy(), expected)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        batch.array("boxes")
    text = batch.text()
    assert isinstance(text, tuple) and list(batch.texts) == ["t5", "clip"]
    assert text[0].pooled is None and text[1].pooled is not None and text[1].pooled.shape == (12, 6)
    for encoder, part in zip(("t5", "clip"), text, strict=True):
        for row, (record, caption) in enumerate(zip(records, chosen, strict=True)):
            stored = record.texts[encoder][caption]
            assert np.array_equal(part.embeddings[row][part.mask[row]].numpy(), stored.tokens.dequantise())
            if stored.pooled is not None and part.pooled is not None:
                assert np.array_equal(part.pooled[row].numpy(), stored.pooled.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (StoredArray("float32", (4, 8), T5), "float32 [4, 8] by t5 (t5t5t5t5)"),
        (StoredArray("uint8", (4, 8), DINO), "uint8 [4, 8] by dino"),
        (StoredArray("float32", (5, 8), DINO), "float32 [5, 8] by dino"),
    ],
)
def test_features_of_a_gated_set_are_those_of_the_training_set(folder: Path, array: StoredArray, shown: str) -> None:
    manifest = replace(MANIFEST, further={**FURTHER, "features.dino": array})
    features = np.ones(tuple(size or 0 for size in array.shape), array.storage)
    records = [replace(record, arrays={**record.arrays, "features.dino": features}) for record in map(make_record, [0])]
    write_set(folder / "mixed", records, manifest)
    gates = [Gate("mixed", folder / "mixed", 0.0, 0.5)]
    TrainingStream(RecordSet(folder / "train"), gates, global_batch=12)  # which does not read them
    for arrays in (("image", "features.dino"), ("image", "picture", "features.dino")):
        with pytest.raises(
            ValueError, match=rf"array features.dino of .*mixed is {re.escape(shown)}.*by the same network"
        ):
            TrainingStream(RecordSet(folder / "train"), gates, global_batch=12, arrays=arrays)


def test_a_batch_moves_with_everything_in_it(folder: Path) -> None:
    batch = TrainingStream(RecordSet(folder / "train"), global_batch=12, arrays=("image", "picture"))[0]
    moved = batch.to("meta")
    assert moved.texts["clip"].pooled is not None
    tensors = [moved.image, moved.arrays["picture"], moved.texts["t5"].tokens, moved.texts["clip"].pooled]
    assert all(tensor.device.type == "meta" for tensor in tensors)


def test_arrays_are_refused_by_name(folder: Path) -> None:
    records = RecordSet(folder / "train")
    with pytest.raises(ValueError, match="no array features.clip, only image, picture, features.dino, boxes"):
        TrainingStream(records, global_batch=12, arrays=("image", "features.clip"))
    with pytest.raises(ValueError, match="boxes of .* differs in shape"):
        EvaluationStream(records, 4, arrays=("image", "boxes"))
    data = DataModule(str(folder), 4, num_workers=0)
    data.setup("fit")
    data.read_arrays(["image", "features.dino"])
    batch = next(iter(data.train_dataloader()))
    assert batch.array("features.dino").shape == (4, 4, 8)
    assert next(iter(data.val_dataloader())).array("features.dino").dtype == torch.float32
    data.read_arrays(["features.dino"])  # the setup of a second stage
    with pytest.raises(ValueError, match="picture come too late"):
        data.read_arrays(["picture"])


def test_the_empty_prompt_of_several_encoders(folder: Path) -> None:
    text = DataModule(str(folder)).unconditional()
    assert isinstance(text, tuple)
    stored = RecordSet(folder / "train").empty_prompt
    for part, one in zip(text, stored.values(), strict=True):
        assert np.array_equal(part.embeddings[0].numpy(), one.tokens.dequantise())
    assert text[0].pooled is None and text[1].pooled is not None and text[1].pooled.shape == (1, 6)


def test_a_manifest_describes_every_array(folder: Path) -> None:
    manifest = Manifest.read(folder / "train")
    assert manifest.further == FURTHER and manifest.texts == MANIFEST.texts and manifest.max_tokens == 5
    assert list(manifest.arrays) == ["image", "picture", "features.dino", "boxes"]
    assert manifest.text_arrays["pooled.clip"] == StoredArray("float16", (6,), CLIP)
    assert manifest.text_arrays["text.t5"] == StoredArray("quantised", (None, 100), T5)
    assert manifest.text_dim == (100, 24) and manifest.text_encoders == (T5, CLIP)
    turned = Manifest("latents", (2, 4, 2, 2), texts=dict(reversed(MANIFEST.texts.items())))
    assert "text_dim is [24, 100] there" in str(manifest.mismatch(turned))
    with pytest.raises(ValueError, match='uint8, int8, .* not "jpeg"'):
        StoredArray("jpeg", (3, 4, 4))


@pytest.mark.parametrize("codec", ["png", "webp"])
def test_a_compressed_image_is_without_loss(tmp_path: Path, codec: str) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 20, 12)).astype(np.uint8)
    record = Record({"image": stored_picture(pixels, codec)}, (), {"key": "a"})
    write_set(tmp_path / "set", [record], Manifest("pixels", (3, 20, 12), image_codec=codec))
    stored = RecordSet(tmp_path / "set")
    view = stored.view(0)
    assert np.array_equal(view.array("image"), pixels) and np.array_equal(stored[0].image, pixels)
    assert view.shape("image") == (3, 20, 12) and view.layout.columns["image"].storage == codec
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8), (3, 64, 64))
    assert len(compress(smooth, codec)) < smooth.size / 10
    for damaged in (Compressed(codec, b"abc", (3, 20, 12)), Compressed(codec, compress(pixels, codec), (3, 12, 20))):
        with pytest.raises(ValueError, match="set is damaged"):
            damaged.decode()


def test_a_layout_is_parsed_once_and_refused_when_it_makes_no_sense() -> None:
    first, second = (RecordView(make_record(index).to_bytes()) for index in (1, 2))
    assert first.layout is second.layout
    for entries in (
        [("image", "jpeg", 3)],
        [("image", "uint8", 3), ("image", "uint8", 3)],
        [("text.t5.1", "quantised", 2)],
        [("text.t5.0", "float32", 2)],
        [("text.t5.0", "quantised", 2), ("text.clip.0", "quantised", 2), ("text.clip.1", "quantised", 2)],
    ):
        with pytest.raises(ValueError):
            Layout(entries)


@pytest.mark.parametrize("width", [1, 16, 63, 64, 65, 100, 128, 200, 2048])
def test_dequantising_in_groups_is_bit_equal_to_one_scale_a_channel(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    tokens = torch.randint(-127, 128, (7, width), generator=generator, dtype=torch.int8)
    scales = torch.rand(7, -(-width // 64), generator=generator).half()
    expanded = scales.float().repeat_interleave(64, dim=1)[:, :width]
    text = StoredText(tokens, scales, torch.arange(7), rows=1, max_length=8).text()
    assert torch.equal(text.embeddings[0, :7], tokens.float() * expanded)
    assert text.mask.tolist() == [[True] * 7 + [False]] and not text.embeddings[0, 7].any()
