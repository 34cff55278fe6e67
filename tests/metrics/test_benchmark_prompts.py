"""The prompts of the benchmarks: the official files, how images lie in folders, and broken files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from t2ikit.metrics import CocoCaptions, DPGPrompts, GenEvalPrompts, PartiPrompts
from t2ikit.metrics.distribution.coco import CocoCaption, choose
from t2ikit.prompts import Prompt

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def geneval(tmp_path: Path) -> Path:
    """Two prompts of two tasks."""
    lines = []
    for task in TASKS[:2]:
        for name in ("dog", "cat"):
            clause = {"class": name, "count": 1}
            lines.append(json.dumps({"tag": task, "include": [clause], "prompt": f"a photo of a {name}, {task}"}))
    path = tmp_path / "metadata.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_geneval_of_the_official_file(sample_data: Path) -> None:
    path = str(sample_data / "benchmarks" / "geneval" / "evaluation_metadata.jsonl")
    found = GenEvalPrompts(path).prompts()
    assert len(found) == 553 * 4
    assert [prompt.text for prompt in found[:8]] == ["a photo of a bench"] * 4 + ["a photo of a cow"] * 4
    assert [sum(one.metadata["tag"] == task for one in found) // 4 for task in TASKS] == [80, 99, 80, 94, 100, 100]
    few = GenEvalPrompts(path, images_per_prompt=1, tasks=["counting", "position"], limit=3).prompts()
    assert [one.metadata["tag"] for one in few] == ["counting"] * 3 + ["position"] * 3


def test_extended_texts_leave_the_metadata(geneval: Path, tmp_path: Path) -> None:
    original = GenEvalPrompts(str(geneval), images_per_prompt=1).prompts()
    texts = [f"A very long caption number {number}" for number in range(4)]
    (tmp_path / "plain.txt").write_text("\n".join(texts) + "\n")
    rows = [{"kind": "extended prompts", "count": 4}]
    rows += [{"prompt": one.text, "extended": text} for one, text in zip(original, texts, strict=True)][::-1]  # type: ignore[misc]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("plain.txt", "table.jsonl"):
        source = GenEvalPrompts(str(geneval), extended=str(tmp_path / name), images_per_prompt=1)
        assert source.name == "GenEval, extended prompts"
        assert [one.text for one in source.prompts()] == texts
        assert [one.metadata for one in source.prompts()] == [one.metadata for one in original]
    # A selection takes the texts of its own prompts.
    source = GenEvalPrompts(str(geneval), 1, 1, str(tmp_path / "plain.txt"), ["two_object"])
    assert [one.text for one in source.prompts()] == texts[2:3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\ntwo\n", "holds 2 lines for 4 prompts"),
        ("one\n\nthree\nfour\n", "line 2: expected the extended text"),
        (
            '{"prompt": "p", "extended": "e"}\n',
            "no extended text of 4 prompts, first 'a photo of a dog, single_object'",
        ),
        ('{"prompt": "p", "extended": "e"}\n{"prompt": "q"}\n', "line 2: expected the texts 'prompt' and 'extended'"),
        ('{"prompt": "p", "extended": "e"}\n{', "line 2: expected a JSON object"),
    ],
)
def test_broken_extended_lists_are_named(geneval: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "extended.txt").write_text(content)
    with pytest.raises(ValueError, match=f"extended.txt.*{message}"):
        GenEvalPrompts(str(geneval), extended=str(tmp_path / "extended.txt")).prompts()


def test_geneval_images_lie_in_the_official_layout(geneval: Path, tmp_path: Path) -> None:
    source = GenEvalPrompts(str(geneval), images_per_prompt=2)
    prompts, images = source.prompts(), pictures(8)
    source.write_images(tmp_path / "out", images, prompts, {"steps": "3"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000", "00001", "00002", "00003"]
    assert (tmp_path / "out" / "00002" / "grid.png").is_file()
    assert torch.equal(source.read_images(tmp_path / "out", prompts)[:], images)
    # A part of the benchmark finds its images in the folder of the whole.
    part = GenEvalPrompts(str(geneval), images_per_prompt=2, tasks=["two_object"])
    assert torch.equal(part.read_images(tmp_path / "out", part.prompts())[:], images[4:])
    with pytest.raises(ValueError, match="set images_per_prompt"):
        source.read_images(tmp_path / "out", GenEvalPrompts(str(geneval), images_per_prompt=3).prompts())


def test_dpg_of_the_official_folder(sample_data: Path) -> None:
    found = DPGPrompts(str(sample_data / "benchmarks" / "dpg" / "prompts")).prompts()
    assert len(found) == 4 * 1065
    by_item = {prompt.metadata["item_id"]: prompt.text for prompt in found}
    assert by_item["0"].startswith("An expansive field") and "\n" not in "".join(by_item.values())
    assert "partiprompts97" in by_item and [one.metadata for one in found[:4]] == [{"item_id": "0"}] * 4


def test_dpg_images_are_grids(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for item in ("b2", "a1"):
        (folder / f"{item}.txt").write_text(f"prompt of\n{item} ")
    for count in (1, 4):
        source = DPGPrompts(str(folder), count)
        prompts = source.prompts()
        assert [one.text for one in prompts[::count]] == ["prompt of a1", "prompt of b2"]
        images, out = pictures(2 * count), tmp_path / f"out{count}"
        source.write_images(out, images, prompts, {})
        assert sorted(path.name for path in out.iterdir()) == ["a1.png", "b2.png"]
        assert torch.equal(source.read_images(out, prompts)[:], images)
        part = DPGPrompts(str(folder), count, limit=1)
        assert torch.equal(part.read_images(out, part.prompts())[:], images[:count])
    (out / "b2.png").unlink()
    with pytest.raises(ValueError, match="lacks the grids of 1 prompts, first b2.png"):
        source.read_images(out, prompts)


def test_parti_of_the_official_table(sample_data: Path) -> None:
    path = str(sample_data / "benchmarks" / "PartiPrompts.tsv")
    found = PartiPrompts(path).prompts()
    assert len(found) == 1632 and len({one.text for one in found}) == 1632
    assert found[0] == Prompt(
        "bond",
        {"category": "Abstract", "challenge": "Basic", "note": "Biology-inspired concepts with multiple meanings"},
    )
    assert sum(one.text.startswith('"') for one in found) == 1  # the reason for reading quotes as letters
    assert len(PartiPrompts(path, images_per_prompt=2, limit=5).prompts()) == 10


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        (PartiPrompts, "Prompt,Category\n", "line 1: expected the columns Prompt, Category, Challenge, Note"),
        (PartiPrompts, "Prompt\tCategory\tChallenge\tNote\nx\ty\tz\n", "line 2: expected a prompt and 4 columns"),
        (PartiPrompts, "Prompt\tCategory\tChallenge\tNote\n \ty\tz\t\n", "line 2: expected a prompt"),
        (PartiPrompts, "Prompt\tCategory\tChallenge\tNote\n", "holds no prompt"),
        (PartiPrompts, b"\xff\xfe", "is no UTF-8 text"),
        (GenEvalPrompts, '{"tag": "colors"}\n', "line 1: no GenEval metadata, it lacks 'include', 'prompt'"),
        (GenEvalPrompts, b"\xff\xfe", "is no UTF-8 text"),
        (CocoCaptions, "[]", "lacks 'images' and 'annotations'"),
        (CocoCaptions, "{", "is no JSON"),
        (CocoCaptions, '{"images": [{"id": 1}], "annotations": []}', r"images\[0\]: expected 'file_name' \(str\)"),
        (CocoCaptions, '{"images": [], "annotations": []}', "0 captions"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, source: Any, content: str | bytes, message: str) -> None:
    file = tmp_path / "broken.file"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"broken.file.*{message}"):
        source(str(file)).prompts()


def test_broken_folders_of_dpg_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no <item_id>.txt in .*the `path` of DPGPrompts"):
        DPGPrompts(str(tmp_path)).prompts()
    (tmp_path / "a.b.txt").write_text("text")
    with pytest.raises(ValueError, match="a.b.txt: an item's name holds no dot"):
        DPGPrompts(str(tmp_path)).prompts()
    (tmp_path / "a.b.txt").rename(tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(ValueError, match="a.txt is empty"):
        DPGPrompts(str(tmp_path)).prompts()


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda path: GenEvalPrompts(path), "`path` of GenEvalPrompts"),
        (lambda path: DPGPrompts(path), "`path` of DPGPrompts"),
        (lambda path: PartiPrompts(path), "`path` of PartiPrompts"),
        (lambda path: CocoCaptions(path), "`annotations` of CocoCaptions"),
    ],
)
def test_a_missing_path_names_its_option(tmp_path: Path, build: Any, option: str) -> None:
    with pytest.raises(FileNotFoundError, match=option):
        build(str(tmp_path / "none")).prompts()


def test_options_out_of_range_are_refused() -> None:
    for build, message in (
        (lambda: GenEvalPrompts("x", images_per_prompt=0), "images_per_prompt must be at least 1"),
        (lambda: GenEvalPrompts("x", limit=0), "limit must be at least 1"),
        (lambda: GenEvalPrompts("x", tasks=["colours"]), r"single_object, .*; got \['colours'\]"),
        (lambda: DPGPrompts("x", images_per_prompt=5), "at most 4"),
        (lambda: PartiPrompts("x", limit=-1), "limit must be at least 1"),
        (lambda: CocoCaptions("x", count=0), "count must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def coco(folder: Path, images: int = 30, captions: int = 3) -> Path:
    """Annotations as the official files have them: in no order, captions with line ends."""
    content = {
        "info": {},
        "images": [{"id": 7 * n, "file_name": f"COCO_val2014_{7 * n:012d}.jpg"} for n in reversed(range(images))],
        "annotations": [
            {"image_id": 7 * (n % images), "id": 1000 - n, "caption": f" caption {n}\n"}
            for n in range(images * captions)
        ],
    }
    path = folder / "captions_val2014.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_asks_for_every_image_before_any_twice(tmp_path: Path) -> None:
    path = str(coco(tmp_path))
    chosen = tmp_path / "published" / "list.jsonl"
    found = CocoCaptions(path, count=70, chosen=str(chosen)).prompts()
    images = [prompt.metadata["image_id"] for prompt in found]
    assert len(set(images[:30])) == len(set(images[30:60])) == 30 and images[:30] == images[30:60]
    assert len({prompt.metadata["caption_id"] for prompt in found}) == 70
    assert all(one.text == f"caption {1000 - one.metadata['caption_id']}" for one in found)
    assert images[:30] != sorted(images[:30])
    published = [json.loads(line) for line in chosen.read_text().splitlines()]
    assert [row["text"] for row in published] == [one.text for one in found]
    assert published[0]["file_name"] == found[0].metadata["file_name"]
    # Fewer captions are the first of more; another seed takes others.
    assert CocoCaptions(path, count=20).prompts() == found[:20]
    assert CocoCaptions(path, count=20, seed=1).prompts() != found[:20]
    with pytest.raises(ValueError, match="has 90 captions: lower the `count`"):
        CocoCaptions(path).prompts()


def test_the_choice_of_coco_is_fixed_for_ever() -> None:
    captions = [CocoCaption(n, n % 5, "x.jpg", "x") for n in range(10)]
    assert [one.caption_id for one in choose(captions, 6, 0)] == [9, 0, 1, 3, 2, 4]


def test_photos_of_coco(tmp_path: Path) -> None:
    path, folder = str(coco(tmp_path, 5)), tmp_path / "val2014"
    with pytest.raises(FileNotFoundError, match="set the `images` of CocoCaptions"):
        CocoCaptions(path, 6).pictures()
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="5 of 5 photos are not there"):
        CocoCaptions(path, 6, images=str(folder)).pictures()
    for number in range(5):
        (folder / f"COCO_val2014_{7 * number:012d}.jpg").touch()
    files = CocoCaptions(path, 6, images=str(folder)).pictures()
    assert len(files) == 5  # six captions, of five photos
