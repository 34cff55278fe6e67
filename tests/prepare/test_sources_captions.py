"""Photos without classes whose captions the source holds: LAION-POP's forms, COCO, folders of pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tiny
from t2ikit import cli
from t2ikit.callbacks import MixedSet
from t2ikit.data.datamodule import DataModule
from t2ikit.prepare.captions.caption_file import CaptionSet
from t2ikit.prepare.cutmix import prepare_cutmix
from t2ikit.prepare.images import prepare_images
from t2ikit.prepare.sources import find_images
from t2ikit.records.record_set import RecordSet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

COUNT = 24
ENCODERS = ["--autoencoder", "pixels", "--text-encoder", "small", "--text-dim", "16"]


def picture(number: int) -> bytes:
    """Of one of three aspects; every eighth is small. Its green says its number."""
    size = ((40, 40), (30, 54), (54, 30))[number % 3] if number % 8 else (12, 40)
    content = io.BytesIO()
    Image.new("RGB", size, (0, 10 * number, 0)).save(content, "PNG")
    return content.getvalue()


def caption(number: int) -> str:
    return "" if number == 5 else f'  A picture of {number} things, "quoted" and 象.\n'


def facts(number: int) -> dict[str, Any]:
    """As the downloader of LAION's sets writes them beside a picture."""
    status = {"key": f"{number:09d}", "status": "success", "width": 40, "similarity": 0.3}
    return {"url": f"https://a.example/{number}.png", **status, "caption": caption(number), "alt_txt": None}


def form(folder: Path, kind: str) -> tuple[Path, dict[str, str]]:
    """The same pictures and captions in one of the forms of LAION-POP, and the options that read it."""
    folder.mkdir(parents=True)
    if kind == "parquet":
        rows = {name: [facts(number)[name] for number in range(COUNT)] for name in facts(0)}
        table = pa.table({**rows, "jpg": [picture(number) for number in range(COUNT)]})
        pq.write_table(table, folder / "00000.parquet", row_group_size=5)
        return folder, {"caption_field": "caption"}
    field = "txt" if kind.endswith("txt") else "caption"
    members: dict[str, bytes | str] = {}
    for number in range(COUNT):
        name = f"{number:09d}"
        members |= {
            f"{name}.png": picture(number),
            f"{name}.txt": caption(number),
            f"{name}.json": json.dumps(facts(number)),
        }
    if kind.startswith("webdataset"):
        tiny.packed(folder / "00000.tar", members)
        return folder, {"caption_field": field}
    for name, content in members.items():
        (folder / "00000").mkdir(exist_ok=True)
        (folder / "00000" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder, {"caption_field": field, "kind": "pictures"}


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "webdataset of txt", "folder", "folder with txt"])
def test_every_form_gives_the_same_pictures_with_their_captions(kind: str, tmp_path: Path) -> None:
    source, options = form(tmp_path / "pop", kind)
    for _ in range(2):  # the second time out of the kept index of the tars
        lists = find_images(source, val_share=0.2, index=tmp_path / "index", **options)  # type: ignore[arg-type]
        held = {images.read(k): images.caption(k) for images in lists.values() for k in range(len(images))}
        assert held == {picture(number): caption(number).strip() for number in range(COUNT)}
        assert all(set(images.class_ids) == {-1} and images.class_names == {-1: ""} for images in lists.values())


def test_the_same_photos_with_another_caption_are_another_source(tmp_path: Path) -> None:
    source, options = form(tmp_path / "pop", "folder with txt")
    before = find_images(source, val_share=0.2, **options)["train"]  # type: ignore[arg-type]
    key = before.keys[0].replace(".png", ".txt")
    (source / key).write_text("Another.")
    assert find_images(source, val_share=0.2, **options)["train"].sha256 != before.sha256  # type: ignore[arg-type]
    prepare_images(str(source), tmp_path / "data", 16, val_share=0.2, **options)  # type: ignore[arg-type]
    (source / key).write_text("A third one.")
    with pytest.raises(FileExistsError, match="the captions of the source"):
        prepare_images(str(source), tmp_path / "data", 16, val_share=0.2, **options)  # type: ignore[arg-type]


@pytest.mark.long
def test_laion_pop_in_small_from_shards_to_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    form(tmp_path / "pop", "webdataset")
    monkeypatch.chdir(tmp_path)
    out = ["--out", "data", "--workers", "1"]
    words = ["prepare", "images", "--source", "pop", "--caption-field", "caption", "--val-share", "0.25", *out]
    words += ["--min-side", "20", "--bucket", "16x16", "20x12", "12x20"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "classes" not in said and "smaller than --min-side" in said
    assert cli.main([*words, "--out", "other", "--min-side", "50"]) == 2  # the squares have 40 pixels
    assert (
        "every photo nearest to the aspect of --bucket 16x16 is smaller than --min-side 50" in capsys.readouterr().err
    )
    listed = "".join(path.read_text() for path in (tmp_path / "data/images").rglob("bad_*.tsv"))
    assert listed.count("000000005.png\tthe source has no caption of it") == 1
    assert cli.main(["prepare", "captions", "--out", "data"]) == 2
    assert "the images have no classes" in capsys.readouterr().err
    assert cli.main(["prepare", "captions", "--out", "data", "--kind", "source"]) == 0
    assert cli.main(["prepare", "encode", "--out", "data", *ENCODERS]) == 0
    assert cli.main(["prepare", "check", "data"]) == 0
    seen = {}
    for split in ("train", "val"):
        for name in ("1.00", "0.60", "1.67"):
            records = RecordSet(tmp_path / "data" / split / name)
            assert records.manifest.captions == "source"
            seen |= {round(int(record.image[1, 8, 8]) / 10): record.captions for record in records}
    left = [number for number in range(COUNT) if number % 8 and number != 5]
    assert seen == {number: (caption(number).strip(),) for number in left}
    capsys.readouterr()
    assert cli.main(words) == 0 and cli.main(["prepare", "captions", "--out", "data", "--kind", "source"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_what_a_downloader_leaves_beside_is_counted(tmp_path: Path) -> None:
    """A table beside every tar, or files with what went wrong."""
    source, options = form(tmp_path / "pop", "webdataset")
    pq.write_table(pa.table({"url": ["https://a.example/1.jpg"], "caption": ["A."]}), source / "00000.parquet")
    (source / "00000_stats.json").write_text("{}")
    left_out = find_images(source, val_share=0.2, **options)["train"].left_out  # type: ignore[arg-type]
    assert left_out.reasons["tables beside tars of the same name"][0] == 1
    folder, options = form(tmp_path / "files", "folder")
    (folder / "00000_stats.json").write_text("{}")
    left_out = find_images(folder, val_share=0.2, **options)["train"].left_out  # type: ignore[arg-type]
    assert left_out.reasons["captions without a picture"] == (1, "00000_stats.json")
    assert left_out.reasons["no picture"][0] == COUNT  # the files of text


def test_captions_of_a_source_are_extended_to_new_images(tmp_path: Path) -> None:
    source, options = form(tmp_path / "pop", "folder")
    root = tmp_path / "data"
    arguments: dict[str, Any] = {"val_share": 0.25, **options}
    prepare_images(str(source), root, 16, **arguments)
    assert cli.main(["prepare", "captions", "--out", str(root), "--kind", "source"]) == 0
    before = list(CaptionSet(root, "train"))
    for number in range(COUNT, COUNT + 6):
        (source / f"00001_{number}.png").write_bytes(picture(number % 8 + 1))
        (source / f"00001_{number}.json").write_text(json.dumps(facts(number)))
    prepare_images(str(source), root, 16, append=True, **arguments)
    assert cli.main(["prepare", "captions", "--out", str(root), "--kind", "source"]) == 0
    after = list(CaptionSet(root, "train"))
    assert after[: len(before)] == before and len(after) > len(before)


def test_a_table_of_captions_as_picture_folders_of_the_hub_have_it(tmp_path: Path) -> None:
    """A folder of pictures and a file with a column of captions: ``file_name`` and ``text``."""
    source, _ = form(tmp_path / "pop", "folder")
    root = tmp_path / "data"
    prepare_images(str(source), root, 16, val_share=0.25, kind="pictures")
    rows = [{"file_name": f"00000/{number:09d}.png", "text": f"Number {number}."} for number in range(COUNT)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    for name in ("metadata.jsonl", "metadata.parquet"):
        words = ["prepare", "captions", "--out", str(root), "--captions", str(tmp_path / name), "--overwrite"]
        assert cli.main(words) == 0
        held = dict(row for split in ("train", "val") for row in CaptionSet(root, split))
        assert held == {row["file_name"]: (row["text"],) for row in rows}


def test_a_further_set_is_mixed_with_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet and COCO: one root with train, val and train_coco, all of whose photos are for training."""
    source, _ = form(tmp_path / "coco", "folder")
    (source / "val").mkdir()
    for number, wnid in enumerate(("n01440764", "n01443537")):
        folder = tmp_path / "imagenet" / wnid
        folder.mkdir(parents=True)
        for count in range(20):
            Image.new("RGB", (20, 20), (200, 0, 10 * number + count)).save(folder / f"{count}.png")
    monkeypatch.chdir(tmp_path)
    images = ["prepare", "images", "--out", "data", "--size", "16", "--workers", "1"]
    assert cli.main([*images, "--source", "imagenet", "--val-share", "0.2"]) == 0
    coco = [*images, "--source", "coco", "--kind", "pictures", "--caption-field", "caption"]
    assert cli.main([*coco, "--into", "val"]) == 2
    assert "a further set has a name of its own" in capsys.readouterr().err
    assert cli.main([*coco, "--into", "train_coco"]) == 0
    assert sorted(path.name for path in Path("data/images").iterdir() if path.is_dir() and path.name[0] != ".") == [
        "train", "train_coco", "val",
    ]  # fmt: skip
    assert len(RecordSet(Path("data/images/train_coco"))) == COUNT - 1  # one has no caption
    assert cli.main(["prepare", "captions", "--out", "data", "--sets", "train", "val"]) == 0
    assert cli.main(["prepare", "captions", "--out", "data", "--sets", "train_coco", "--kind", "source"]) == 0
    assert cli.main(["prepare", "encode", "--out", "data", *ENCODERS]) == 0
    assert cli.main(["prepare", "check", "data"]) == 0

    data = DataModule("data", batch_size=4, num_workers=0)
    data.setup("fit")
    MixedSet("train_coco").register(data, None)  # type: ignore[arg-type]  # asks nothing of the module
    train = len(RecordSet(Path("data/train")))
    [gate] = data.gates
    assert (gate.name, gate.quantile) == ("coco", 0.0)
    assert gate.probability == pytest.approx((COUNT - 1) / (COUNT - 1 + train))
    loader = data.train_dataloader()
    stream = loader.stream
    sources, levels = [], []
    for index in range(400):
        _, source_of, u, *_ = stream.plan(index)
        sources += source_of.tolist()
        levels += u[source_of == 1].tolist()
    assert sum(sources) / len(sources) == pytest.approx(gate.probability, abs=0.05)
    assert min(levels) < 0.05 and max(levels) > 0.95 and sum(levels) / len(levels) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(FileNotFoundError, match="prepare images --source FOLDER --into train_other --out data"):
        MixedSet("train_other").register(DataModule("data", batch_size=4), None)  # type: ignore[arg-type]


def test_what_has_no_captions_or_no_pictures_is_refused(tmp_path: Path) -> None:
    addresses = tmp_path / "laion_pop.parquet"
    pq.write_table(pa.table({"url": ["https://a.example/1.jpg"], "caption": ["A."]}), addresses)
    with pytest.raises(ValueError, match="its column url holds addresses: download the pictures first"):
        find_images(addresses, caption_field="caption")
    source, _ = form(tmp_path / "parquet", "parquet")
    with pytest.raises(ValueError, match=r"no column text: name one of url, .* with --caption-field"):
        find_images(source, caption_field="text")
    with pytest.raises(ValueError, match=r"similarity of row 0 .* is float, not a text"):
        find_images(source, caption_field="similarity")
    folder, _ = form(tmp_path / "folder", "folder")
    with pytest.raises(ValueError, match="say --kind pictures if the captions lie beside the pictures"):
        find_images(folder, caption_field="txt")
    prepare_images(str(folder), tmp_path / "data", 16, val_share=0.2, kind="pictures")
    with pytest.raises(ValueError, match="unlike classes"):
        prepare_cutmix(tmp_path / "data", "cm4")
    assert cli.main(["prepare", "captions", "--out", str(tmp_path / "data"), "--kind", "source"]) == 2
