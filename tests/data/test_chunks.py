"""Chunks: the bytes that LitData writes, and what is wrong with a damaged one."""

import json
from pathlib import Path

import pytest

from t2ikit.data.chunks import Chunk, ChunkBuffer, chunk_name, index_content, open_chunk, read_chunk, read_index

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
