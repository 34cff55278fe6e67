"""Data roots behind an address: what is brought, when, how often, and what happens when it is broken."""

import errno
import hashlib
import http.server
import multiprocessing
import os
import pickle
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

import tiny
from t2ikit.batch import StoredBatch
from t2ikit.data.datamodule import DataModule
from t2ikit.data.loaders import PositionLoader
from t2ikit.encoders.small_t5 import build_small_t5
from t2ikit.encoders.text import TextEncoder, load_encoder
from t2ikit.evaluation.reference_images import real_images
from t2ikit.pretrained import EncoderReference
from t2ikit.records import remote
from t2ikit.records.fits import own_encoder_fits
from t2ikit.records.manifest import Manifest, TextSource
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.remote import RemoteChunks, RemoteFolder, is_remote, make_room, open_remote_set
from t2ikit.records.states import States, quantise_tokens
from t2ikit.records.writing import write_set

COUNTS = {"train": 60, "val": 12, "train_cm4": 40}
EMPTY = quantise_tokens(np.ones((1, 8), np.float32))


def make_record(split: str, index: int) -> Record:
    random = np.random.default_rng([len(split), index])
    tokens = quantise_tokens(random.standard_normal((1 + index % 5, 8)))
    image = random.integers(0, 256, (3, 4, 4)).astype(np.uint8)
    return Record({"image": image, "text.t5.0": tokens}, ("a",), {"key": f"{split}/{index}"})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    encoder = EncoderReference("text_encoder", None, "ab" * 32)
    manifest = Manifest("pixels", (3, 4, 4), texts={"t5": TextSource(8, encoder)})
    for split, count in COUNTS.items():
        write_set(
            folder / split, (make_record(split, index) for index in range(count)), manifest, {"t5": States(EMPTY)}, 1500
        )
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text("{}")
    return folder


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; counts what is fetched, and can spoil it."""

    def __init__(self, folder: Path) -> None:
        self.fetched: Counter[str] = Counter()
        self.spoil: dict[str, Any] = {}  # name -> what is sent instead: bytes, a status, or a list that is used up
        self.pause = 0.0
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.fetched[name] += 1
        time.sleep(self.server.pause)
        answer = self.server.spoil.get(name)
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else None
        if answer is None:
            super().do_GET()
        elif isinstance(answer, int):
            self.send_error(answer)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(root: Path) -> Iterator[Server]:
    server = Server(root)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("t2ikit.remote.PAUSE", 0.001)
    monkeypatch.setenv("T2IKIT_CACHE", str(tmp_path / "cache"))


def in_memory(root: Path) -> str:
    system = fsspec.filesystem("memory")
    system.put(str(root), "/bucket/set", recursive=True)
    return "memory://bucket/set"


def batches(data: DataModule, epochs: int = 2) -> list[StoredBatch]:
    data.setup("fit")
    data.add_stream("cm4", "train_cm4", 0.4, 0.5)
    loader = data.train_dataloader()
    return [batch for _ in range(epochs) for batch in loader]


def assert_same(first: list[StoredBatch], second: list[StoredBatch]) -> None:
    assert len(first) == len(second) > 0
    for mine, theirs in zip(first, second, strict=True):
        tiny.assert_same(mine, theirs)


def wait_until(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["memory", "file", "http"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_root_gives_the_batches_of_a_local_one(root: Path, server: Server, kind: str, workers: int) -> None:
    url = {"memory": lambda: in_memory(root), "file": lambda: f"file://{root}", "http": lambda: server.url}[kind]()
    options: dict[str, Any] = {"batch_size": 16, "num_workers": workers, "seed": 2, "shuffle_window": 20}
    data = DataModule(url + "/", **options)
    data.find_data()
    assert_same(batches(data), batches(DataModule(str(root), **options)))
    assert str(data.folder) == url and Path(data.folder).is_relative_to(os.environ["T2IKIT_CACHE"])
    assert [batch.index.tolist() for batch in data.val_dataloader()] == [list(range(12))]
    assert torch.equal(data.unconditional().embeddings[0], torch.from_numpy(EMPTY.dequantise()))
    assert real_images(data, "val", 3).shape == (3, 3, 4, 4)
    assert (Path(data.folder) / "text_encoder" / "config.json").read_text() == "{}"


def test_addresses_are_told_from_folders() -> None:
    assert all(map(is_remote, ["s3://b/x", "gs://b", "hf://datasets/a/b", "https://h/x", "memory://x"]))
    assert not any(map(is_remote, ["data/imagenet256", "/data", "~/data", "./s3:/x"]))
    folder = RemoteFolder.at("s3://bucket/imagenet256/", "/cache")
    assert str(folder / "train") == "s3://bucket/imagenet256/train"
    assert Path(folder / "train").parent == Path(folder) and Path(folder).parent == Path("/cache")
    assert Path(folder) != Path(RemoteFolder.at("s3://bucket/imagenet512", "/cache"))
    assert pickle.loads(pickle.dumps(folder)) == folder


def test_chunks_come_when_they_are_needed_and_once(root: Path, server: Server, tmp_path: Path) -> None:
    folder = RemoteFolder.at(server.url, tmp_path) / "train"
    records = open_remote_set(folder)
    assert sorted(server.fetched) == [f"train/{name}" for name in ("empty_prompt.npz", "index.json", "manifest.json")]
    records.view(0)
    chunks = {f"train/{name}" for name in records.chunk_names}
    assert {name for name in server.fetched if name in chunks} == {"train/chunk-0-0.bin"}
    assert [record.metadata["key"] for record in records] == [f"train/{index}" for index in range(60)]
    again = open_remote_set(folder)  # the next run
    assert len(list(again)) == 60 and all(server.fetched[name] == 1 for name in chunks)
    assert server.fetched["train/manifest.json"] == 2  # the set may be another one by now


def read_all(url: str, cache: Path, numbers: range, barrier: Any, failures: Any) -> None:
    try:
        records = open_remote_set(RemoteFolder.at(url, cache) / "train")
        barrier.wait()
        for number in numbers:
            assert records[number].metadata["key"] == f"train/{number}"
    except BaseException as error:
        failures.put(repr(error))


def test_processes_of_a_machine_share_the_cache(server: Server, tmp_path: Path) -> None:
    server.pause = 0.02
    context = multiprocessing.get_context("fork")
    barrier, failures = context.Barrier(3), context.Queue()
    arguments = (server.url, tmp_path, range(60), barrier, failures)
    processes = [context.Process(target=read_all, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert failures.empty()
    assert {name: count for name, count in server.fetched.items() if "chunk" in name and count > 1} == {}
    assert not list(tmp_path.rglob("*.partial"))


def test_the_next_chunks_are_ready_before_they_are_read(root: Path, server: Server) -> None:
    data = DataModule(server.url, 16, num_workers=0, shuffle_window=8)
    data.setup("fit")
    stream = data.train_dataloader().stream
    ahead = {f"train/{name}" for files, name in stream._prefetcher.tasks(0)}
    first = {f"train/{name}" for name in stream.sources[0][0].records.chunk_names if f"train/{name}" in ahead}
    assert len(first) > 3
    assert not any("chunk" in name for name in server.fetched)
    stream[0]
    wait_until(lambda: first <= set(server.fetched))
    before = server.fetched.copy()
    wait_until(lambda: all((Path(data.folder) / name).is_file() for name in first))
    places = stream.sources[0][0].order.upcoming(0, 20)
    assert {f"train/{stream.sources[0][0].records.chunk_names[chunk]}" for chunk in places} <= first
    stream[1]
    assert all(server.fetched[name] == before[name] == 1 for name in first)


def test_a_disturbed_way_is_tried_again(server: Server, tmp_path: Path) -> None:
    name = "train/chunk-0-0.bin"
    server.spoil[name] = [503, 500, b"cut short"]
    records = open_remote_set(RemoteFolder.at(server.url, tmp_path) / "train")
    assert records[0].metadata["key"] == "train/0"
    assert server.fetched[name] == 4 and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("damage", ["flipped", "cut short", "empty"])
def test_wrong_data_never_gets_a_name(root: Path, server: Server, tmp_path: Path, damage: str) -> None:
    name = "train/chunk-0-1.bin"
    content = bytearray((root / name).read_bytes())
    content[100] ^= 1
    server.spoil[name] = {"flipped": bytes(content), "cut short": bytes(content[:50]), "empty": b""}[damage]
    records = open_remote_set(RemoteFolder.at(server.url, tmp_path) / "train")
    place = records.chunk_sizes[0]
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            records.view(place)
        for part in (f"{server.url}/{name}", "SHA-256", "t2ikit prepare check", "copy that file"):
            assert part in str(caught.value)
    assert not list(tmp_path.rglob("chunk-0-1.bin")) and not list(tmp_path.rglob("*.partial"))
    del server.spoil[name]  # the repair
    assert records[place].metadata["key"] == f"train/{place}"


def test_a_record_that_was_damaged_before_its_hash_names_the_address(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_set(source, [Record({"image": np.zeros((3, 4, 4), np.uint8)})], Manifest("pixels", (3, 4, 4)))
    chunk = source / "chunk-0-0.bin"
    good = hashlib.sha256(chunk.read_bytes()).hexdigest()
    chunk.write_bytes(chunk.read_bytes().replace(b"T2IR", b"XXXX"))
    manifest = source / "manifest.json"
    manifest.write_text(manifest.read_text().replace(good, hashlib.sha256(chunk.read_bytes()).hexdigest()))
    records = open_remote_set(RemoteFolder.at(f"file://{source}", tmp_path / "cache"))
    with pytest.raises(ValueError, match=rf"chunk-0-0\.bin[^$]*prepare check DIR\nThen copy it to file://{source}"):
        records.view(0)


def test_a_chunk_that_goes_while_it_is_looked_at_comes_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes room between the look and the use."""
    folder = RemoteFolder.at(server.url, tmp_path) / "train"
    open_remote_set(folder).view(0)
    used = RemoteChunks._used

    def gone(path: Path) -> None:
        monkeypatch.setattr(RemoteChunks, "_used", staticmethod(used))
        path.unlink()
        used(path)

    monkeypatch.setattr(RemoteChunks, "_used", staticmethod(gone))
    assert open_remote_set(folder)[0].metadata["key"] == "train/0"
    assert server.fetched["train/chunk-0-0.bin"] == 2


@pytest.mark.parametrize("verify", ["once", "always", "never"])
def test_a_damaged_copy_is_downloaded_again(server: Server, tmp_path: Path, verify: Any) -> None:
    folder = RemoteFolder.at(server.url, tmp_path) / "train"
    open_remote_set(folder, verify).view(0)
    chunk = Path(folder) / "chunk-0-0.bin"
    for content in (chunk.read_bytes()[:-5], b"", b"x" * chunk.stat().st_size):
        chunk.write_bytes(content)
        assert open_remote_set(folder, verify)[0].metadata["key"] == "train/0"
    assert server.fetched["train/chunk-0-0.bin"] == 4


def test_a_set_that_was_written_again_is_downloaded_again(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", RemoteFolder.at(f"file://{tmp_path}/source", tmp_path / "cache")
    for value in (1, 2):
        write_set(
            source,
            [Record({"image": np.full((3, 4, 4), value, np.uint8)})],
            Manifest("pixels", (3, 4, 4)),
            overwrite=True,
        )
        for verify in ("never", "once"):
            assert open_remote_set(folder, verify).view(0).array("image").max() == value  # type: ignore[arg-type]


def test_what_a_killed_process_left_is_removed(server: Server, tmp_path: Path) -> None:
    folder = RemoteFolder.at(server.url, tmp_path) / "train"
    records = open_remote_set(folder)
    left = Path(folder) / ".chunk-0-0.bin.77-ab.partial"
    left.write_bytes(b"half")
    records.view(0)
    assert not left.exists()


def test_the_cache_stays_within_its_size(root: Path, server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(remote, "_SPARED", 0.0)
    folder = RemoteFolder.at(server.url, tmp_path) / "train"
    sizes = [path.stat().st_size for path in sorted((root / "train").glob("chunk-*.bin"))]
    limit = 3 * max(sizes)
    records = open_remote_set(folder, cache=tmp_path, limit=limit)
    for index in range(60):
        assert records[index].metadata["key"] == f"train/{index}"
        assert sum(path.stat().st_size for path in tmp_path.rglob("chunk-*.bin")) <= limit
        maps = Path("/proc/self/maps").read_text().splitlines()  # a deleted chunk takes its place while it is mapped
        assert not [line for line in maps if str(tmp_path) in line and line.endswith("(deleted)")]
    fresh = open_remote_set(folder, cache=tmp_path, limit=limit)
    kept = {path.name for path in Path(folder).glob("chunk-*.bin")}
    assert kept == set(records.chunk_names[-len(kept) :]) and len(kept) >= 2
    fresh.view(0)  # comes again, in place of the one that was used the longest time ago
    assert server.fetched["train/chunk-0-0.bin"] == 2
    assert records.chunk_names[-len(kept)] not in {path.name for path in Path(folder).glob("chunk-*.bin")}


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    now = time.time()
    for number, age in enumerate((300, 900, 100, 10)):
        path = tmp_path / "a" / f"chunk-0-{number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (now - age, now))
    (tmp_path / "manifest.json").write_text("{}")

    def kept() -> list[int]:
        return [number for number in range(4) if (tmp_path / "a" / f"chunk-0-{number}.bin").exists()]

    make_room(tmp_path, 50, 450)
    assert kept() == [0, 1, 2, 3]
    make_room(tmp_path, 50, 400)
    assert kept() == [0, 2, 3]
    make_room(tmp_path, 10_000, 400)
    assert (
        kept() == [3] and (tmp_path / "manifest.json").exists()
    )  # used within the minute: somebody is about to map it


def test_a_full_disk_makes_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chunk-0-0.bin"
    path.write_bytes(bytes(100))
    os.utime(path, (1, 1))
    make_room(tmp_path, 50, None)
    assert path.exists()
    usage = remote.shutil.disk_usage(tmp_path)._replace(free=2**30 + 20)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda _: usage)
    make_room(tmp_path, 50, None)
    assert not path.exists()


def test_a_cache_that_is_too_small_is_refused(root: Path) -> None:
    data = DataModule(in_memory(root), 16, cache_gb=1e-6)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"data.cache_gb 1e-06 .*data.shuffle_window"):
        data.train_dataloader()
    for size in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="data.cache_gb must be more than 0"):
            DataModule(str(root), cache_gb=size)


def test_a_cache_that_cannot_be_written_names_its_options(
    root: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    options = r"--data\.cache_dir.*T2IKIT_CACHE.*--data\.cache_gb"
    with pytest.raises(ValueError, match=f"the cache {tmp_path}/file.*{options}"):
        DataModule(server.url, cache_dir=str(tmp_path / "file")).find_data()
    records = open_remote_set(RemoteFolder.at(f"file://{root}", tmp_path) / "train")
    attempts = []

    def full(self: Any, path: str, target: str, **_: Any) -> None:
        attempts.append(path)
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("file")), "get_file", full)
        for _ in range(2):
            with pytest.raises(ValueError, match=f"No space left on device.*{options}"):
                records.view(0)
    assert len(attempts) == 2 and not list(tmp_path.rglob("*.partial"))  # trying again would not help
    assert records[0].metadata["key"] == "train/0"


def test_a_resumed_remote_run_is_the_undisturbed_one(root: Path) -> None:
    url = in_memory(root)

    def loader() -> PositionLoader:
        data = DataModule(url, 16, num_workers=2, shuffle_window=10)
        data.setup("fit")
        return data.train_dataloader()

    whole = loader()
    served = [batch for _ in range(2) for batch in whole]
    resumed = loader()
    resumed.load_state_dict({"slot": 32})
    assert_same([batch for _ in range(2) for batch in resumed], served[2:])


def test_training_can_do_without_a_folder_that_cannot_be_listed(server: Server) -> None:
    server.spoil = {"text_encoder": 403, "text_encoder/": 403}
    with pytest.warns(UserWarning, match="text_encoder cannot be read.*snapshots cannot"):
        DataModule(server.url).setup("fit")


def test_what_is_not_there_names_the_option(root: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"no prepared set in http://\S+/none/train(.|\n)*--data.root"):
        DataModule(f"{server.url}/none").find_data()
    server.spoil["train/manifest.json"] = 403
    with pytest.raises(FileNotFoundError, match="403.*credentials"):
        DataModule(server.url).find_data()
    server.spoil = {"val/manifest.json": b"no json"}
    with pytest.raises(ValueError, match="no JSON"):
        DataModule(server.url).find_data()
    server.spoil = {"train/index.json": b"{}"}
    with pytest.raises(ValueError, match="train/index.json differs from its manifest"):
        DataModule(server.url).setup("fit")
    with pytest.raises(ValueError, match=r"--data.root nowhere://x.*pip install"):
        DataModule("nowhere://x").find_data()
    data = DataModule(in_memory(root))
    data.setup("fit")
    with pytest.raises(FileNotFoundError, match="memory://bucket/set/train_cm9"):
        data.add_stream("cm9", "train_cm9", 0.4, 0.5)
    assert isinstance(data.record_set("train"), RecordSet)


@pytest.mark.parametrize("name", ["../../x", "/abs", "a/../../b"])
@pytest.mark.parametrize("kind", ["folder", "http"])
def test_names_that_lead_out_of_a_set_are_refused(
    root: Path, server: Server, tmp_path: Path, name: str, kind: str
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(root, folder / "data")
    files = {file: (folder / "data" / "train" / file).read_text() for file in ("index.json", "manifest.json")}
    changed = {file: text.replace("chunk-0-0.bin", name) for file, text in files.items()}
    digest = hashlib.sha256(files["index.json"].encode()).hexdigest()
    refitted = files["manifest.json"].replace(digest, hashlib.sha256(changed["index.json"].encode()).hexdigest())
    for manifest, file in ((changed["manifest.json"], "manifest.json"), (refitted, "index.json")):
        spoiled = {"manifest.json": manifest, "index.json": changed["index.json"]}
        for file_name, text in spoiled.items():
            (folder / "data" / "train" / file_name).write_text(text)
            server.spoil[f"train/{file_name}"] = text.encode()
        with pytest.raises(ValueError, match=f"train/{file}.*{re.escape(repr(name))} is no plain name"):
            DataModule(server.url if kind == "http" else str(folder / "data")).setup("fit")


def test_a_text_encoder_that_is_another_one_now_is_downloaded_again(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(root, source)
    for size in (4, 8):
        shutil.rmtree(source / "text_encoder")
        build_small_t5(source / "text_encoder", ["red"], dim=size)
        reference = replace(TextEncoder.load(str(source / "text_encoder")).reference, name="text_encoder")
        for split in COUNTS:
            path = source / split / "manifest.json"
            manifest = replace(Manifest.read(source / split), texts={"t5": TextSource(8, reference)})
            path.write_text(manifest.to_json())
        data = DataModule(f"file://{source}", cache_dir=str(tmp_path / "cache"))
        data.setup("fit")
        copy = Path(data.folder) / "text_encoder"
        assert own_encoder_fits(copy, data.manifest)
        written = (copy / "config.json").stat().st_mtime_ns
        DataModule(f"file://{source}", cache_dir=str(tmp_path / "cache")).setup("fit")
        assert (copy / "config.json").stat().st_mtime_ns == written  # once


@pytest.mark.parametrize("name", ["../../x", "a/../../b"])
def test_a_listing_that_leads_out_of_its_folder_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    page = f'<a href="{name}">x</a>'.encode()
    server.spoil = {"text_encoder": page, "text_encoder/": page}
    with pytest.raises(ValueError, match=f"{re.escape(repr(name))} is no plain name"):
        RemoteFolder.at(server.url, tmp_path / "deep" / "cache").bring_folder("text_encoder", Path.is_dir)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("x", "b")]


def test_a_text_encoder_is_looked_for_below_its_root_only(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "data").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=r"\.\./outside") as error:
        load_encoder(EncoderReference("../outside", None, "ab" * 32), tmp_path / "data", "")
    assert str(tmp_path) not in str(error.value)
