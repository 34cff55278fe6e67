"""GenEval's folder layout and results: round trips, files as the official program writes them, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from t2ikit.metrics.base import Samples
from t2ikit.metrics.geneval.files import (
    find_prompt_folders,
    picture_names,
    read_images,
    read_metadata,
    read_results,
    results_text,
    write_folder,
)
from t2ikit.metrics.geneval.metric import GenEval, summarize

BENCH = {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
COW = {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"}
# A file as the official program writes it (pandas: no spaces, slashes escaped), with the metadata as text.
OFFICIAL = r"""
{"filename":"out\/00000\/samples\/0000.png","tag":"single_object","prompt":"a photo of a bench","correct":true,"reason":"","metadata":"{\"tag\": \"single_object\", \"include\": [{\"class\": \"bench\", \"count\": 1}], \"prompt\": \"a photo of a bench\"}","details":"{\"bench\": [[1.0, 2.0, 30.0, 40.0, 0.97]]}"}
{"filename":"out\/00000\/samples\/0001.png","tag":"single_object","prompt":"a photo of a bench","correct":false,"reason":"expected bench>=1, found 0","metadata":"{\"tag\": \"single_object\", \"include\": [{\"class\": \"bench\", \"count\": 1}], \"prompt\": \"a photo of a bench\"}","details":"{}"}
"""  # noqa: E501


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def samples() -> Samples:
    return Samples(pictures(4), ["bench, extended", "x", "x", "x"], [BENCH, BENCH, COW, COW])


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    paths = write_folder(tmp_path / "out", samples(), {"steps": "50"}, grid=True)
    assert [str(path.relative_to(tmp_path / "out")) for path in paths] == [
        "00000/samples/00000.png",
        "00000/samples/00001.png",
        "00001/samples/00000.png",
        "00001/samples/00001.png",
    ]
    assert json.loads((tmp_path / "out" / "00001" / "metadata.jsonl").read_text()) == COW
    assert Image.open(tmp_path / "out" / "00001" / "grid.png").size[0] > 10
    with Image.open(paths[0]) as image:
        assert image.text == {"prompt": "bench, extended", "steps": "50"}  # type: ignore[attr-defined]
    assert torch.equal(read_images(tmp_path / "out", samples().metadata)[:], samples().images)
    with pytest.raises(ValueError, match="is not empty"):
        write_folder(tmp_path / "out", samples())


def test_images_of_a_prompt_may_stand_anywhere(tmp_path: Path) -> None:
    metadata = [COW, BENCH, COW, BENCH]
    assert picture_names(metadata)[1:3] == ["00001/samples/00000.png", "00000/samples/00001.png"]
    write_folder(tmp_path / "out", Samples(pictures(4), metadata=metadata))
    assert torch.equal(read_images(tmp_path / "out", metadata)[:], pictures(4))
    # Other numbers of the folders do not matter: prompts are found by their metadata, whose keys have no order.
    (tmp_path / "out" / "00001").rename(tmp_path / "out" / "00552")
    turned = [dict(reversed(entry.items())) for entry in metadata]
    assert torch.equal(read_images(tmp_path / "out", turned)[:], pictures(4))
    with pytest.raises(ValueError, match="holds 2 pictures, 1 are asked for: set images_per_prompt"):
        read_images(tmp_path / "out", [COW])
    with pytest.raises(ValueError, match="no folder in .* has the metadata of the prompt 'a photo of a dog'"):
        read_images(tmp_path / "out", [{**COW, "prompt": "a photo of a dog"}])


def official_folder(root: Path) -> Path:
    """Two prompts as another program leaves them: four digits, RGBA or grey pictures, other files around."""
    for number, metadata in enumerate((BENCH, COW)):
        place = root / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps(metadata) + "\n")
        Image.fromarray(np.full((8, 8), 10 + number, np.uint8)).save(place / "samples" / "0000.png")
        Image.fromarray(np.full((8, 8, 3), 20 + number, np.uint8)).save(place / "samples" / "0001.png")
        (place / "grid.png").write_bytes(b"never read")
    (root / "log.txt").write_text("")
    return root


def test_a_folder_of_another_program(tmp_path: Path) -> None:
    metadata = [BENCH, BENCH, COW, COW]
    images = read_images(official_folder(tmp_path), metadata)
    assert images.shape == (4, 3, 8, 8)
    assert images[:][:, 0, 0, 0].tolist() == [10, 20, 11, 21]
    metric = GenEval(
        lambda image: [[{"class": "bench", "box": [0, 0, 5, 5], "score": 0.9}], []][int(image[0, 0, 0]) > 15]
    )
    assert metric.compute(Samples(images, metadata=metadata)).values["overall"] == 0.25
    assert [len(one.pictures) for one in find_prompt_folders(tmp_path)] == [2, 2]


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        ("no metadata", r"no .*00001/metadata.jsonl"),
        ("two lines", r"metadata.jsonl: expected one JSON object on one line; got 2"),
        ("no json", r"00001/metadata.jsonl, line 1: expected a JSON object"),
        ("unknown task", r"metadata.jsonl, line 1: unknown task 'shapes'"),
        ("jpeg", r"0002.jpg: the official program reads names of digits with .png only"),
        ("word", r"first.png: the official program reads names of digits"),
        ("no images", r"no image in .*00001/samples"),
        ("no samples", r"no folder .*00001/samples"),
        ("corrupt", r"0001.png is no whole image"),
        ("other size", r"0001.png has 9 x 9 pixels"),
        ("folder name", r"prompt_1: the folder of a prompt is named by digits"),
    ],
)
def test_broken_folders_are_named(tmp_path: Path, breakage: str, message: str) -> None:
    place = official_folder(tmp_path) / "00001"
    metadata, images = place / "metadata.jsonl", place / "samples"
    if breakage == "no metadata":
        metadata.unlink()
    elif breakage in ("two lines", "no json", "unknown task"):
        task = json.dumps({**COW, "tag": "shapes"})
        metadata.write_text({"two lines": f"{task}\n{task}", "no json": "{", "unknown task": task}[breakage])
    elif breakage in ("jpeg", "word"):
        (images / "0001.png").rename(images / {"jpeg": "0002.jpg", "word": "first.png"}[breakage])
    elif breakage in ("no images", "no samples"):
        for path in images.iterdir():
            path.unlink()
        if breakage == "no samples":
            images.rmdir()
    elif breakage == "corrupt":
        (images / "0001.png").write_bytes((images / "0001.png").read_bytes()[:40])
    elif breakage == "other size":
        Image.new("RGB", (9, 9)).save(images / "0001.png")
    else:
        place.rename(tmp_path / "prompt_1")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_images(tmp_path, [BENCH, BENCH, COW, COW])


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder .*none"):
        read_images(tmp_path / "none", [BENCH])
    with pytest.raises(FileNotFoundError, match="not in GenEval's layout"):
        read_images(tmp_path, [BENCH])
    with pytest.raises(ValueError, match="needs images with its metadata"):
        write_folder(tmp_path / "out", Samples(pictures(1)))


def test_official_results_are_summed_up(tmp_path: Path) -> None:
    (tmp_path / "official.jsonl").write_text(OFFICIAL)
    rows = read_results(tmp_path / "official.jsonl")
    assert rows[0]["filename"] == "out/00000/samples/0000.png"
    scores = summarize(rows)
    assert (scores.overall, scores["prompts"], scores["num_images"], scores["num_prompts"]) == (0.5, 1.0, 2, 1)
    (tmp_path / "ours.jsonl").write_text(results_text(rows))
    assert read_results(tmp_path / "ours.jsonl") == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no result"),
        ('{"tag": 1}\n', "line 1: a result needs 'correct', 'metadata'"),
        ("[]\n", "line 1: a result needs"),
        ('{"tag": "colors", "correct": "yes", "metadata": ""}', "line 1: 'correct' is true or false; got 'yes'"),
        ('\n{"tag": "colors", "correct": true, "metadata": ""}\n{', "line 3: expected a JSON object"),
    ],
)
def test_broken_results_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(ValueError, match=f"results.jsonl.*{message}"):
        read_results(tmp_path / "results.jsonl")


def test_metadata_files(tmp_path: Path, sample_data: Path) -> None:
    rows = read_metadata(sample_data / "benchmarks" / "geneval" / "evaluation_metadata.jsonl")
    assert len(rows) == 553 and rows[0] == BENCH
    assert len(set(picture_names([*rows, *rows]))) == 1106
    broken: dict[str, Any] = {"tag": "colors", "include": [{"class": "dog", "count": "1"}], "prompt": "p"}
    (tmp_path / "m.jsonl").write_text(f"{json.dumps(BENCH)}\n\n{json.dumps(broken)}\n")
    with pytest.raises(ValueError, match="m.jsonl, line 3: clause 0 .*whole number from 1; got '1'"):
        read_metadata(tmp_path / "m.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no line"):
        read_metadata(tmp_path / "empty.jsonl")
    with pytest.raises(FileNotFoundError, match="set the `path` of X to evaluation_metadata.jsonl"):
        read_metadata(tmp_path / "none.jsonl", "the `path` of X")
