"""Streaming: samples a second against plain reads and against tars of fp32 arrays; bytes, quantisation, preparation.

The reference loader stands for the one that was released with the paper: tars whose samples hold a JPEG and fp32 arrays
of states, mean and deviation, read in pairs (raw and CutMix), of which each training sample uses one. It is written
here from that description.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.base import Benchmark, Measurement, Settings, cpu_seconds, reached
from benchmarks.preparation import measure_images
from t2ikit.data.gate import Gate
from t2ikit.data.streams import TrainingStream
from t2ikit.pretrained import EncoderReference, sha256_of
from t2ikit.records.checked import open_set
from t2ikit.records.chunks import open_chunk
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import States, Tokens, quantise_tokens
from t2ikit.records.writing import write_set

TOKENS, WIDTH = 180, 2048
IMAGES = 1_281_167
BATCH = 64
_JPEG_QUALITY = 92  # noise of 256 x 256 then has about the 110 kB of a photo in the released data


def synthetic_record(index: int, seed: int = 0, side: int = 32) -> Record:
    """A sample as ImageNet has it at 256 pixels: posterior [2, 4, side, side], one caption of 180 tokens."""
    random = np.random.default_rng([seed, index])
    tokens = Tokens(
        random.integers(-127, 128, (TOKENS, WIDTH)).astype(np.int8),
        random.random((TOKENS, WIDTH // 64)).astype(np.float16),
    )
    image = random.standard_normal((2, 4, side, side)).astype(np.float16)
    caption = "word " * 137  # words of a long caption, 4 characters of text a token
    key = f"train/n01440764/n01440764_{index}.JPEG"
    return Record({"image": image, "text.t5.0": tokens}, (caption,), {"key": key, "class_id": 0, "class_name": "tench"})


def write_root(root: Path, count: int) -> None:
    """Sets ``train`` and ``train_cmall`` of ``count`` records each (64 different ones, in turns)."""
    manifest = Manifest(
        "latents", (2, 4, 32, 32), texts={"t5": TextSource(WIDTH, EncoderReference("none", None, "00" * 32))}
    )
    empty = {"t5": States(quantise_tokens(np.ones((1, WIDTH), np.float32)))}
    for seed, split in enumerate(("train", "train_cmall")):
        records = [synthetic_record(index, seed) for index in range(64)]
        write_set(root / split, (records[index % 64] for index in range(count)), manifest, empty)


def make_stream(root: Path) -> TrainingStream:
    """Raw and CutMix behind the gate of the paper, chunk after chunk, each compared with its SHA-256 before."""
    gates = [Gate("cmall", root / "train_cmall", 0.4, 0.5)]
    options = {"global_batch": BATCH, "shuffle_window": 1}
    opened = {"open_set": lambda folder, bucket: open_set(folder)}
    return TrainingStream(open_set(root / "train"), gates, **options, **opened)  # type: ignore[arg-type]


class PlainReads:
    """``pread`` of the bytes of the same records in the same order, and nothing else."""

    def __init__(self, stream: TrainingStream) -> None:
        self.stream = stream
        self.files = [_RecordFiles(records) for records in (source.records for source in stream.sources[0])]

    def batch(self, index: int) -> int:
        """Reads a batch; its bytes."""
        _, source, _, index_in_set, _ = self.stream.plan(index)
        pairs = zip(source.tolist(), index_in_set.tolist(), strict=True)
        return sum(self.files[records].read(record) for records, record in pairs)


class _RecordFiles:
    def __init__(self, records: RecordSet) -> None:
        self.ends = list(accumulate(records.chunk_sizes))
        self.offsets, self.files = [], []
        for name, count in zip(records.chunk_names, records.chunk_sizes, strict=True):
            self.offsets.append(open_chunk(records.folder / name, count)[1])
            self.files.append(os.open(records.folder / name, os.O_RDONLY))

    def read(self, index: int) -> int:
        chunk = bisect_right(self.ends, index)
        within = index - (self.ends[chunk - 1] if chunk else 0)
        start, end = self.offsets[chunk][within : within + 2]
        return len(os.pread(self.files[chunk], end - start, start))


def write_tar(path: Path, count: int, seed: int) -> None:
    """Samples of a JPEG and fp32 arrays: states [180, 2048], mean and deviation [4, 32, 32]."""
    random = np.random.default_rng(seed)
    pixels = Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8))
    picture = io.BytesIO()
    pixels.save(picture, "JPEG", quality=_JPEG_QUALITY)
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            states = random.standard_normal((TOKENS, WIDTH)).astype(np.float32)
            latent = random.standard_normal((4, 32, 32)).astype(np.float32)
            files = {"jpg": picture.getvalue(), "states.npy": _npy(states), "mean.npy": _npy(latent)}
            for suffix, content in {**files, "std.npy": files["mean.npy"]}.items():
                member = tarfile.TarInfo(f"{index:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_tar(path: Path, pictures: bool) -> Iterator[dict[str, Any]]:
    """The samples of a tar, one after the other, decoded."""
    sample: dict[str, Any] = {}
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            name, _, suffix = member.name.partition(".")
            if sample and sample["name"] != name:
                yield sample
                sample = {}
            sample["name"] = name
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            if suffix.endswith("npy"):
                sample[suffix] = torch.from_numpy(np.load(io.BytesIO(content)))
            elif pictures:
                sample[suffix] = torch.from_numpy(np.array(Image.open(io.BytesIO(content)).convert("RGB")))
    yield sample


def train_from_tars(raw: Path, mixed: Path, pictures: bool = True) -> int:
    """Batches of training samples: pairs are read, one of both is used, states are padded; how many there were."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for pair in zip(read_tar(raw, pictures), read_tar(mixed, pictures), strict=True):
        rows.append(pair[int(random.random() < 0.3)])
    for name in ("mean.npy", "std.npy"):
        torch.stack([row[name] for row in rows])
    torch.nn.utils.rnn.pad_sequence([row["states.npy"] for row in rows], batch_first=True)
    return len(rows)


def relative_errors(states: dict[str, torch.Tensor]) -> np.ndarray:
    """Of every token, the relative error of int8 with a scale for every 64 channels."""
    errors = []
    for value in states.values():
        exact = value.reshape(-1, value.shape[-1]).float().numpy()
        difference = quantise_tokens(exact).dequantise() - exact
        errors.append(np.linalg.norm(difference, axis=1) / np.linalg.norm(exact, axis=1))
    return np.concatenate(errors)


def _measure_stream(settings: Settings) -> list[Measurement]:
    count, batches, pairs = (4000, 240, 64) if settings.full else (640, 60, 32)
    folder = Path(tempfile.mkdtemp(prefix="t2ikit-benchmark-"))
    try:
        write_root(folder, count)
        for seed, name in enumerate(("raw.tar", "mixed.tar")):
            write_tar(folder / name, pairs, seed)
        stream = make_stream(folder)
        plain = PlainReads(stream)

        def over(function: Callable[[int], object]) -> Callable[[], None]:
            def run() -> None:
                for index in range(batches):
                    function(index)  # let go before the next one, as training does

            return run

        seconds = cpu_seconds(
            {
                "stream": over(stream.__getitem__),
                "pread": over(plain.batch),
                "tars": lambda: train_from_tars(folder / "raw.tar", folder / "mixed.tar"),
                "tars without images": lambda: train_from_tars(folder / "raw.tar", folder / "mixed.tar", False),
                "hash": lambda: sha256_of(folder / "train" / "chunk-0-0.bin"),
            },
            repeats=5,
        )
        chunk = (folder / "train" / "chunk-0-0.bin").stat().st_size
        pair = sum((folder / name).stat().st_size for name in ("raw.tar", "mixed.tar")) / pairs
        read = plain.batch(0) / BATCH
    finally:
        shutil.rmtree(folder)
    slots = batches * BATCH
    rate = {name: slots / seconds[name] for name in ("stream", "pread")}
    rate |= {name: pairs / seconds[name] for name in ("tars", "tars without images")}
    label = f"training samples, raw + CutMix, {TOKENS} tokens, one core, warm"
    share = rate["stream"] / rate["pread"]
    terabytes = 2 * IMAGES * read / 1e12
    return [
        Measurement(
            label,
            rate["stream"],
            "samples/s",
            "tars of fp32 arrays, pairs",
            rate["tars"],
            "at least 6,000",
            reached(rate["stream"], 6000, "at least"),
        ),
        Measurement(label, rate["stream"], "samples/s", "the same tars without JPEG", rate["tars without images"]),
        Measurement(
            label,
            rate["stream"],
            "samples/s",
            "pread of the same bytes",
            rate["pread"],
            "at least 40 %",
            reached(share, 0.4, "at least"),
        ),
        Measurement(
            "bytes a training sample",
            read / 1e6,
            "MB",
            "tars of fp32 arrays, pairs",
            pair / 1e6,
            "at most 0.40",
            reached(read / 1e6, 0.40, "at most"),
        ),
        Measurement(
            f"raw + CutMix set of {IMAGES:,} images each",
            terabytes,
            "TB",
            "the same as tars",
            IMAGES * pair / 1e12,
            "at most 1.03",
            reached(terabytes, 1.03, "at most"),
            "bytes of a record times their number",
        ),
        Measurement(
            "SHA-256 of the whole set, once",
            seconds["hash"] / chunk * terabytes * 1e12 / 3600,
            "core hours",
            note="rate of one chunk; ahead of its use, and never again for a file that has not changed",
        ),
    ]


def _measure_quantisation(settings: Settings) -> list[Measurement]:
    data = _sample_data()
    if data is None:
        return []
    from safetensors.torch import load_file

    errors = relative_errors(load_file(data / "flan-t5-xl-sample" / "embeddings.safetensors")) * 100
    label = f"relative error of {len(errors):,} real flan-T5-XL states as int8"
    return [
        Measurement(f"{label}, {name}", value, "%", goal=f"at most {goal}", reached=reached(value, goal, "at most"))
        for name, value, goal in (("median", float(np.median(errors)), 0.7), ("largest", float(errors.max()), 2.0))
    ]


def _measure_images(settings: Settings) -> list[Measurement]:
    data = _sample_data()
    return [] if data is None else measure_images(settings, data / "imagenet-sample" / "train")


def _sample_data() -> Path | None:
    folder = os.environ.get("T2IKIT_TEST_DATA")
    return Path(folder) if folder and Path(folder).is_dir() else None


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


BENCHMARKS = (
    Benchmark("stream", "training samples a second and bytes, against pread and tars of fp32 arrays", _measure_stream),
    Benchmark("quantisation", "error of stored text states (real ones: T2IKIT_TEST_DATA)", _measure_quantisation),
    Benchmark("images", "image preparation against decoding alone (real photos: T2IKIT_TEST_DATA)", _measure_images),
)
