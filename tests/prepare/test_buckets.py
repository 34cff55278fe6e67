"""Aspect buckets of photos: from a folder of photos of any aspect to batches of one shape a step."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2ikit import cli
from t2ikit.data.datamodule import DataModule
from t2ikit.photos import decode
from t2ikit.prepare.check.record import BaseImages
from t2ikit.prepare.images import prepare_images
from t2ikit.records.buckets import bucket_shapes
from t2ikit.records.record_set import RecordSet

BUCKETS = ("16x16", "20x12", "12x20")
SIZES = {"square": (40, 40), "tall": (30, 60), "wide": (64, 36), "nearly_square": (44, 40)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photos of each kind, in two classes; their red says the kind. Two tall photos are stored on their side."""
    folder = tmp_path / "photos"
    for label, size in enumerate(SIZES.values()):
        for count in range(5):
            path = folder / ("n01440764", "n01443537")[count % 2] / f"{label}_{count}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (50 * label, count, 0)).save(path)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.new("RGB", (60, 30), (50, 9, 0)).save(folder / "n01440764" / "turned.jpg", exif=tags, quality=100)
    Image.new("RGB", (60, 30), (50, 9, 0)).save(folder / "n01440764" / "turned.tif", tiffinfo={0x0112: 6})
    (folder / "n01443537" / "broken.png").write_bytes(b"no picture")
    return folder


def prepare(photos: Path, out: Path, *words: str) -> int:
    command = ["prepare", "images", "--source", str(photos), "--out", str(out), "--val-share", "0.3", "--workers", "1"]
    return cli.main([*command, *words])


@pytest.mark.slow
def test_photos_go_to_the_nearest_aspect_and_train_in_one_shape_a_step(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    assert prepare(photos, root, "--bucket", *BUCKETS) == 0
    kinds: dict[str, set[int]] = {}
    count = 0
    for name, shape in bucket_shapes(BUCKETS).items():
        for split in ("train", "val"):
            records = RecordSet(root / "images" / split / name)
            assert records.manifest.image_shape == (3, *shape)
            kinds.setdefault(name, set()).update(round(int(record.image[0, 8, 8]) / 50) for record in records)
            count += len(records)
    assert kinds == {"1.00": {0, 3}, "0.60": {1}, "1.67": {2}}
    assert count == 22
    bad = [line for path in (root / "images").rglob("bad_*.tsv") for line in path.read_text().splitlines()]
    assert bad == ["n01443537/broken.png\tnot an image"]
    assert prepare(photos, root, "--bucket", *BUCKETS) == 0
    assert capsys.readouterr().out.count("up to date") == 6
    assert prepare(photos, root, "--bucket", BUCKETS[0], BUCKETS[2], BUCKETS[1]) != 0
    assert "--seed or the order of --bucket differs" in capsys.readouterr().err
    assert cli.main(["prepare", "captions", "--out", str(root)]) == 0
    encoders = ["--autoencoder", "pixels", "--text-encoder", "small", "--text-dim", "16"]
    assert cli.main(["prepare", "encode", "--out", str(root), *encoders]) == 0
    assert cli.main(["prepare", "check", str(root)]) == 0
    folder = root / "train" / "1.00"
    assert RecordSet(folder).repair().endswith(f"t2ikit prepare encode --out {root}")
    assert RecordSet(root / "images/train/1.00").repair().endswith(f"images --source IMAGE_FOLDER --out {root}")
    originals = BaseImages.of(folder, RecordSet(folder).manifest).originals
    assert originals is not None and originals.folder == root / "images/train/1.00"
    data = DataModule(str(root), batch_size=2, num_workers=0)
    data.setup("fit")
    assert data.bucket_names == ("1.00", "0.60", "1.67")
    assert {tuple(batch.image.shape[2:]) for batch in data.train_dataloader()} == {(16, 16), (20, 12), (12, 20)}


def test_a_photo_that_comes_later_changes_its_bucket_alone(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    assert prepare(photos, root, "--bucket", *BUCKETS) == 0
    counts = {name: len(RecordSet(root / "images/train" / name)) for name in bucket_shapes(BUCKETS)}
    for index in range(6):  # some of them go to val
        Image.new("RGB", (40, 40)).save(photos / "n01440764" / f"new_{index}.png")
    assert prepare(photos, root, "--bucket", *BUCKETS) != 0
    assert "--append if photos were added to the source" in capsys.readouterr().err
    assert prepare(photos, root, "--bucket", *BUCKETS, "--append") == 0
    after = {name: len(RecordSet(root / "images/train" / name)) for name in bucket_shapes(BUCKETS)}
    assert after.pop("1.00") > counts.pop("1.00") and after == counts
    capsys.readouterr()
    assert prepare(photos, root, "--bucket", *BUCKETS) == 0
    assert capsys.readouterr().out.count("up to date") == 6


def test_a_bucket_takes_as_much_of_the_middle_as_its_aspect_allows() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 8:72] = 200  # the middle of 60 x 40, and what its resizing reaches
    image = Image.fromarray(picture)
    content = io.BytesIO()
    image.save(content, "PNG")
    assert (decode(content.getvalue(), (20, 30)) == 200).all()
    square = decode(content.getvalue(), 20)
    assert square.shape == (3, 20, 20) and np.array_equal(square, decode(content.getvalue(), (20, 20)))


@pytest.mark.parametrize("sizes", [["16"], ["16x"], ["0x16"], ["16x16", "32x32"], ["16x16 "]])
def test_sizes_that_are_none_are_refused(sizes: list[str]) -> None:
    with pytest.raises(ValueError, match="--bucket"):
        bucket_shapes(sizes)


def test_buckets_and_one_size_do_not_mix(photos: Path, tmp_path: Path) -> None:
    prepare_images(str(photos), tmp_path / "data", 16, val_share=0.3)
    with pytest.raises(FileExistsError, match="images of one size, without buckets: give the same --bucket"):
        prepare_images(str(photos), tmp_path / "data", 16, val_share=0.3, bucket=BUCKETS)


def test_a_bucket_without_photos_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no photo is nearest to the aspect of --bucket 8x80: leave it out"):
        prepare_images(str(photos), tmp_path / "data", 16, val_share=0.3, bucket=[*BUCKETS, "8x80"])
    assert not list((tmp_path / "data").rglob("manifest.json"))
