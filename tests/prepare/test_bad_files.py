"""Every kind of odd and bad file through ``prepare images``: what is stored, what is listed, what is counted."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from t2ikit.cli import main
from t2ikit.photos import decode
from t2ikit.prepare.images import prepare_images
from t2ikit.prepare.sources import find_images
from t2ikit.records.record_set import RecordSet

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
Colour = tuple[int, int, int]


class Good(NamedTuple):
    """Decodes to these colours of the left and the right half."""

    make: Callable[[Path], Any]
    left: Colour
    right: Colour


class Bad(NamedTuple):
    """Goes to the list of bad files, with a reason that contains this."""

    make: Callable[[Path], Any]
    reason: str


def two(left: Colour = RED, right: Colour = BLUE, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """An image of two halves."""
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    return saved(two() if image is None else image, "JPEG", **{"quality": 95, "subsampling": 0, **options})


def png(header: tuple[int, int, int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of (width, height, bits, colour type) and rows with their filter bytes."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def flipped(content: bytes, place: float = 0.5) -> bytes:
    changed = bytearray(content)
    changed[int(len(changed) * place)] ^= 0x55
    return bytes(changed)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def ycck() -> bytes:
    """Red and blue as Photoshop saves them: ink inverted, CMY turned to YCbCr, black as it is (Adobe transform 2)."""
    planes = []
    for colour in (RED, BLUE):
        cyan = np.array([[[255 - value for value in colour]]], np.uint8)  # libjpeg takes CMY as 255 - RGB of the YCbCr
        planes.append(np.asarray(Image.fromarray(cyan).convert("YCbCr"))[0, 0])
    stored = np.full((64, 64, 4), 255, np.uint8)
    stored[:, :32, :3], stored[:, 32:, :3] = planes
    content = jpeg(Image.fromarray(255 - stored, "CMYK"))  # Pillow inverts what it saves
    marker = content.index(b"Adobe")
    assert content[marker + 11] == 0
    return content[: marker + 11] + b"\x02" + content[marker + 12 :]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def palette(image: Image.Image | None = None) -> Image.Image:
    return (image or two()).quantize(8)


def grey_16(*chunks: tuple[bytes, bytes]) -> bytes:
    return png((64, 64, 16, 0), (b"\0" + b"\0\0" * 32 + b"\xff\xff" * 32) * 64, *chunks)


def with_file(content: bytes | Callable[[], bytes]) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content())


def linked(path: Path) -> None:
    target = path.parents[2] / "elsewhere.jpg"
    target.write_bytes(jpeg())
    path.symlink_to(target)


def linked_folder(path: Path) -> None:
    target = path.parents[2] / "elsewhere"
    target.mkdir()
    path.symlink_to(target)


def in_folder(path: Path) -> None:
    path.mkdir()
    (path / "inner.jpg").write_bytes(jpeg())


def large(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(jpeg())
        stream.truncate(2**28 + 1)


def text_bomb() -> bytes:
    return png((8, 8, 8, 0), bytes(9 * 8), (b"zTXt", b"note\0\0" + zlib.compress(bytes(2**21), 9)))


GREY = np.zeros((64, 64), np.float32)
GREY[:, 32:] = 1.0
CLEAR = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
CLEAR.paste((0, 0, 255, 255), (32, 0, 64, 64))
GREY_ALPHA = Image.new("LA", (64, 64), (0, 0))
GREY_ALPHA.paste((0, 255), (32, 0, 64, 64))

ODD: dict[str, Good | Bad] = {
    # Kinds of images.
    "baseline.jpg": Good(with_file(jpeg()), RED, BLUE),
    "progressive.jpg": Good(with_file(jpeg(progressive=True)), RED, BLUE),
    "grey.jpg": Good(with_file(jpeg(two(BLACK, WHITE).convert("L"))), BLACK, WHITE),
    "cmyk inverted as Adobe does.jpg": Good(with_file(jpeg(two().convert("CMYK"))), RED, BLUE),
    "ycck.jpg": Good(with_file(ycck), RED, BLUE),
    "profile that is none.jpg": Good(with_file(jpeg(icc_profile=b"no profile" * 20)), RED, BLUE),
    "turned by exif.jpg": Good(with_file(jpeg(two().transpose(Image.Transpose.ROTATE_90), exif=exif(6))), RED, BLUE),
    "mirrored by exif.png": Good(with_file(saved(two(BLUE, RED), exif=exif(2))), RED, BLUE),
    "exif of nonsense.jpg": Good(with_file(jpeg(exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")), RED, BLUE),
    "orientation of 99.jpg": Good(with_file(jpeg(exif=exif(99))), RED, BLUE),
    "garbage behind the end.jpg": Good(with_file(jpeg() + os.urandom(999)), RED, BLUE),
    "two pictures.mpo": Good(
        with_file(saved(two(), "MPO", save_all=True, append_images=[two(BLACK)], quality=95)), RED, BLUE
    ),
    "palette.png": Good(with_file(saved(palette())), RED, BLUE),
    "palette, one entry clear.png": Good(
        with_file(lambda: saved(palette(), transparency=palette().getpixel((0, 0)))), WHITE, BLUE
    ),
    "grey of 16 bits.png": Good(with_file(grey_16()), BLACK, WHITE),
    "grey of 16 bits, black is clear.png": Good(with_file(grey_16((b"tRNS", b"\0\0"))), WHITE, WHITE),
    "colours of 16 bits.png": Good(
        with_file(png((64, 64, 16, 2), (b"\0" + b"\xff\xff\0\0\0\0" * 32 + b"\0\0\0\0\xff\xff" * 32) * 64)), RED, BLUE
    ),
    "one bit.png": Good(with_file(saved(two(BLACK, WHITE).convert("1"))), BLACK, WHITE),
    "grey with alpha.png": Good(with_file(saved(GREY_ALPHA)), WHITE, BLACK),
    "colours with alpha.png": Good(with_file(saved(CLEAR)), WHITE, BLUE),
    "colours, red is clear.png": Good(with_file(saved(two(), transparency=RED)), WHITE, BLUE),
    "moving.gif": Good(with_file(saved(two(), "GIF", save_all=True, append_images=[two(BLACK)] * 2)), RED, BLUE),
    "picture.webp": Good(with_file(saved(two(), "WEBP", lossless=True)), RED, BLUE),
    "moving.webp": Good(
        with_file(saved(two(), "WEBP", lossless=True, save_all=True, append_images=[two(BLACK)])), RED, BLUE
    ),
    "picture.bmp": Good(with_file(saved(two(), "BMP")), RED, BLUE),
    "picture.tif": Good(with_file(saved(two(), "TIFF")), RED, BLUE),
    "ink.tif": Good(with_file(saved(two().convert("CMYK"), "TIFF")), RED, BLUE),
    "floats.tif": Good(with_file(saved(Image.fromarray(GREY), "TIFF")), BLACK, WHITE),
    "32 bits.tif": Good(with_file(saved(Image.fromarray((GREY * 65535).astype(np.int32)), "TIFF")), BLACK, WHITE),
    "picture.ppm": Good(with_file(saved(two(), "PPM")), RED, BLUE),
    "picture.jp2": Good(with_file(saved(two(), "JPEG2000")), RED, BLUE),
    "png by another name.JPEG": Good(with_file(saved(two())), RED, BLUE),
    "no ending": Good(with_file(jpeg()), RED, BLUE),
    "one pixel.png": Good(with_file(saved(Image.new("RGB", (1, 1), RED))), RED, RED),
    "a line.png": Good(with_file(saved(Image.new("RGB", (1, 5000), BLUE))), BLUE, BLUE),
    "huge, but legal.png": Good(
        with_file(lambda: saved(two(BLACK, WHITE, (9600, 9400)).convert("1"), compress_level=1)), BLACK, WHITE
    ),
    "zeros behind the end.jpg": Good(with_file(jpeg() + bytes(999)), RED, BLUE),
    # Kinds of files.
    "link.jpg": Good(linked, RED, BLUE),
    "folder.jpg": Good(in_folder, RED, BLUE),  # the photo in it
    "näme with späces \N{SNOWMAN}.jpg": Good(with_file(jpeg()), RED, BLUE),
    "link to nowhere.jpg": Bad(lambda path: path.symlink_to(path.parent / "nowhere"), "No such file"),
    "link to itself.jpg": Bad(lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "link to a folder.jpg": Bad(linked_folder, "no regular file"),
    "pipe.jpg": Bad(lambda path: os.mkfifo(path), "no regular file"),
    "more bytes than a photo.jpg": Bad(large, "268,435,457 bytes"),
    "empty.jpg": Bad(with_file(b""), "empty file"),
    # Damaged images.
    "half.jpg": Bad(with_file(jpeg(noise())[: len(jpeg(noise())) // 2]), "truncated"),
    "header only.jpg": Bad(with_file(jpeg()[:20]), "not an image"),
    "last bytes missing.jpg": Bad(with_file(jpeg(noise())[:-40]), "truncated"),
    "zeros in place of the second half.jpg": Bad(with_file(jpeg(noise())[:3000] + bytes(5000)), "ends in zeros"),
    "half.png": Bad(with_file(saved(noise())[:5000]), "truncated"),
    "bit flip.png": Bad(with_file(flipped(saved(noise()))), "broken"),
    "half.gif": Bad(with_file(saved(noise(), "GIF")[:2500]), "truncated"),
    "half.webp": Bad(with_file(saved(noise(), "WEBP", lossless=True)[:3000]), "decoder"),
    "half.tif": Bad(with_file(saved(noise(), "TIFF")[:3000]), "truncated"),
    "zero wide.png": Bad(with_file(png((0, 8, 8, 0), b"not an image")), ""),
    "zero wide.jpg": Bad(
        with_file(jpeg(noise()).replace(b"\x00\x40\x00\x40\x03", b"\x00\x40\x00\x00\x03")), "not an image"
    ),
    # Bombs.
    "bomb.png": Bad(with_file(png((60_000, 60_000, 8, 0), bytes(1000))), "60000 x 60000 pixels, more than"),
    "too large.png": Bad(with_file(png((20_000, 14_000, 8, 0), bytes(1000))), "20000 x 14000 pixels, more than"),
    "text bomb.png": Bad(with_file(text_bomb), "too large"),
    # Values without a meaning.
    "not a number.tif": Bad(with_file(saved(Image.fromarray(GREY * np.nan), "TIFF")), "outside 0 .. 65535"),
    "negative.tif": Bad(with_file(saved(Image.fromarray(GREY - 0.5), "TIFF")), "outside 0 .. 65535"),
    # No images.
    "text.jpg": Bad(with_file(b"this is no image\n"), "not an image"),
    "page.jpg": Bad(with_file(b"<!DOCTYPE html><html><body>404</body></html>"), "not an image"),
    "drawing.svg": Bad(with_file(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), "not an image"),
    "program.eps": Bad(with_file(saved(two(), "EPS")), "not an image"),
    "document.pdf": Bad(with_file(saved(two(), "PDF")), "not an image"),
    "zeros.jpg": Bad(with_file(bytes(1000)), "not an image"),
    "noise.jpg": Bad(with_file(np.random.default_rng(0).bytes(5000)), "not an image"),
    "film.jpg": Bad(with_file(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(500)), "not an image"),
    "catalog.db": Bad(with_file(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500)), "not an image"),
}  # fmt: skip


def test_damage_that_no_decoder_sees() -> None:
    """JPEG has no check sums: a changed byte in its scan gives another image, not an error."""
    whole = jpeg(noise())
    pixels, changed = decode(whole, 64), decode(flipped(whole, 0.7), 64)
    assert (changed != pixels).any() and (changed[:, :16] == pixels[:, :16]).all()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with one file of each kind, prepared; and what was printed."""
    root = tmp_path_factory.mktemp("odd")
    folder = root / "photos" / "train" / "n01440764"
    folder.mkdir(parents=True)
    for name, kind in ODD.items():
        kind.make(folder / name)
    val = root / "photos" / "val" / "n01440764"
    val.mkdir(parents=True)
    (val / "only.jpg").write_bytes(jpeg())
    with pytest.MonkeyPatch.context() as patch:
        printed = io.StringIO()
        patch.setattr("sys.stdout", printed)
        prepare_images(str(root / "photos"), root / "out", 16)
    return root, printed.getvalue()


@pytest.fixture(scope="module")
def stored(prepared: tuple[Path, str]) -> dict[str, np.ndarray]:
    """Pixels by name of the file."""
    records = RecordSet(prepared[0] / "out/images/train")
    return {record.metadata["key"].removeprefix("train/n01440764/"): record.image for record in records}


@pytest.fixture(scope="module")
def reasons(prepared: tuple[Path, str]) -> dict[str, str]:
    """Reason by name of the file."""
    lines = (prepared[0] / "out/images/bad_train.tsv").read_text(encoding="utf-8").splitlines()
    return {key.removeprefix("train/n01440764/"): reason for key, reason in (line.split("\t") for line in lines)}


@pytest.mark.parametrize("name", [name for name, kind in ODD.items() if isinstance(kind, Good)])
def test_odd_images_decode_right(name: str, stored: dict[str, np.ndarray], reasons: dict[str, str]) -> None:
    kind = ODD[name]
    assert isinstance(kind, Good) and name not in reasons, reasons.get(name)
    pixels = stored["folder.jpg/inner.jpg" if name == "folder.jpg" else name]
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
    for half, colour in ((pixels[:, :, :6], kind.left), (pixels[:, :, -6:], kind.right)):
        assert np.abs(half.astype(int) - np.array(colour)[:, None, None]).max() <= 8, (half[:, 0, 0], colour)


@pytest.mark.parametrize("name", [name for name, kind in ODD.items() if isinstance(kind, Bad)])
def test_bad_files_are_listed_with_a_reason(name: str, stored: dict[str, np.ndarray], reasons: dict[str, str]) -> None:
    kind = ODD[name]
    assert isinstance(kind, Bad) and name not in stored
    assert kind.reason in reasons[name] and reasons[name].isprintable() and len(reasons[name]) < 200


def test_every_file_is_counted_once(
    prepared: tuple[Path, str], stored: dict[str, np.ndarray], reasons: dict[str, str]
) -> None:
    root, printed = prepared
    bad = sum(isinstance(kind, Bad) for kind in ODD.values())
    assert len(ODD) >= 60 and bad >= 30
    assert len(reasons) == bad and len(stored) == len(ODD) - bad
    line = next(
        line for line in printed.splitlines() if line.startswith(f"{root / 'out/images/train'}: {len(stored)} ")
    )
    assert f"{bad} files could not be used (listed in {root / 'out/images/bad_train.tsv'})" in line
    assert not (root / "out/images/bad_val.tsv").exists()


def test_strict_stops_at_the_first_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for split in ("train", "val"):
        (tmp_path / "photos" / split / "n01440764").mkdir(parents=True)
        for k in range(4):
            (tmp_path / "photos" / split / "n01440764" / f"{k}.jpg").write_bytes(jpeg())
    bad = tmp_path / "photos/train/n01440764/2.jpg"
    bad.write_bytes(b"this is no image")
    words = ["prepare", "images", "--source", str(tmp_path / "photos"), "--size", "16", "--workers", "0"]
    assert main([*words, "--out", str(tmp_path / "strict"), "--strict"]) == 2
    assert f"{bad} cannot be used: not an image (leave --strict out to continue without it)" in capsys.readouterr().err
    assert not (tmp_path / "strict/images/train/manifest.json").exists()
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert "1 files could not be used" in capsys.readouterr().out


def _read_as_nobody(source: str, answer: Any) -> None:
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)
    images = find_images(source, val_share=0.5)["train"]
    try:
        answer.put(images.read(list(images.keys).index("n01440764/0.jpg")))
    except OSError as error:
        answer.put((type(error).__name__, error.strerror))


def test_a_file_without_permission_is_a_bad_photo() -> None:
    """Read by another user than root, who may read everything."""
    folder = Path(tempfile.mkdtemp())
    try:
        os.chmod(folder, 0o755)
        (folder / "n01440764").mkdir()
        for k in range(8):
            (folder / "n01440764" / f"{k}.jpg").write_bytes(jpeg())
        os.chmod(folder / "n01440764/0.jpg", 0)
        assert "n01440764/0.jpg" in find_images(folder, val_share=0.5)["train"].keys
        context = multiprocessing.get_context("fork")
        answer = context.Queue()
        process = context.Process(target=_read_as_nobody, args=(str(folder), answer))
        process.start()
        assert answer.get(timeout=60) == ("PermissionError", "Permission denied")
        process.join()
    finally:
        shutil.rmtree(folder)
