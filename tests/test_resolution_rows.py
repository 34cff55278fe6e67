"""The commands of docs for 512 and 1024 pixels, LAION-POP and COCO run, in small: a sixteenth of each side."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from docs_in_small import benchmarks
from PIL import Image
from tiny_models import small_clip

import tiny
from t2ikit import cli

ROOT = Path(__file__).parents[1]
SCALE = 16
ENCODERS = ["--autoencoder", "pixels", "--text-encoder", "small", "--text-dim", "16"]
ASPECTS = ("1.00", "0.88", "1.13", "0.78", "1.29", "0.68", "1.46", "0.57", "1.75")
# What every stage of every experiment has in small: pixels in place of latents, a network of one block, one step.
SMALL = """
model:
  init_args:
    space: {class_path: t2ikit.encoders.PixelSpace}
    denoiser: {init_args: {in_channels: 3, hidden_size: 16, depth: 1, num_heads: 2, text_dim: 16}}
data: {init_args: {text_encoder: text_encoder, batch_size: 2, num_workers: 0}}
trainer: {accelerator: cpu, devices: 1, precision: 32-true, max_steps: 1}
callbacks:
  samples: {init_args: {steps: 1, batch_size: 2, prompts: {init_args: {limit: 2}}}}
"""


def block(page: str, heading: str) -> list[list[str]]:
    """The commands in the section of a page, in their order."""
    text = (ROOT / "docs" / page).read_text().partition(f"\n{heading}")[2]
    section = re.split(r"\n#{2,3} ", text)[0]
    fenced = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for line in "".join(fenced).splitlines() if line]


PREPARE = block("data.md", "## Further sets")
COMMANDS = block("reproduce.md", "### 512 and 1024")
TRAIN = [words for words in COMMANDS if words[:2] == ["lightning", "run"]]
EVALUATE = [words for words in COMMANDS if words[:2] == ["t2ikit", "evaluate"]]
CLIP = "{class_path: t2ikit.metrics.alignment.clip_score.CLIPScore, init_args: {model: clip%s}}"


def photo(path: Path, number: int, size: tuple[int, int]) -> bytes:
    values = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(values).resize(size).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())
    return content.getvalue()


def sources() -> None:
    """IMAGENET, COCO and LAION_POP in the current folder."""
    for split, count in (("train", 3), ("val", 1)):
        for label, wnid in enumerate(("n01440764", "n01443537")):
            for number in range(count):
                photo(Path("IMAGENET", split, wnid, f"{wnid}_{number}.png"), 10 * label + number, (80, 72))
    for number in range(4):
        photo(Path(f"COCO/train2017/{number:012d}.png"), number, (60, 48))
    for split, count in (("train", 3), ("val", 1)):
        members: dict[str, bytes | str] = {}
        for index, aspect in enumerate(ASPECTS):
            for number in range(count):
                name = f"{index}{number:03d}"
                members[f"{name}.png"] = photo(Path("scratch.png"), number, (round(96 * float(aspect)), 96))
                members[f"{name}.json"] = json.dumps({"caption": f"Picture {number}.", "width": 64})
        tiny.packed(Path(f"LAION_POP/pop-{split}-00000.tar"), members)


def divided(word: str) -> str:
    """A size in pixels or latents for pictures of a sixteenth of the side."""
    return "x".join(str(int(side) // SCALE) for side in word.split("x"))


def small_preparation(words: list[str]) -> list[str]:
    step = words[2]
    if step == "images":
        at = words.index("--bucket") if "--bucket" in words else len(words)
        words = [
            divided(word) if index > at and re.fullmatch(r"\d+x\d+", word) else word for index, word in enumerate(words)
        ]
        for option in ("--size", "--min-side"):
            if option in words:
                words[words.index(option) + 1] = divided(words[words.index(option) + 1])
    if step == "captions" and "llava" in words:  # a captioner of 8 billion weights
        Path("captions.jsonl").write_text("")
        at = words.index("--kind")
        del words[at : at + 2]
        if "train_coco" in words:
            rows = [{"file_name": f"{number:012d}.png", "text": "An image of tench"} for number in range(4)]
            Path("captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            words += ["--captions", "captions.jsonl", "--name", "aio"]
    if step == "encode":
        at = words.index("--text-dtype")
        del words[at : at + 2]
        words += ENCODERS
    return words[1:]


def overlay(name: str) -> str:
    """An experiment of the repository and its small parts, in a file of the same name."""
    shipped = yaml.safe_load((ROOT / f"experiments/{name}.yaml").read_text())
    small = yaml.safe_load(SMALL)
    small["model"]["init_args"]["denoiser"]["init_args"]["input_size"] = 16
    stages = {}
    for stage, parts in shipped.get("stages", {}).items():
        network = parts.get("model", {}).get("init_args", {}).get("denoiser", {}).get("init_args", {})
        # Latents have an eighth of a side, the pixels here a sixteenth.
        sizes = {"input_size": network.get("input_size", 32) // 2}
        others = [[height // 2, width // 2] for height, width in network.get("other_sizes", ())]
        sizes |= {"other_sizes": others} if others else {}
        stages[stage] = {"model": {"init_args": {"denoiser": {"init_args": sizes}}}, "trainer": {"max_steps": 1}}
    small |= {"stages": stages} if stages else {}
    return yaml.safe_dump({"extends": [str(ROOT / f"experiments/{name}.yaml")], **small}, sort_keys=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data roots of the page, prepared by its commands, and those of ImageNet at 256 and 1024 pixels."""
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        tiny.enter(folder, patch, {})
        sources()
        at256 = [[*words] for words in PREPARE if "data/imagenet512" in words]
        for words in at256:
            words = ["16" if word == "512" else word.replace("512", "256") for word in words]
            words = ["256" if word == "16" else word for word in words]
            assert cli.main(small_preparation(words)) == 0, words
        for words in PREPARE:
            assert cli.main(small_preparation([*words])) == 0, words
        for words in at256:
            words = ["1024" if word == "512" else word.replace("512", "1024") for word in words]
            assert cli.main(small_preparation(words)) == 0, words
    return folder


def test_the_table_of_buckets_is_that_of_the_command_and_of_the_experiment() -> None:
    page = (ROOT / "docs/data.md").read_text()
    rows = re.findall(r"^\| ([\d., ]+) \| ([\d x,]+) \| ([\d x,]+) \| (\d+) \|$", page, re.MULTILINE)
    names, pixels, latents = ([entry for row in rows for entry in row[column].split(", ")] for column in range(3))
    assert tuple(names) == ASPECTS
    [command] = [words for words in PREPARE if "--bucket" in words]
    given = [word for word in command if re.fullmatch(r"\d+x\d+", word)]
    assert sorted(given) == sorted(size.replace(" ", "") for size in pixels)
    shipped = yaml.safe_load((ROOT / "experiments/dit_i_512_1024.yaml").read_text())
    network = shipped["stages"]["at1024"]["model"]["init_args"]["denoiser"]["init_args"]
    sizes = [[network["input_size"]] * 2, *network["other_sizes"]]
    assert sizes == [[int(side) for side in size.split(" x ")] for size in latents]
    for (height, width), size in zip(sizes, pixels, strict=True):
        assert size == f"{8 * height} x {8 * width}" and height * width <= 128 * 128 and not (height % 8 or width % 8)
    for row in rows:
        height, width = (int(side) for side in row[2].split(", ")[0].split(" x "))
        assert int(row[3]) == height * width // 4


def evaluate_stages() -> None:
    """The page's evaluations of the stages, by a small CLIP in the place of the metrics and of the verifier."""
    benchmarks()
    small_clip(Path("clip"))
    for words in EVALUATE:
        words = [str(ROOT / word) if word.startswith("experiments/") else word for word in words]
        name = words[words.index("--snapshot") + 1]
        role, more = "", ["--steps", "1", "--device", "cpu", "--data.text_encoder", "text_encoder"]
        if name == "parti_search":
            role, more = ", name: selection", [*more, "--verifier", CLIP % "", "--candidates", "2"]
        assert cli.main([*words[1:], *more, f"--callbacks.{name}.metrics", f"[{CLIP % role}]"]) == 0, words
    assert len(EVALUATE) == 6


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_row_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.current(folder, monkeypatch)
    assert sorted(path.name for path in Path("data/laion_pop1024/train").iterdir()) == sorted(ASPECTS)
    Path("experiments").mkdir()
    for name in {Path(words[2]).stem for words in TRAIN if "shapes" not in words[2]}:
        Path(f"experiments/{name}.yaml").write_text(overlay(name))
    Path("experiments/dit_i_cmall.yaml").write_text(overlay("dit_i_cmall"))
    assert cli.main(["run", "experiments/dit_i_cmall.yaml", "--data.root", "data/imagenet256"]) == 0
    ran = []
    for words in TRAIN:
        if "shapes" in words[2]:  # tests/test_resolutions.py
            continue
        if "--stage" in words:
            shutil.rmtree("runs/dit_i_512_1024")
        assert cli.main(words[1:]) == 0, words
        if Path(words[2]).stem == "dit_i_512_1024" and "--stage" not in words:
            evaluate_stages()
        ran.append(Path(words[2]).stem)
    assert len(ran) == 6 and set(ran) == {path.stem for path in Path("experiments").glob("*")} - {"dit_i_cmall"}
    path = Path("runs/dit_i_imagenet_coco/version_0/checkpoints/step-00000001.ckpt")
    state = torch.load(path, weights_only=True)["DataModule"]
    assert "train_coco" in str(state)
    last = torch.load("runs/dit_i_512_1024/version_0/at512/checkpoints/step-00000001.ckpt", weights_only=True)
    assert "dit_i_cmall" in last["start"]["checkpoint"] and last["start"]["weights"].startswith("ema")
