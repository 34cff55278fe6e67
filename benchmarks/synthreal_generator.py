"""Class names or captions as prompts: of which does a trained generator make more useful images?

``python -m benchmarks.synthreal_generator RUN --out DIR``: a model of simple shapes samples training and test images of
six classes, once by the names of the classes, once by long captions of other scenes than the real images;
SynthReal measures both, three seeds. Prints a table; nothing is expected of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.synthreal_proof import TINY, Size, labelled_scenes, measure, read, table, write_classes, write_pictures
from t2ikit import cli
from t2ikit.checkpoints.runs import find_checkpoint
from t2ikit.files import write_whole
from t2ikit.shapes.captions import long_caption
from t2ikit.shapes.scenes import SHAPES_OF

NAMES = SHAPES_OF["simple"]
KINDS = ("names", "captions")
PARTS = ("train", "test")
SAMPLING: dict[str, Any] = {"method": "euler", "steps": 20, "guidance": 1.0, "batch_size": 96, "keep_images": True}


def write_real(folder: Path, counts: Sequence[int]) -> None:
    """Real images, the list of classes, and captions of as many other scenes."""
    write_classes(folder, NAMES)
    for index, (part, count) in enumerate(zip(PARTS, counts, strict=True)):
        write_pictures(folder / "real" / part, labelled_scenes(10 + index, count, "simple", NAMES), names=NAMES)
        lines = [
            json.dumps({"key": f"{NAMES[label]}/{row}", "caption": long_caption(scene)})
            for row, (label, scene) in enumerate(labelled_scenes(60 + index, count, "simple", NAMES))
        ]
        write_whole(folder / f"captions_{part}.jsonl", "\n".join(lines) + "\n")


def experiment(run: Path, folder: Path, counts: Sequence[int]) -> Path:
    """The experiment of the run with a snapshot for each kind of prompts and each part."""
    snapshots = {}
    for kind in KINDS:
        for part, count in zip(PARTS, counts, strict=True):
            options: dict[str, Any] = {"kind": kind, "classes": str(folder / "classes.tsv"), "per_class": count}
            options |= {"captions": str(folder / f"captions_{part}.jsonl")} if kind == "captions" else {}
            prompts = {"class_path": "t2ikit.evaluation.ClassPrompts", "init_args": options}
            snapshots[f"{kind}_{part}"] = {
                "class_path": "t2ikit.callbacks.Snapshot",
                "init_args": {"prompts": prompts, **SAMPLING},
            }
    path = folder / "sampling.yaml"
    write_whole(path, yaml.safe_dump({"extends": [str(run / "config.yaml")], "callbacks": snapshots}))
    return path


def sample(run: Path, folder: Path, path: Path) -> None:
    """Class folders ``<kind>/<part>`` of what the model makes; a test set has noise of its own."""
    for kind in KINDS:
        for seed, part in enumerate(PARTS):
            target, out = folder / kind / part, folder / "evaluations" / f"{kind}_{part}"
            if target.is_dir():
                continue
            words = ["evaluate", str(run), "--experiment", str(path), "--snapshot", f"{kind}_{part}"]
            if cli.main([*words, "--seed", str(seed), "--out", str(out)]):
                raise SystemExit(f"{part} images of {kind} could not be sampled")
            (images,) = out.glob("**/images")
            target.parent.mkdir(exist_ok=True)
            images.rename(target)


def main(words: list[str] | None = None) -> int:
    """Samples, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of a model of simple shapes, e.g. of the quickstart")
    parser.add_argument("--out", type=Path, default=Path("runs/synthreal_generator"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a short form")
    args = parser.parse_args(words)
    size, started = TINY if args.tiny else Size(), time.monotonic()
    folder, run, counts = args.out.resolve(), args.run.resolve(), (size.train, size.test)
    find_checkpoint(run, "run")
    write_real(folder, counts)
    sample(run, folder, experiment(run, folder, counts))
    measure(folder, size, args.jobs, {"rgb": KINDS})
    print(f"\n{table(read(folder))}\n\n{(time.monotonic() - started) / 60:.1f} minutes, {size.seeds} seeds")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
