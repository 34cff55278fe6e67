"""Captions by a model, through the engine: order, resume after SIGKILL, processes, columns, empty answers, commands."""

import importlib.util
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from t2ikit.cli import main
from t2ikit.prepare.captions.caption_file import CaptionSet, aio_caption, caption_file
from t2ikit.prepare.captions.captioner import CUTMIX_PROMPT, PROMPT, Captioner
from t2ikit.prepare.captions.captions import prepare_captions
from t2ikit.prepare.cutmix import prepare_cutmix
from t2ikit.prepare.encode.encode import prepare_encode
from t2ikit.prepare.engine.launch import Launch
from t2ikit.prepare.images import prepare_images
from t2ikit.records.manifest import Manifest
from t2ikit.records.record_set import RecordSet

PROGRAM = Path(__file__).with_name("captioning.py")
_spec = importlib.util.spec_from_file_location("captioning", PROGRAM)
assert _spec is not None and _spec.loader is not None
captioning: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(captioning)
CPU = Launch("cpu", 1, batch_size=2)
SETS = ["train", "val", "train_cmall"]


@pytest.fixture(scope="module")
def images_once(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model") / "data"
    prepare_images(str(photos), root, 16)
    prepare_cutmix(root, "cmall")
    return root


@pytest.fixture
def images(images_once: Path) -> Path:
    shutil.rmtree(images_once / "captions", ignore_errors=True)
    return images_once


def noting(tmp_path: Path, name: str = "notes") -> Any:
    return captioning.Noting(tmp_path / name)


def noted(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []


def metadata(root: Path, name: str) -> list[dict[str, Any]]:
    return [record.metadata for record in RecordSet(root / "images" / name)]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "captions").iterdir())}


def test_every_set_is_captioned_in_order_with_its_prompt(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert prepare_captions(images, captioner=noting(tmp_path), launch=CPU) == SETS
    for name in SETS:
        captions = CaptionSet(images, name)
        prompt = CUTMIX_PROMPT if name == "train_cmall" else PROMPT
        for (key, texts), record in zip(captions, RecordSet(images / "images" / name), strict=True):
            assert key == record.metadata["key"]
            assert texts == (f"{prompt} It is of colour {record.image.mean():.4f}.",)
        (column,) = captions.header.columns
        assert (column.name, column.kind, column.model, column.empty) == ("long", "llava", "noting", 0)
        assert (column.prompt, column.cutmix_prompt) == (PROMPT, CUTMIX_PROMPT)
        assert column.decoding is not None and column.decoding.max_new_tokens == 200
        assert {"t2ikit", "torch", "transformers"} <= set(column.versions)
    assert len(noted(tmp_path / "notes")) == 12 + 6 + 12
    before = contents(images)
    assert list(before) == sorted(f"{name}.jsonl" for name in SETS)  # no shards are left
    capsys.readouterr()
    prepare_captions(images, captioner=noting(tmp_path, "again"), launch=CPU)
    assert capsys.readouterr().out.count("up to date") == 3 and noted(tmp_path / "again") == []
    other = noting(tmp_path, "again")
    other.model = "another"
    with pytest.raises(FileExistsError, match="holds other captions.*--overwrite.*--add"):
        prepare_captions(images, captioner=other, launch=CPU)
    assert noted(tmp_path / "again") == [] and contents(images) == before


def killed(images: Path, notes: Path, deadly: int) -> bool:
    """Captions in a process that SIGKILL ends at image ``deadly``; whether it did."""
    process = multiprocessing.get_context("fork").Process(target=caption_until, args=(images, notes, deadly))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -9)
    return process.exitcode == -9


def caption_until(images: Path, notes: Path, deadly: int) -> None:
    prepare_captions(images, captioner=captioning.Noting(notes, deadly), launch=CPU)


@pytest.mark.filterwarnings("ignore:This process.*fork")
def test_killed_calls_go_on_where_they_were(images: Path, tmp_path: Path) -> None:
    """SIGKILL after 5 images of every call, of 30 in three sets, in shards of two."""
    prepare_captions(images, captioner=noting(tmp_path), launch=CPU)
    expected = contents(images)
    shutil.rmtree(images / "captions")
    notes, calls = tmp_path / "killed", 0
    while killed(images, notes, 5):
        calls += 1
        assert calls == len(noted(notes)) // 5 < 15
        if calls == 1:
            assert not caption_file(images, "train").exists() and not caption_file(images, "val").exists()
    assert contents(images) == expected
    keys = noted(notes)
    assert calls >= 5 and set(keys) == {own["key"] for name in SETS for own in metadata(images, name)}
    assert not set(keys[:2]) & set(keys[5:])  # what lay on the disk was not made again
    assert len(keys) <= 30 + 3 * calls  # a call loses the shard in the making, and the one being written


@pytest.mark.long
def test_two_processes_give_the_same(images: Path, tmp_path: Path) -> None:
    prepare_captions(images, captioner=noting(tmp_path), launch=CPU)
    expected = contents(images)
    shutil.rmtree(images / "captions")
    command = [sys.executable, str(PROGRAM), str(images), str(tmp_path / "both"), "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert contents(images) == expected
    assert sorted(noted(tmp_path / "both")) == sorted(noted(tmp_path / "notes"))  # each image once


class Silent(Captioner):
    """Has nothing to say about some images."""

    kind = "llava"
    model = "silent"

    def __init__(self, mute: set[str] | None, once: bool = False) -> None:
        from t2ikit.prepare.captions.captioner import Decoding, Prompts

        super().__init__(Prompts(), Decoding())
        self.mute = mute
        self.once = once

    def setup(self, device: Any) -> None: ...

    def answers(self, images: list[Any], metadata: list[dict[str, Any]], attempt: int = 0) -> list[str]:
        dumb = [self.mute is None or own["key"] in self.mute for own in metadata]
        return ["" if mute and not (self.once and attempt) else "A thing." for mute in dumb]


def test_empty_answers(images: Path, capsys: pytest.CaptureFixture) -> None:
    own = metadata(images, "val")
    mute = {own[1]["key"], own[4]["key"]}
    prepare_captions(images, captioner=Silent(mute), sets=["val"], launch=CPU)
    captions = CaptionSet(images, "val")
    expected = [aio_caption(one) if one["key"] in mute else "A thing." for one in own]
    assert [texts for _, texts in captions] == [(text,) for text in expected]
    assert captions.header.columns[0].empty == 2
    listing = images / "captions" / "val_long_empty.txt"
    assert listing.read_text().split() == [own[1]["key"], own[4]["key"]]
    assert "2 images got no answer, twice, and keep a plain caption (AIO;" in capsys.readouterr().out
    captioner = Silent(mute, once=True)
    captioner.model = "talks when asked again"
    prepare_captions(images, captioner=captioner, sets=["val"], launch=CPU, overwrite=True)
    assert CaptionSet(images, "val").header.columns[0].empty == 0 and not listing.exists()
    before = contents(images)
    for _ in range(2):  # the second call asks again, it does not take the empty answers over
        with pytest.raises(ValueError, match="nothing to say about any image of val.*--captioner.*--prompt"):
            prepare_captions(images, captioner=Silent(None), sets=["val"], launch=CPU, overwrite=True)
    assert contents(images) == before


def test_empty_answers_about_images_without_classes(tmp_path: Path) -> None:
    """They get the caption of the source where it has one, and no class name is missed."""
    for row in range(4):
        folder = tmp_path / ("told" if row < 2 else "untold")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (50 * row, 0, 0)).save(folder / f"{row}.png")
        if row < 2:
            (folder / f"{row}.txt").write_text(f"Photo {row} of the sea.")
    for name, field in (("told", "txt"), ("untold", None)):
        root = tmp_path / f"data_{name}"
        prepare_images(str(tmp_path / name), root, 16, kind="pictures", into="train_x", caption_field=field)
        own = metadata(root, "train_x")
        prepare_captions(root, captioner=Silent({own[1]["key"]}), launch=CPU)
        expected = f"Photo {own[1]['key'][0]} of the sea." if field else "An image"
        assert [texts for _, texts in CaptionSet(root, "train_x")] == [("A thing.",), (expected,)]
        assert (root / "captions" / "train_x_long_empty.txt").read_text().split() == [own[1]["key"]]


def test_long_captions_beside_aio_and_of_two_models(images: Path, tmp_path: Path) -> None:
    prepare_captions(images, sets=["val"])
    prepare_captions(images, captioner=noting(tmp_path), sets=["val"], launch=CPU, add=True)
    prepare_captions(images, captioner=Silent(set()), sets=["val"], names=["short"], launch=CPU, add=True)
    captions = CaptionSet(images, "val")
    assert captions.header.kind == "aio+long+short"
    assert [column.model for column in captions.header.columns] == ["", "noting", "silent"]
    for (_, texts), own in zip(captions, metadata(images, "val"), strict=True):
        assert texts[0] == aio_caption(own) and texts[1].startswith(PROMPT) and texts[2] == "A thing."


def test_appended_images_alone_are_captioned(photos: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(photos, tmp_path / "photos"))
    held_back = sorted((source / "train").glob("*/*_2.JPEG"))
    for path in held_back:
        path.rename(tmp_path / path.name)
    root = tmp_path / "data"
    prepare_images(str(source), root, 16)
    prepare_captions(root)
    prepare_captions(root, captioner=noting(tmp_path, "first"), launch=CPU, add=True)
    for path in held_back:
        (tmp_path / path.name).rename(path)
    prepare_images(str(source), root, 16, append=True)
    before = list(CaptionSet(root, "train"))
    with pytest.raises(ValueError, match="lacks the images that were appended"):
        prepare_captions(root, add=True)  # long captions are no class names
    prepare_captions(root, captioner=noting(tmp_path, "second"), launch=CPU, add=True)
    after = list(CaptionSet(root, "train"))
    assert after[: len(before)] == before and len(after) == len(before) + len(held_back) == 12
    assert len(noted(tmp_path / "first")) == 8 + 6
    assert sorted(noted(tmp_path / "second")) == sorted(str(path.relative_to(source)) for path in held_back)
    for (key, (aio, long)), record in zip(after, RecordSet(root / "images" / "train"), strict=True):
        assert key == record.metadata["key"] and aio == aio_caption(record.metadata)
        assert long == f"{PROMPT} It is of colour {record.image.mean():.4f}."
    assert CaptionSet(root, "train").header.count == 12


def test_the_command_with_a_tiny_llava(images: Path, tiny_llava: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["prepare", "captions", "--out", str(images), "--kind", "llava", "--captioner", str(tiny_llava)]
    options = ["--max-new-tokens", "8", "--batch-size", "4", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    assert main([*command, *options]) == 0
    for name in SETS:
        captions = CaptionSet(images, name)
        (column,) = captions.header.columns
        assert column.captioner is not None and len(column.captioner.sha256) == 64
        assert column.captioner.name == str(tiny_llava) and column.decoding is not None
        assert column.decoding.max_new_tokens == 8 and column.empty < captions.header.count
        assert all(text.strip() for _, (text,) in captions)
    assert len({text for _, (text,) in CaptionSet(images, "train_cmall")}) > 3
    capsys.readouterr()
    assert main([*command, *options]) == 0
    assert capsys.readouterr().out.count("up to date") == 3
    prepare_encode(images, autoencoder="pixels", text_encoder="small", text_dim=16)
    assert Manifest.read(images / "train_cmall").captions == "long"
    assert RecordSet(images / "train")[0].captions == next(iter(CaptionSet(images, "train")))[1]


def test_real_photos_to_records(sample_data: Path, tiny_llava: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    for split, classes, each in (("train", 6, 1), ("val", 2, 1)):
        for folder in sorted((sample_data / "imagenet-sample" / split).iterdir())[:classes]:
            for photo in sorted(folder.glob("*.JPEG"))[:each]:
                target = source / split / folder.name / photo.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(photo, target)
    root = tmp_path / "data"
    prepare_images(str(source), root, 64)
    prepare_cutmix(root, "cmall")
    options = ["--max-new-tokens", "12", "--accelerator", "cpu", "--devices", "1", "--batch-size", "3"]
    command = ["prepare", "captions", "--out", str(root), "--kind", "llava", "--captioner", str(tiny_llava)]
    assert main([*command, *options]) == 0
    prepare_encode(root, autoencoder="pixels", text_encoder="small", text_dim=16)
    for name, count in (("train", 6), ("val", 2), ("train_cmall", 6)):
        records = list(RecordSet(root / name))
        assert len(records) == count and Manifest.read(root / name).captions == "long"
        for record, (key, texts) in zip(records, CaptionSet(root, name), strict=True):
            assert record.metadata["key"] == key and record.captions == texts and len(record.texts["t5"][0].tokens) > 1
    assert len({record.captions for record in RecordSet(root / "train")}) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "http"], "--kind http needs --endpoint URL, the server, and --model NAME"),
        (["--endpoint", "http://127.0.0.1:1/v1"], "--endpoint is for --kind http"),
        (["--kind", "llava", "--model", "x"], "--model is for --kind http"),
        (["--captioner-revision", "main"], "--captioner-revision is for --kind llava"),
        (["--kind", "llava", "--captioner", "./none"], "./none is no folder.*--captioner"),
        (["--kind", "http", "--endpoint", "x", "--model", "y"], "--endpoint must be like http://"),
        (["--kind", "llava", "--prompt", "./none.txt"], "--prompt needs a text file; none.txt"),
        (["--kind", "llava", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--kind", "llava", "--batch-size", "0", "--captioner", "TINY"], "--batch-size must be at least 1"),
    ],
)
def test_refused_options(
    images: Path, tiny_llava: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    options = [str(tiny_llava) if option == "TINY" else option for option in options]
    assert main(["prepare", "captions", "--out", str(images), *options]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (images / "captions").exists()


def test_prompts_from_files(images: Path, tiny_llava: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("Consider the picture.\n")
    (tmp_path / "mix.txt").write_text("Consider all the objects.\n")
    files = ["--prompt", str(tmp_path / "plain.txt"), "--cutmix-prompt", str(tmp_path / "mix.txt")]
    options = ["--max-new-tokens", "3", "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--sets", "val"]
    command = ["prepare", "captions", "--out", str(images), "--kind", "llava", "--captioner", str(tiny_llava)]
    assert main([*command, *files, *options]) == 0
    header = json.loads(caption_file(images, "val").read_text().splitlines()[0])
    (column,) = header["columns"]
    assert (column["prompt"], column["cutmix_prompt"]) == ("Consider the picture.", "Consider all the objects.")
