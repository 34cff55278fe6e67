"""Chunks: the bytes that LitData writes, and what is wrong with a damaged one."""

import json
import pickle
from pathlib import Path

import pytest

from t2ikit.records import chunks
from t2ikit.records.chunks import Chunk, ChunkBuffer, chunk_name, index_content, open_chunk, read_chunk, read_index

ITEMS = [b"one", b"", b"three" * 100]


def test_the_bytes_are_those_of_litdata(tmp_path: Path) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(tmp_path), chunk_bytes=2**20)
    writer._rank = 0
    for number, item in enumerate(ITEMS):
        writer.add_item(number, item)
    writer.done()
    writer._merge_no_wait()
    (theirs,) = tmp_path.glob("*.bin")
    content = b"".join(ChunkBuffer(ITEMS).content())
    assert theirs.name == chunk_name(0) and theirs.read_bytes() == content
    index = json.loads((tmp_path / "index.json").read_text())
    ours = json.loads(index_content([Chunk(chunk_name(0), 3, len(content))]))
    assert (
        ours["chunks"]
        == index["chunks"]
        == [{"chunk_bytes": len(content), "chunk_size": 3, "dim": None, "filename": "chunk-0-0.bin"}]
    )
    assert ours["config"] == index["config"] | {"chunk_bytes": None}
    assert read_index(tmp_path) == [Chunk(chunk_name(0), 3, len(content))]


def test_a_chunk_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "chunk.bin"
    path.write_bytes(b"".join(ChunkBuffer(ITEMS).content()))
    assert list(read_chunk(path, 3)) == ITEMS
    with pytest.raises(ValueError, match="where its header says"):
        open_chunk(path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="where its header says"):
        open_chunk(path, 3)
    path.write_bytes(b"12")
    with pytest.raises(ValueError, match="cut short"):
        open_chunk(path, 3)


def test_an_index_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_index(tmp_path)
    other = json.loads(index_content([]))
    other["config"]["compression"] = "zstd"
    (tmp_path / "index.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="zstd"):
        read_index(tmp_path)


def test_a_buffer_serves_one_chunk_after_the_other() -> None:
    buffer = ChunkBuffer([b"x" * 300_000, b"y"])
    assert len(buffer) == 2 and buffer.size == 300_009
    assert len(pickle.loads(pickle.dumps(buffer))) == 0  # nothing is sent to loader processes
    buffer.clear()
    for item in ITEMS:
        buffer.add(item)
    again = b"".join(buffer.content())
    assert len(buffer) == 3 and again == b"".join(ChunkBuffer(ITEMS).content())
    assert len(again) == buffer.size + 4 * (len(ITEMS) + 2)
    buffer.clear()
    assert b"".join(buffer.content()) == b"\0\0\0\0\x08\0\0\0"


def test_a_chunk_ends_at_4_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_LIMIT", 100)
    with pytest.raises(ValueError, match="fewer items"):
        list(ChunkBuffer([b"x" * 100]).content())
