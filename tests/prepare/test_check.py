"""The check: a good data set passes, and every kind of damage is found."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t2ikit.encoders import build_small_t5
from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.check.check import prepare_check
from t2ikit.prepare.images import prepare_images
from t2ikit.records.record import Record
from t2ikit.records.record_set import RecordSet
from t2ikit.records.states import Tokens
from t2ikit.records.writing import write_set


def rewritten(folder: Path, change: Callable[[Record], Record]) -> None:
    """Writes a set anew with its first record changed, hashes and all."""
    records = list(RecordSet(folder))
    manifest, empty = RecordSet(folder).manifest, RecordSet(folder).empty_prompt
    write_set(folder, [change(records[0]), *records[1:]], manifest, empty, overwrite=True)


def facts(record: Record, **changed: Any) -> Record:
    return replace(record, metadata={**record.metadata, **changed})


def with_arrays(record: Record, **changed: Any) -> Record:
    return replace(record, arrays={**record.arrays, **changed})


def infinite(tokens: Any) -> Tokens:
    return Tokens(tokens.values, np.full_like(tokens.scales, np.inf))


def without(record: Record, name: str) -> Record:
    return replace(record, metadata={key: value for key, value in record.metadata.items() if key != name})


def test_a_good_set_passes(prepared_once: Path) -> None:
    assert prepare_check(prepared_once) == []
    assert prepare_check(prepared_once / "train_cmall") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, captions=(" ",)), "there is no caption"),
        (lambda r: facts(r, rectangle=[1, 1, 7, 7]), r"rectangle \[1, 1, 7, 7\] is not possible in the CutMix setting"),
        (lambda r: facts(r, setting="cm3"), "setting cm3, the manifest says cmall"),
        (lambda r: facts(r, other_class_id=r.metadata["class_id"]), "same class"),
        (lambda r: without(r, "other_key"), "lack other_key"),
        (lambda r: with_arrays(r, image=255 - r.image), "the pixels are not those of .*images/train_cmall"),
        (lambda r: without(r, "class_id"), "lack class_id"),
        (
            lambda r: with_arrays(r, **{"text.t5.0": infinite(r.arrays["text.t5.0"])}),
            "text.t5.0 is not finite",
        ),
    ],
)
def test_bad_records_are_found(prepared: Path, change: Callable[[Record], Record], message: str) -> None:
    rewritten(prepared / "train_cmall", change)
    findings = prepare_check(prepared)
    assert len(findings) == 1
    assert findings[0].startswith(f"{prepared / 'train_cmall'}: record 0: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(findings[0])


def spoiled(record: Record, inside: bool) -> Record:
    """One pixel changed, in or out of the rectangle."""
    x0, y0, x1, y1 = record.metadata["rectangle"]
    image = record.image.copy()
    chosen = np.zeros(image.shape[1:], bool)
    chosen[y0:y1, x0:x1] = True
    y, x = np.argwhere(chosen == inside)[0]
    image[0, y, x] ^= 128
    return with_arrays(record, image=image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: spoiled(r, inside=False), "pixels outside of the rectangle are not those of train/"),
        (lambda r: spoiled(r, inside=True), "pixels inside of the rectangle are not those of train/"),
        (lambda r: facts(r, other_index=(r.metadata["other_index"] + 1) % 12), "the insert .* is not image"),
        (lambda r: facts(r, base_key="train/other"), "the base image train/other is not image 0"),
    ],
)
def test_mixed_images_are_compared_with_their_bases(
    prepared: Path, change: Callable[[Record], Record], message: str
) -> None:
    folder = prepared / "images/train_cmall"
    records = list(RecordSet(folder))
    write_set(folder, [change(records[0]), *records[1:]], RecordSet(folder).manifest, overwrite=True)
    findings = [finding for finding in prepare_check(folder) if "record 0: " in finding]
    assert len(findings) == 1 and re.search(message, findings[0])


def test_texts_must_fit_the_manifest(prepared: Path) -> None:
    folder = prepared / "train"
    records, manifest = list(RecordSet(folder)), RecordSet(folder).manifest
    longest = max(len(record.texts["t5"][0].tokens) for record in records)
    too_long = [i for i, record in enumerate(records) if len(record.texts["t5"][0].tokens) == longest]
    write_set(
        folder, records, replace(manifest, token_limit=longest - 1), RecordSet(folder).empty_prompt, overwrite=True
    )
    findings = prepare_check(folder)
    assert len(findings) == len(too_long) and f"at most {longest - 1}" in findings[0]


def test_captions_are_compared_line_by_line(prepared: Path) -> None:
    path = prepared / "captions/val.jsonl"
    header, first, second, *rest = path.read_text().splitlines()
    empty = json.dumps(json.loads(second) | {"captions": [" "]})
    path.write_text("\n".join([header, first.replace("val/", "elsewhere/"), empty, *rest[:-1], ""]))
    one, two, three = prepare_check(prepared)
    assert "line 2: elsewhere/" in one and "line 3: val/" in two and "empty one" in two
    assert "captions of 5 images, of 6" in three


def test_two_records_of_one_key(prepared: Path) -> None:
    second = RecordSet(prepared / "val")[1].metadata["key"]
    rewritten(prepared / "val", lambda record: facts(record, key=second))
    (finding,) = prepare_check(prepared)
    assert "record 1: a second record has the key" in finding


def test_latents_that_are_not_finite(tmp_path: Path) -> None:
    from t2ikit.records.manifest import Manifest

    images = np.ones((3, 2, 4, 2, 2), np.float16)
    images[1, 0, 0, 0, 0] = np.nan
    images[2, 1] = -1
    records = [
        Record({"image": image}, metadata={"key": str(k), "class_id": 0, "class_name": "x"})
        for k, image in enumerate(images)
    ]
    write_set(tmp_path / "set", records, Manifest(kind="latents", image_shape=(2, 4, 2, 2)))
    findings = prepare_check(tmp_path / "set")
    assert [finding.split(": ", 1)[1] for finding in findings] == [
        "record 1: image is not finite",
        "record 2: the posterior has a negative standard deviation",
    ]


def test_a_flipped_byte_is_found(prepared: Path) -> None:
    chunk = next((prepared / "train").glob("chunk-*.bin"))
    content = bytearray(chunk.read_bytes())
    content[200] ^= 1
    chunk.write_bytes(content)
    assert any(f"{chunk} differs" in finding for finding in prepare_check(prepared))


@pytest.mark.parametrize("how", ["cut", "gone", "no index", "bad manifest"])
def test_damaged_files_are_found(prepared: Path, how: str) -> None:
    chunk = next((prepared / "val").glob("chunk-*.bin"))
    if how == "cut":
        chunk.write_bytes(chunk.read_bytes()[:-10])
    elif how == "gone":
        chunk.unlink()
    elif how == "no index":
        (prepared / "val" / "index.json").unlink()
    else:
        (prepared / "val" / "manifest.json").write_text("{")
    findings = prepare_check(prepared)
    assert findings and all(str(prepared / "val") in finding for finding in findings)


def test_captions_of_other_images(prepared: Path) -> None:
    path = prepared / "captions/val.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    (finding,) = prepare_check(prepared)
    assert "captions of 5 images, of 6" in finding
    path.write_text("\n".join([lines[0].replace('"images": "', '"images": "0'), *lines[1:]]) + "\n")
    (finding,) = prepare_check(prepared)
    assert "belongs to other images" in finding


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="prepare images"):
        prepare_check(tmp_path)


def changed_caption(folder: Path) -> None:
    path = folder / "captions" / "train.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("tench", "trout", 1), encoding="utf-8")


def without_manifest(folder: Path) -> None:
    (folder / "train" / "manifest.json").unlink()


def stopped_encode(folder: Path) -> None:
    (folder / ".train_cm4.part-0.work").mkdir()


def stopped_captions(folder: Path) -> None:
    (folder / "captions" / ".val.long.work").mkdir()


def other_text_encoder(folder: Path) -> None:
    build_small_t5(folder / "text_encoder", ["An image of crane maillot tench and"], 32, seed=9, overwrite=True)


def no_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (changed_caption, ["/train was encoded from other images or captions than .* --overwrite"]),
        (without_manifest, ["/train holds chunks but no manifest.json: remove it, and make the set again"]),
        (stopped_encode, [r"\.train_cm4\.part-0\.work is unfinished: give its command again \(t2ikit prepare encode"]),
        (stopped_captions, [r"captions/\.val\.long\.work is unfinished: .*t2ikit prepare captions"]),
        (no_text_encoder, ["/text_encoder, whose states train, train_cmall, val hold, cannot be loaded"]),
        (
            other_text_encoder,
            [f"/{name} holds states of another" for name in ("train", "train_cmall", "val")],
        ),
    ],
)
def test_a_data_set_whose_parts_do_not_fit(prepared: Path, damage: Callable[[Path], None], messages: list[str]) -> None:
    damage(prepared)
    findings = prepare_check(prepared)
    assert len(findings) == len(messages), findings
    for finding, message in zip(findings, messages, strict=True):
        assert re.search(message, finding), finding


def test_images_that_were_appended_and_not_encoded_are_told(prepared: Path, photos: Path, tmp_path: Path) -> None:
    more = Path(shutil.copytree(photos, tmp_path / "more"))
    shutil.copy(more / "train/n01440764/n01440764_0.JPEG", more / "train/n01440764/new.JPEG")
    prepare_images(str(more), prepared, 16, append=True)
    prepare_captions(prepared, sets=["train"])
    assert [line.partition(" lacks ")[2] for line in prepare_check(prepared)] == [
        f"the images that were appended to {prepared / 'images/train'}: run t2ikit prepare encode"
    ]


def test_an_unfinished_data_set_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "images" / ".train.part-0.work").mkdir(parents=True)
    assert len(prepare_check(tmp_path)) == 1


def test_what_is_not_encoded_yet_is_said_and_no_fault(prepared: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.rmtree(prepared / "val")
    assert prepare_check(prepared) == []
    assert f"{prepared / 'val'}: not encoded yet" in capsys.readouterr().out.splitlines()


def test_images_and_captions_may_be_removed_once_they_are_encoded(prepared: Path) -> None:
    shutil.rmtree(prepared / "images")
    shutil.rmtree(prepared / "captions")
    assert prepare_check(prepared) == []
