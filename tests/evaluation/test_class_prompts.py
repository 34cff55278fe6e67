"""Classes as prompts: names and captions, class folders written and read, kills in the middle, memory that stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny
from t2ikit import cli
from t2ikit.batch import Text
from t2ikit.config.compose import compose
from t2ikit.encoders.stored_texts import Chosen, StoredTexts, Zipped
from t2ikit.evaluation import ClassPrompts
from t2ikit.pictures import save_png
from t2ikit.run.experiment import check
from t2ikit.shapes.geometry import SHAPES

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
WNIDS = ("n01443537", "n01629819")


def classes_file(folder: Path, names: dict[str, str]) -> str:
    path = folder / "classes.tsv"
    path.write_text("".join(f"{key}\t{name}\n" for key, name in names.items()))
    return str(path)


def caption_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_names_of_the_paper_and_clear_ones() -> None:
    paper, clear = (ClassPrompts(names=names, per_class=3).prompts() for names in ("paper", "clear"))
    assert len(paper) == len(clear) == 600
    assert [paper[index].text for index in (0, 2, 3)] == ["goldfish", "goldfish", "european fire salamander"]
    by_class = {prompt.metadata["class_folder"]: prompt for prompt in paper}
    assert by_class["n02509815"].text == "panda" and by_class["n02226429"].text == "grasshoppe"
    assert {prompt.metadata["class_folder"]: prompt.text for prompt in clear}["n02509815"] == "red panda"
    assert by_class["n02509815"].metadata["class_id"] == 387
    assert ClassPrompts(template="A picture of a {name}.", per_class=1).prompts()[0].text == "A picture of a goldfish."


def test_captions_of_a_file(tmp_path: Path) -> None:
    classes = classes_file(tmp_path, {"n01443537": "goldfish", "n01629819": "salamander"})
    rows: list[dict[str, Any]] = [{"columns": [{"name": "aio"}, {"name": "long"}], "images": "", "count": 4}]
    for number in range(3):
        for wnid in (*WNIDS, "n01440764"):  # the last one is no class of the file
            rows.append({"key": f"train/{wnid}/{number}.JPEG", "captions": ["An image", f"caption {number} of {wnid}"]})
    path = caption_lines(tmp_path / "train.jsonl", rows)
    source = ClassPrompts(kind="captions", classes=classes, captions=path, per_class=2)
    assert [prompt.text for prompt in source.prompts()] == [
        "goldfish, caption 0 of n01443537",
        "goldfish, caption 1 of n01443537",
        "salamander, caption 0 of n01629819",
        "salamander, caption 1 of n01629819",
    ]
    first = ClassPrompts("captions", classes, captions=path, per_class=1, template="{caption}", column=0).prompts()
    assert [prompt.text for prompt in first] == ["An image", "An image"]
    with pytest.raises(ValueError, match=r"n01443537 \(goldfish\) has 3 captions, per_class is 4"):
        ClassPrompts("captions", classes, captions=path, per_class=4).prompts()
    path = caption_lines(tmp_path / "odd.jsonl", [*rows[:2], {"key": "train/photo.JPEG", "caption": "A fish."}])
    with pytest.raises(ValueError, match=r"line 3 of .*odd.jsonl has a caption of no known class"):
        ClassPrompts("captions", classes, captions=path).prompts()
    (tmp_path / "broken.jsonl").write_text("A fish.\n")
    with pytest.raises(ValueError, match="line 1 of .*broken.jsonl is no caption"):
        ClassPrompts("captions", classes, captions=str(tmp_path / "broken.jsonl")).prompts()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "both"}, "kind must be names or captions"),
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"template": "a picture"}, "template 'a picture' needs {name}"),
        ({"kind": "captions", "template": "{name}"}, "needs {name} for kind names, {caption}"),
        ({"captions": "file.jsonl"}, "captions are for kind captions"),
        ({"kind": "captions", "captions": "nowhere.jsonl"}, "no file nowhere.jsonl"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ClassPrompts(**options)


def test_class_folders_there_and_back(tmp_path: Path) -> None:
    classes = classes_file(tmp_path, {"n01443537": "goldfish", "n01629819": "salamander"})
    source = ClassPrompts(classes=classes, per_class=3)
    prompts = source.prompts()
    images = torch.randint(0, 256, (6, 3, 5, 4), dtype=torch.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    source.write_images(folder, images, prompts, {"weights": "raw"})
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png")) == [
        f"{wnid}/0000{number}.png" for wnid in WNIDS for number in range(3)
    ]
    assert Image.open(folder / WNIDS[1] / "00002.png").text["prompt"] == "salamander"
    assert torch.equal(source.read_images(folder, prompts)[:], images)
    assert len(source.read_images(folder, prompts[:4])) == 4  # --limit 4
    save_png(images[0], folder / WNIDS[0] / "00003.png")
    with pytest.raises(ValueError, match="n01443537 holds 4 pictures, 3 are needed"):
        source.read_images(folder, prompts)
    (folder / "cats").mkdir()
    with pytest.raises(ValueError, match="a folder cats, which is no class"):
        source.read_images(folder, prompts)
    (folder / "cats").rmdir()
    (folder / WNIDS[0] / "00003.png").unlink()
    (folder / WNIDS[1]).rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="no class folder n01629819"):
        source.read_images(folder, prompts)


def test_states_of_many_prompts_are_kept_on_the_disk() -> None:
    texts = [Text(torch.randn(1, length, 4), torch.ones(1, length, dtype=torch.bool)) for length in (3, 1, 2)]
    pooled = [Text(text.embeddings, text.mask, torch.randn(1, 5)) for text in texts]
    first, second = StoredTexts(), StoredTexts()
    for text, other in zip(texts, pooled, strict=True):
        first.append(text)
        second.append(other)
    both = Zipped([Chosen(first, [2, 0, 2]), Chosen(second, [1, 1, 0])])
    assert len(both) == 3
    for row, (index, other) in enumerate([(2, 1), (0, 1), (2, 0)]):
        for entry in (both[row], both[0:3][row]):
            tiny.assert_same(entry[0], texts[index])
            tiny.assert_same(entry[1], pooled[other])
    with pytest.raises(IndexError):
        both[3]


def test_the_experiment_of_the_paper_is_complete() -> None:
    plan = check(compose(EXPERIMENTS / "synthreal" / "draw.yaml"))
    for name, kind in (("class_names", "names"), ("captions", "captions")):
        snapshot = plan.callbacks[name].build()
        source = snapshot.evaluation.source
        assert (source.kind, source.classes, source.per_class) == (kind, "tiny200", 500)
        assert (snapshot.sampling.steps, snapshot.sampling.guidance, snapshot.keep_images) == (50, 1.0, True)


EXPERIMENT = """
extends: [tiny.yaml]
trainer: {max_steps: 2}
data: {init_args: {root: data}}
callbacks: {progress: null, table: null, geneval: null, val: {init_args: {steps: 2, at_start: false}}}
"""
SNAPSHOT = """
extends: [small.yaml]
callbacks:
  names:
    class_path: t2ikit.callbacks.Snapshot
    init_args:
      prompts:
        class_path: t2ikit.evaluation.ClassPrompts
        init_args: {classes: classes.tsv, per_class: 5}
      keep_images: true
      steps: 2
      batch_size: 3
  captions:
    class_path: t2ikit.callbacks.Snapshot
    init_args:
      prompts:
        class_path: t2ikit.evaluation.ClassPrompts
        init_args: {kind: captions, classes: classes.tsv, per_class: 2}
      keep_images: true
      steps: 2
"""
KILLED = """
import os, signal
from t2ikit import cli
from t2ikit.evaluation.image_store import ImageStore

add = ImageStore.add


def add_and_end(self, first, images):
    add(self, first, images)
    if first == 6:  # in the second class
        os.kill(os.getpid(), signal.SIGKILL)


ImageStore.add = add_and_end
raise SystemExit(cli.main({words}))
"""


@pytest.mark.long
def test_images_of_classes_go_on_in_the_middle_of_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.enter(tmp_path, monkeypatch, {"small.yaml": EXPERIMENT, "draw.yaml": SNAPSHOT})
    names = SHAPES[:3]  # class i of the embedded data set is that of line i
    (tmp_path / "classes.tsv").write_text("".join(f"{name}\t{name}\n" for name in names))
    assert cli.main(["run", "small.yaml"]) == 0
    run = "runs/small/version_0"
    words = ["evaluate", run, "--experiment", "draw.yaml", "--snapshot", "names", "--device", "cpu", "--out"]
    assert cli.main([*words, "whole"]) == 0
    program = KILLED.format(words=[*words, "cut"])
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "cut/step-00000002/images").exists()
    assert cli.main([*words, "cut"]) == 0
    folders = [tmp_path / out / "step-00000002" / "images" for out in ("whole", "cut")]
    for name in names:
        for number in range(5):
            first, second = (Image.open(folder / name / f"{number:05d}.png").tobytes() for folder in folders)
            assert first == second
    pictures = ["evaluate", "--images", str(folders[0]), "--experiment", "draw.yaml", "--snapshot", "names"]
    assert cli.main([*pictures, "--device", "cpu", "--out", "again"]) == 0
    captions = [*words[:5], "captions", *words[6:], "captions"]
    assert cli.main(captions) == 0
    written = sorted((tmp_path / "captions/step-00000002/images").rglob("*.png"))
    assert len(written) == 6 and Image.open(written[0]).text["prompt"].startswith(f"{written[0].parent.name}, ")


MEMORY = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from t2ikit.batch import Text
from t2ikit.denoisers import CADI
from t2ikit.diffusion import Denoising, GaussianDiffusion
from t2ikit.evaluation import ClassPrompts, Evaluation
from t2ikit.evaluation.settings import Sampling
from benchmarks.snapshots import perturbed

torch.set_num_threads(1)
count, folder = int(sys.argv[1]), Path(sys.argv[2])
(folder / "classes.tsv").write_text("".join(f"c{k:03d}\\tclass {k}\\n" for k in range(100)))


class Source(ClassPrompts):
    def states(self, prompts, encode):
        by_text = {prompt.text: Text.from_rows([torch.ones(1, 8)]) for prompt in prompts}
        return [by_text[prompt.text] for prompt in prompts]


network = CADI(64, 3, 16, 16, 4, 16, 1, 1, text_dim=8, read_write_heads=2, compute_heads=2)
module = perturbed(network)
evaluation = Evaluation("names", Source(classes=str(folder / "classes.tsv"), per_class=count // 100))
data = SimpleNamespace(trainer=None)
sampling = Sampling(steps=1, batch_size=50)
evaluated = evaluation.evaluate(module, data, sampling, folder / "unfinished", weights="raw", step=0)
evaluation.keep_images(folder / "images", evaluated.images, {})
images = evaluation.source.read_images(folder / "images", evaluation.prompts)
for start in range(0, len(images), 64):
    images[start : start + 64]
assert len(images) == count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_memory_of_20_000_images_is_that_of_1_000(tmp_path: Path) -> None:
    peaks = {}
    for count in (1000, 20_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        command = [sys.executable, "-c", MEMORY, str(count), str(folder)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        peaks[count] = int(done.stdout.split()[-1])
    print({count: f"{peak / 1e6:.0f} MB" for count, peak in peaks.items()})
    assert peaks[20_000] - peaks[1000] < 60e6
