"""Captions from a file: TSV, JSON lines, Parquet; several an image; what is said about a bad line; memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from t2ikit.prepare.captions import table as captions_table
from t2ikit.prepare.captions.caption_file import CaptionSet, caption_file
from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.captions.table import CaptionTable
from t2ikit.prepare.encode.encode import prepare_encode
from t2ikit.prepare.images import prepare_images
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet


@pytest.fixture(scope="module")
def images_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("import") / "data"
    prepare_images(str(photos), root, 16)
    return root


@pytest.fixture
def images(images_once: Path) -> Path:
    for path in (images_once / "captions").glob("*"):
        path.unlink()
    return images_once


def keys(root: Path, name: str = "val") -> list[str]:
    return [record.metadata["key"] for record in RecordSet(root / "images" / name)]


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    else:
        path.write_text("".join(f"{row['key']}\t{row['caption']}\n" for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_one_caption_an_image(images: Path, tmp_path: Path, suffix: str) -> None:
    rows: list[Any] = [{"key": key, "caption": f"Photo of {key},\u00a0“net”"} for key in sorted(keys(images))]
    if suffix == ".parquet":
        rows = [{name: text.encode() for name, text in row.items()} for row in rows]  # as some writers store text
    file = write(tmp_path / f"own{suffix}", rows)
    assert prepare_captions(images, file=file) == ["val"]
    captions = CaptionSet(images, "val")
    assert list(captions) == [(key, (f"Photo of {key},\u00a0“net”",)) for key in keys(images)]
    (column,) = captions.header.columns
    assert (column.name, column.kind, column.source) == ("own", "file", str(file)) and captions.header.kind == "own"
    assert sorted(path.name for path in (images / "captions").iterdir()) == ["val.jsonl"]  # nothing is left behind


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_several_captions_an_image(images: Path, tmp_path: Path, suffix: str) -> None:
    rows = [{"path": key, "captions": [f"short {key}", f"long {key}"], "score": 1} for key in keys(images)]
    file = write(tmp_path / f"own{suffix}", rows)
    prepare_captions(images, file=file)
    assert CaptionSet(images, "val").header.kinds == ("own1", "own2")
    assert dict(CaptionSet(images, "val"))[keys(images)[3]] == tuple(rows[3]["captions"])
    prepare_captions(images, file=file, names=["short", "long"], overwrite=True)
    assert CaptionSet(images, "val").header.kind == "short+long"
    with pytest.raises(ValueError, match="--name needs 2 name"):
        prepare_captions(images, file=file, names=["short"])
    for names in (["a", "a"], ["a", "b+c"]):
        with pytest.raises(ValueError, match="--name takes different names"):
            prepare_captions(images, file=file, names=names)


def test_added_captions_reach_the_records(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prepare_captions(images)
    rows = [{"key": key, "caption": f"Photo of {key}"} for name in ("train", "val") for key in keys(images, name)]
    file = write(tmp_path / "own.tsv", rows)
    with pytest.raises(FileExistsError, match="--overwrite, or keep both captions with --add"):
        prepare_captions(images, file=file)
    prepare_captions(images, file=file, add=True, names=["long"])
    assert CaptionSet(images, "train").header.kind == "aio+long"
    for key, (aio, own) in CaptionSet(images, "train"):
        assert aio.startswith("An image of ") and own == f"Photo of {key}"
    before = {name: caption_file(images, name).read_bytes() for name in ("train", "val")}
    capsys.readouterr()
    prepare_captions(images, file=file, add=True, names=["long"])
    prepare_captions(images, add=True)
    assert capsys.readouterr().out.count("up to date") == 4
    other = write(tmp_path / "other.tsv", [{**row, "caption": "A photo"} for row in rows])
    with pytest.raises(FileExistsError, match="called long.*other options.*another --name.*--overwrite"):
        prepare_captions(images, file=other, add=True, names=["long"])
    assert {name: caption_file(images, name).read_bytes() for name in ("train", "val")} == before
    prepare_captions(images, file=other, add=True, names=["long"], overwrite=True)
    assert {texts[1] for _, texts in CaptionSet(images, "val")} == {"A photo"}
    assert all(texts[0].startswith("An image of ") for _, texts in CaptionSet(images, "val"))
    prepare_encode(images, autoencoder="pixels", text_encoder="small", text_dim=16)
    assert Manifest.read(images / "val").captions == "aio+long"
    record = RecordSet(images / "val")[0]
    assert record.captions[1] == "A photo" and len(record.texts["t5"]) == 2


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a.jsonl", ["{0}", "no json"], "line 2 of .*a.jsonl is 'no json'; --captions needs .*key.*caption"),
        ("a.jsonl", ["{0}", ""], "line 2 of .*a.jsonl is ''"),
        ("a.jsonl", ["[1]"], "line 1 of .*a.jsonl"),
        ("a.jsonl", [{"key": "k"}], "line 1 of .*a.jsonl"),
        ("a.jsonl", [{"caption": "c"}], "line 1 of .*a.jsonl"),
        ("a.jsonl", [{"key": "k", "path": "k", "caption": "c"}], "line 1 of .*a.jsonl"),
        ("a.jsonl", [{"key": "k", "caption": "c", "captions": ["c"]}], "line 1 of .*a.jsonl"),
        ("a.jsonl", [{"key": "k", "caption": " "}], "line 1 of .*with text in it"),
        ("a.jsonl", [{"key": "k", "captions": []}], "line 1 of .*a.jsonl"),
        ("a.jsonl", [{"key": "k", "captions": ["a", 3]}], "line 1 of .*a.jsonl"),
        ("a.jsonl", [{"key": 7, "caption": "c"}], "line 1 of .*a.jsonl"),
        (
            "a.jsonl",
            [{"key": "k", "captions": ["a", "b"]}, {"key": "l", "caption": "c"}],
            "line 2 of .*has 1 captions, the first one 2",
        ),
        ("a.jsonl", ["{0}", "{0}"], "line 2 of .*a second one for .*, after line 1"),
        ("a.jsonl", ["{0}", '{"key": "train/x", "caption": "c"}'], "1 keys of .*train, val, .*line 2: train/x"),
        ("a.jsonl", ["{0}"], "5 images of val have no caption in .*a.jsonl, which must have one of every image"),
        ("a.parquet", [{"key": "k", "text": "c"}], "a.parquet has the columns key, text; --captions needs the columns"),
        ("a.parquet", [{"key": "k", "path": "k", "caption": "c"}], "a.parquet has the columns key, path, caption"),
        ("a.parquet", [{"key": "k", "caption": "c"}, {"key": "l", "caption": None}], "row 2 of .*a.parquet"),
        ("a.parquet", [{"key": 7, "caption": "c"}], "row 1 of .*a.parquet"),
        ("a.csv", [{"key": "k", "caption": "c"}], r"a.csv must end with one of .tsv, .txt, .jsonl, .ndjson, .parquet"),
    ],
)  # fmt: skip
def test_bad_files(images: Path, tmp_path: Path, name: str, rows: list[Any], message: str) -> None:
    good = json.dumps({"key": keys(images)[0], "caption": "c"})
    file = write(tmp_path / name, [good if row == "{0}" else row for row in rows])
    with pytest.raises(ValueError, match=message):
        prepare_captions(images, file=file)
    assert not list((images / "captions").glob("*")) and not list((images / "captions").glob(".*"))


def test_broken_parquet(images: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(ValueError, match="a.parquet cannot be read as Parquet"):
        prepare_captions(images, file=tmp_path / "a.parquet")


def test_an_empty_file_is_refused(images: Path, tmp_path: Path) -> None:
    """Not: done, and no captions."""
    for name in ("a.tsv", "a.jsonl"):
        (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=f"{name} is empty; --captions needs"):
            prepare_captions(images, file=tmp_path / name)


def test_keys_of_the_same_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions_table, "hash_of", lambda key: len(key))
    rows = [{"key": key, "caption": f"caption of {key}"} for key in ("aa", "bb", "c", "dd")]
    with CaptionTable(write(tmp_path / "own.tsv", rows), tmp_path) as table:
        for row in rows:
            assert table.get(row["key"]) == (row["caption"],)
        assert table.get("ee") is None and table.get("eee") is None and len(table) == 4
    with pytest.raises(ValueError, match="line 5 of .*a second one for dd, after line 4"):
        CaptionTable(write(tmp_path / "own.tsv", [*rows, rows[3]]), tmp_path)


def test_memory_is_sixteen_bytes_a_line_and_some_for_sorting(tmp_path: Path) -> None:
    used = []
    for count in (1_000, 21_000):
        path = tmp_path / f"{count}.tsv"
        with path.open("w") as stream:
            stream.writelines(f"train/n{k % 1000:08d}/n{k:012d}.JPEG\t{'word ' * 100}{k}\n" for k in range(count))
        tracemalloc.start()
        with CaptionTable(path, tmp_path) as table:
            captions = table.get(f"train/n{77:08d}/n{77:012d}.JPEG")
            assert captions is not None and captions[0].endswith(" 77") and len(table) == count
        used.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (used[1] - used[0]) / 20_000 < 64  # a line has 530 bytes


PANDAS = '''{0}\t"He said ""hi"" to the cat"
{1}\ta plain dog
{2}\t"""quoted"" start, and a comma"
{3}\temoji
'''
RAW = """{0}\t"hello" she said
{1}\ta 5" pipe
{2}\t"all of it"
{3}\temoji
"""


SPREADSHEET = """{0}\t"a cat, a dog"
{1}\ta plain dog
{2}\t"one, two"
{3}\temoji
"""
R = """"key"\t"caption"
"{0}"\t"He said \\"hi\\""
"{1}"\t"a plain dog"
"{2}"\t"\\"quoted\\" start, and a comma"
"{3}"\t"back\\slash"
"""


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        (PANDAS, ['He said "hi" to the cat', "a plain dog", '"quoted" start, and a comma', "emoji"]),
        (RAW, ['"hello" she said', 'a 5" pipe', '"all of it"', "emoji"]),
        (
            "path\tcaption\n" + PANDAS,
            ['He said "hi" to the cat', "a plain dog", '"quoted" start, and a comma', "emoji"],
        ),
        (SPREADSHEET, ["a cat, a dog", "a plain dog", "one, two", "emoji"]),
        (SPREADSHEET + "x\ta, b\n", ['"a cat, a dog"', "a plain dog", '"one, two"', "emoji"]),
        (R, ['He said "hi"', "a plain dog", '"quoted" start, and a comma', "back\\slash"]),
        ("".join(f'"{{{k}}}"\t"caption {k}"\n' for k in range(4)), [f"caption {k}" for k in range(4)]),
    ],
)
def test_quotes_of_a_table_mean_what_its_writer_meant(tmp_path: Path, text: str, captions: list[str]) -> None:
    names = [f"val/{k}.jpg" for k in range(4)]
    path = tmp_path / "own.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + text.format(*names).replace("\n", "\r\n").encode())
    with CaptionTable(path, tmp_path) as table:
        assert [table.get(name) for name in names] == [(caption,) for caption in captions]


def test_lines_are_counted_with_the_names_above_them(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("key\tcaption\na\tx\nb\ty\n")
    with CaptionTable(path, tmp_path) as table:
        assert len(table) == 2 and table.at(1) == (3, "b") and table.get("key") is None
    path.write_text("key\tcaption\na\tx\na\ty\n")
    with pytest.raises(ValueError, match="line 3 of .* is a second one for a, after line 2"):
        CaptionTable(path, tmp_path)


def test_keys_match_in_any_unicode_form(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", [{"key": "val/cafe\u0301.jpg", "caption": "x"}])
    with CaptionTable(path, tmp_path) as table:
        assert table.get("val/caf\u00e9.jpg") == ("x",)
        assert table.knows(captions_table.hashes_of(["val/caf\u00e9.jpg"])).all()


def test_half_an_emoji_is_named(images: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", [json.dumps({"key": key, "caption": "a cat"}) for key in keys(images)])
    path.write_text(path.read_text().replace("a cat", "a \\ud83d", 1))
    with pytest.raises(ValueError, match=r"line 1 of .*own.jsonl holds half a character"):
        CaptionTable(path, tmp_path)
    prepare_captions(images)
    stored = caption_file(images, "val")
    stored.write_text(stored.read_text().replace("An image", "\\ud83d", 1))
    with pytest.raises(ValueError, match=r"line 2 of .*val.jsonl is damaged .*half a character"):
        list(CaptionSet(images, "val"))
