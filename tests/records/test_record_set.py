"""The stored format: what is written is read back, damage is named, reading for training is fast."""

import gc
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from t2ikit.files import write_whole
from t2ikit.pretrained import EncoderReference
from t2ikit.records.chunks import Chunk, ChunkBuffer
from t2ikit.records.compressed import Compressed
from t2ikit.records.manifest import Manifest, Part, StoredArray, TextSource
from t2ikit.records.record import Record, Stored, text_arrays
from t2ikit.records.record_set import RecordSet, damaged_files
from t2ikit.records.states import States, Tokens, quantise_tokens
from t2ikit.records.view import HEADER, RecordView
from t2ikit.records.writing import extend_set, write_set

ENCODER = EncoderReference("tiny-t5", None, "ab" * 32)
PIXELS = Manifest("pixels", (3, 8, 8), texts={"t5": TextSource(16, ENCODER)}, captions="aio", versions={"t2ikit": "0"})


def damage_in(folder: Path) -> list[str]:
    return list(damaged_files(folder, Manifest.read(folder).chunk_sha256.items()))


def make_record(index: int, captions: int = 1, width: int = 16, latents: bool = False, form: str = "int8") -> Record:
    random = np.random.default_rng(index)
    image = (
        random.random((2, 4, 4, 4)).astype(np.float16)
        if latents
        else random.integers(0, 256, (3, 8, 8)).astype(np.uint8)
    )
    states = [
        States(quantise_tokens(random.standard_normal((1 + (index + i) % 7, width)), form)) for i in range(captions)
    ]
    texts = tuple(f"caption {i} of {index}: Čapek’s crane" for i in range(captions))
    metadata = {"key": f"n01/{index}.JPEG", "class_id": index % 5, "class_name": "crane"}
    return Record({"image": image, **text_arrays("t5", states)}, texts, metadata)


def tokens_of(record: Record, caption: int = 0) -> Tokens:
    return record.texts["t5"][caption].tokens


def write_pixels(folder: Path, count: int = 40, **options: object) -> Manifest:
    records = (make_record(index) for index in range(count))
    return write_set(
        folder, records, PIXELS, {"t5": States(tokens_of(make_record(0)))}, **{"chunk_bytes": 2000, **options}
    )


def parts_of(array: Stored) -> list[np.ndarray]:
    if isinstance(array, Tokens):
        return [array.values] if array.scales is None else [array.values, array.scales]
    return [array.decode() if isinstance(array, Compressed) else array]


def assert_equal(first: Record, second: Record) -> None:
    assert first.captions == second.captions and first.metadata == second.metadata
    assert list(first.arrays) == list(second.arrays)
    for name, array in first.arrays.items():
        for mine, theirs in zip(parts_of(array), parts_of(second.arrays[name]), strict=True):
            assert np.array_equal(mine, theirs) and mine.dtype == theirs.dtype, name


@pytest.mark.parametrize("captions", [0, 1, 3])
@pytest.mark.parametrize("width", [16, 64, 100, 256])
@pytest.mark.parametrize("latents", [False, True])
@pytest.mark.parametrize("form", ["int8", "float16"])
def test_a_record_is_read_back(captions: int, width: int, latents: bool, form: str) -> None:
    record = make_record(3, captions, width, latents, form)
    content = record.to_bytes()
    assert_equal(record, Record.from_bytes(content))
    assert_equal(record, Record.from_bytes(memoryview(b"xyz" + content)[3:]))
    view = RecordView(content)
    assert view.captions_count == captions and np.array_equal(view.array("image"), record.image)
    for caption in range(captions):
        values, scales = view.tokens("t5", caption)
        assert view.length("t5", caption) == len(values)
        assert np.array_equal(Tokens(values, scales).dequantise(), tokens_of(record, caption).dequantise())


def test_a_record_read_back_may_be_written_to() -> None:
    record = Record.from_bytes(make_record(0).to_bytes())
    record.image[:] = 0
    tokens_of(record).values[:] = 0


def test_damaged_bytes_are_refused() -> None:
    content = make_record(0).to_bytes()
    with pytest.raises(ValueError, match="damaged"):
        Record.from_bytes(content[:10])
    with pytest.raises(ValueError, match="damaged"):
        Record.from_bytes(content[:-1])
    with pytest.raises(ValueError, match="no t2ikit record"):
        Record.from_bytes(b"JPEG" + content[4:])
    with pytest.raises(ValueError, match="version 9"):
        Record.from_bytes(content[:4] + b"\x09\x00" + content[6:])


@pytest.mark.parametrize("form", ["int8", "float16"])
def test_a_damaged_header_is_refused_before_anything_is_read_by_it(form: str) -> None:
    """Every byte of header, layout and numbers."""
    record = make_record(0, 2, 100, form=form)
    content, layout = record.to_bytes(), record.layout
    for place in range(HEADER.size + len(layout.block) + layout.numbers.size):
        for flip in (0x01, 0x80):
            damaged = bytearray(content)
            damaged[place] ^= flip
            with pytest.raises(ValueError, match="damaged|version"):
                RecordView(bytes(damaged))


def test_bad_records_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        Record({"image": np.zeros((3, 4, 4), np.float32)})
    with pytest.raises(ValueError, match="2 captions"):
        Record(make_record(0).arrays, ("a", "b"))
    with pytest.raises(ValueError, match="not finite"):
        quantise_tokens(np.full((2, 4), np.nan))
    with pytest.raises(ValueError, match="L >= 1"):
        quantise_tokens(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="int4"):
        quantise_tokens(np.zeros((1, 4)), "int4")


def test_quantisation_matches_its_definition() -> None:
    states = torch.randn(5, 130, generator=torch.Generator().manual_seed(0)) * 3
    tokens = quantise_tokens(states)
    assert tokens.values.shape == (5, 130) and tokens.scales is not None and tokens.scales.shape == (5, 3)
    step = np.repeat(tokens.scales.astype(np.float32), 64, axis=1)[:, :130]
    assert np.all(np.abs(tokens.dequantise() - states.numpy()) <= 0.51 * step)  # half a step
    assert np.all(np.abs(tokens.values.astype(int)).max() == 127)
    zeros = quantise_tokens(np.zeros((2, 8)))
    assert np.array_equal(zeros.dequantise(), np.zeros((2, 8)))
    half = quantise_tokens(states, "float16")
    assert np.array_equal(half.dequantise(), states.half().float().numpy())


def test_quantisation_of_real_states() -> None:
    """Relative error a token on flan-T5-XL states: median at most 0.7 %, at most 2 %."""
    root = os.environ.get("T2IKIT_TEST_DATA")
    if root is None:
        pytest.skip("T2IKIT_TEST_DATA is not set")
    from safetensors.torch import load_file

    errors = []
    for states in load_file(Path(root) / "flan-t5-xl-sample" / "embeddings.safetensors").values():
        exact = states.reshape(-1, states.shape[-1]).float().numpy()
        difference = quantise_tokens(exact).dequantise() - exact
        errors.append(np.linalg.norm(difference, axis=1) / np.linalg.norm(exact, axis=1))
    relative = np.concatenate(errors)
    assert np.median(relative) <= 0.007 and relative.max() <= 0.02
    assert len(relative) > 1000


def test_a_set_keeps_order_and_content(tmp_path: Path) -> None:
    manifest = write_pixels(tmp_path / "train")
    stored = RecordSet(tmp_path / "train")
    assert len(stored) == 40 and sum(stored.chunk_sizes) == 40 and len(stored.chunk_sizes) > 3
    assert stored.manifest == manifest and manifest.max_tokens == 7 and manifest.count == 40
    for index, record in enumerate(stored):
        assert_equal(record, make_record(index))
    assert np.array_equal(stored.empty_prompt["t5"].tokens.dequantise(), tokens_of(make_record(0)).dequantise())
    assert damage_in(tmp_path / "train") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train"]
    with pytest.raises(IndexError):
        stored[40]


def test_litdata_reads_the_same_records(tmp_path: Path) -> None:
    write_pixels(tmp_path / "train", 12)
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(tmp_path / "train"))
    assert len(dataset) == 12
    for index in (7, 0, 11):
        assert_equal(Record.from_bytes(bytes(dataset[index])), make_record(index))


def test_a_set_opens_again_after_pickling(tmp_path: Path) -> None:
    write_pixels(tmp_path / "train", 12)
    stored = RecordSet(tmp_path / "train")
    stored[3]
    again = pickle.loads(pickle.dumps(stored))
    assert_equal(again[5], make_record(5))


def test_an_interrupted_write_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    write_pixels(tmp_path / "train", 6)

    def broken() -> Iterator[Record]:
        yield make_record(0)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_set(tmp_path / "train", broken(), PIXELS, overwrite=True)
    assert len(RecordSet(tmp_path / "train")) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    for left in (".set.99999999-ab12.partial", ".set.m0badca-99999999s7-ab12.old"):
        write_pixels(tmp_path / left)
    (tmp_path / ".set.m0badca-99999999s7-ab12.old").rename(tmp_path / ".set.99999999s7-ab12.old")
    with pytest.raises(FileExistsError, match="not empty"):  # the replaced one is back
        write_pixels(tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_many_sets_share_the_files_that_a_process_may_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    write_pixels(tmp_path / "0", chunk_bytes=200)
    sets = [RecordSet(tmp_path / "0") for _ in range(12)]
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    limit = 60 + 3 * before
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        for several in (sets[:2], sets):  # the first two have mapped everything when the others come
            for index in range(40):
                for records in several:
                    assert records[index].metadata["key"] == f"n01/{index}.JPEG"
        opened = len(os.listdir("/proc/self/fd")) - before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(sets[0].chunk_sizes) == 40 and 12 <= opened <= limit // 2 < 12 * 40


def test_a_target_that_is_not_empty_needs_overwrite(tmp_path: Path) -> None:
    write_pixels(tmp_path / "train", 6)
    with pytest.raises(FileExistsError, match="not empty"):
        write_pixels(tmp_path / "train", 7)
    write_pixels(tmp_path / "train", 7, overwrite=True)
    assert len(RecordSet(tmp_path / "train")) == 7
    (tmp_path / "val").mkdir()
    write_pixels(tmp_path / "val", 3)


def test_records_must_fit_the_manifest(tmp_path: Path) -> None:
    for manifest, field in [
        (replace(PIXELS, image_shape=(3, 16, 16)), "image is uint8"),
        (replace(PIXELS, texts={"t5": TextSource(32)}), "text.t5.0 is quantised"),
        (replace(PIXELS, token_format="float16"), "text.t5.0 is quantised .* says float16"),
        (replace(PIXELS, kind="latents", image_shape=(2, 4, 4, 4)), "image is uint8 .* says float16"),
        (replace(PIXELS, texts={}), "knows no array text.t5.0"),
        (replace(PIXELS, further={"picture": StoredArray("png", (3, 8, 8))}), "no array picture"),
    ]:
        with pytest.raises(ValueError, match=field):
            write_set(tmp_path / "train", [make_record(0)], manifest)
    with pytest.raises(ValueError, match="no record"):
        write_set(tmp_path / "train", [], PIXELS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("a damaged record", "its chunk is named, with the repair")
def test_a_damaged_record_names_its_chunk_and_the_repair_once(tmp_path: Path) -> None:
    write_pixels(tmp_path / "train", 7)
    path = tmp_path / "train" / "chunk-0-0.bin"
    content = path.read_bytes()
    start = content.index(b"T2IR")
    for damaged in (content[: start + 12] + b"\xff" + content[start + 13 :], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError) as caught:
            RecordSet(tmp_path / "train").view(0)
        message = str(caught.value)
        assert str(path) in message and message.count(f"t2ikit prepare check {tmp_path / 'train'}") == 1


def test_a_missing_set_names_the_option_and_the_commands(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        RecordSet(tmp_path / "nowhere")
    for part in ("--data.root", "nowhere", *(f"t2ikit prepare {step}" for step in ("images", "captions", "encode"))):
        assert part in str(caught.value)


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    write_pixels(folder)
    chunk = folder / "chunk-0-1.bin"
    content = chunk.read_bytes()
    chunk.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    assert damage_in(folder) == [f"{chunk} differs from its manifest (SHA-256)"]
    first = RecordSet(folder).chunk_sizes[0]
    chunk.write_bytes(content[:-7])
    with pytest.raises(ValueError, match=r"chunk-0-1.bin.*\n.*prepare check"):
        RecordSet(folder)[first]
    chunk.write_bytes(b"")
    with pytest.raises(ValueError, match="cut short"):
        RecordSet(folder)[first]
    chunk.unlink()
    with pytest.raises(FileNotFoundError, match="chunk-0-1.bin is missing"):
        RecordSet(folder)[first]
    assert RecordSet(folder)[0].metadata["key"] == "n01/0.JPEG"
    assert damage_in(folder) == [f"{chunk} is missing"]
    (folder / "index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json cannot be read"):
        RecordSet(folder)


def test_manifests_of_other_versions_are_refused(tmp_path: Path) -> None:
    assert Manifest.from_json(PIXELS.to_json()) == PIXELS
    write_pixels(tmp_path, 2)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    for change, message in [
        ({"version": 7}, "version 7"),
        ({"colour": 1}, "unknown fields: colour"),
        ({"kind": "voxels"}, "voxels"),
    ]:
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=message):
            RecordSet(tmp_path)
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "kind"}))
    with pytest.raises(ValueError, match="lacks fields"):
        RecordSet(tmp_path)
    path.write_text("not json")
    with pytest.raises(ValueError, match="no JSON"):
        RecordSet(tmp_path)


def test_mismatch_names_the_field() -> None:
    assert PIXELS.mismatch(replace(PIXELS, setting="cm4", captions="long", count=3)) is None
    moved = replace(PIXELS, texts={"t5": TextSource(16, replace(ENCODER, name="/elsewhere/tiny-t5"))})
    assert PIXELS.mismatch(moved) is None
    for change, field in [
        ({"image_shape": (3, 16, 16)}, "image_shape"),
        ({"texts": {"t5": TextSource(32, ENCODER)}}, "text_dim"),
        ({"texts": {"t5": TextSource(16, EncoderReference("tiny-t5", None, "cd" * 32))}}, "text_encoders"),
    ]:
        assert field in str(PIXELS.mismatch(replace(PIXELS, **change)))


def test_writing_keeps_memory_constant(tmp_path: Path) -> None:
    """Peak memory of 4,000 records is that of 400, but for a few chunks."""
    program = """
import resource, sys
import numpy as np
from t2ikit.records import Manifest, Record, write_set
for count in (400, 4000):
    records = (Record({"image": np.full((3, 64, 64), i % 251, np.uint8)}, (), {"key": str(i)}) for i in range(count))
    write_set(f"{sys.argv[1]}/{count}", records, Manifest("pixels", (3, 64, 64)), chunk_bytes=2**20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    peaks = [int(line) for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]
    assert peaks[1] - peaks[0] < 20_000  # kilobytes; the records have 49,000


def test_reading_needs_neither_lightning_nor_litdata() -> None:
    program = "import sys, t2ikit.records.record_set; print('lightning' in sys.modules, 'litdata' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def shards(folder: Path, first: int, count: int, size: int = 7) -> Iterator[tuple[Path, Chunk]]:
    """Chunks of records ``first ...`` that lie elsewhere."""
    folder.mkdir()
    for start in range(first, first + count, size):
        items = [make_record(index).to_bytes() for index in range(start, min(start + size, first + count))]
        path = folder / f"shard-{start}.bin"
        digest = write_whole(path, ChunkBuffer(items).content())
        yield path, Chunk(path.name, len(items), path.stat().st_size, digest)


def test_a_set_is_extended_without_a_copy(tmp_path: Path) -> None:
    target = tmp_path / "train"
    first = replace(PIXELS, max_tokens=5, source_sha256="one")
    made = extend_set(
        target, shards(tmp_path / "a", 0, 20), first, {"t5": States(tokens_of(make_record(0)))}, {"list.tsv": [b"a\n"]}
    )
    assert made == Manifest.read(target) and made.parts == (Part(20, 3, "one"),) and made.source_sha256 == "one"
    nodes = {path.name: path.stat().st_ino for path in target.glob("*.bin")}
    second = replace(PIXELS, max_tokens=7, source_sha256="two")
    made = extend_set(target, shards(tmp_path / "b", 20, 9), second, None, {"list.tsv": [b"a\n", b"b\n"]})
    assert made.parts == (Part(20, 3, "one"), Part(9, 2, "two")) and made.count == 29 and made.max_tokens == 7
    assert made.source_sha256 not in ("one", "two")
    assert {name: (target / name).stat().st_ino for name in nodes} == nodes
    assert (target / "list.tsv").read_text() == "a\nb\n" and damage_in(target) == []
    records = RecordSet(target)
    assert len(records.empty_prompt["t5"].tokens) == len(tokens_of(make_record(0)))
    for index, record in enumerate(records):
        assert_equal(record, make_record(index))
    shutil.rmtree(tmp_path / "a")  # the set does not need what it was made of
    assert damage_in(target) == [] and sorted(path.name for path in tmp_path.iterdir()) == ["b", "train"]
    from litdata import StreamingDataset

    assert_equal(Record.from_bytes(bytes(StreamingDataset(str(target))[23])), make_record(23))
    made = extend_set(target, shards(tmp_path / "c", 40, 3), first, None, overwrite=True)
    assert made.count == 3 and made.parts == (Part(3, 1, "one"),) and not (target / "list.tsv").exists()


def test_images_of_version_1_are_read_and_its_encoded_sets_refused(tmp_path: Path) -> None:
    target = tmp_path / "images" / "train"
    records = [Record({"image": make_record(index).image}, (), {"key": str(index)}) for index in range(5)]
    write_set(target, records, Manifest("pixels", (3, 8, 8)))
    before = tiny.to_version_1(target)
    stored = RecordSet(target)
    assert stored.manifest.parts == (Part(5, 1, ""),) and stored.manifest.texts == {}
    for mine, theirs in zip(stored, records, strict=True):
        assert_equal(mine, theirs)
    content = tiny.record_of_version_1(records[0])
    for damaged in (
        content[:30],
        content[:-1],
        content[:6] + b"\x01" + content[7:],
        content[:16] + b"\xff" + content[17:],
    ):
        with pytest.raises(ValueError, match="damaged|version 1"):
            RecordView(damaged)
    encoded = {**before, "text_dim": 8, "text_encoder": {"name": "t5", "revision": None, "sha256": "ab"}}
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "manifest.json").write_text(json.dumps(encoded))
    with pytest.raises(ValueError, match=f"t2ikit prepare encode --out {tmp_path} --overwrite"):
        RecordSet(tmp_path / "train")
    assert Manifest.from_json(json.dumps(encoded)).texts == {"t5": TextSource(8, EncoderReference("t5", None, "ab"))}
