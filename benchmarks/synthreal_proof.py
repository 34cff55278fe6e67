"""Known faults of a generator, found by SynthReal: rendered shapes with planted faults against shapes without.

``python -m benchmarks.synthreal_proof --out DIR`` (``nox -s synthreal``): three seeds, at most half an hour on two
quiet cores. Sources: the same law as the real images, 3 scenes of each class (collapsed), one object on plain ground
(narrow), blurred, and 40 % wrong labels. Prints a table, and fails where a fault is not found.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms.functional import gaussian_blur

from t2ikit import cli
from t2ikit.files import write_whole
from t2ikit.photos import compress
from t2ikit.shapes.geometry import class_name
from t2ikit.shapes.scenes import Background, Scene, render, scenes

SHAPES, TEXTURES = ("circle", "square", "triangle", "star"), ("plain", "striped", "checked")
NAMES = [class_name(shape, texture) for shape, texture in itertools.product(SHAPES, TEXTURES)]
WRONG, SCENES, SIGMA, SIDE = 0.4, 3, 1.0, 32
FAULTS = ("collapsed", "narrow", "blurred", "mislabelled")
SOURCES = ("same", *FAULTS)
RECIPE = (
    "--data.size 32 --data.filter_size 32 --data.augmentation light --data.batch_size 64 --data.num_workers 0 "
    "--model.cutmix false --trainer.accelerator cpu"
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the proof is."""

    train: int = 150
    test: int = 60
    epochs: int = 25
    seeds: int = 3


TINY = Size(train=12, test=7, epochs=2, seeds=1)


def _scenes(seed: int, split: str, count: int) -> Iterator[tuple[int, Scene]]:
    """``count`` scenes of each class, with their labels."""
    left = [count] * len(NAMES)
    for first in itertools.count(0, 256):
        for scene in scenes(seed, split, first, 256, "full"):
            name = scene.main.class_name
            if name in NAMES and left[NAMES.index(name)]:
                left[NAMES.index(name)] -= 1
                yield NAMES.index(name), scene
        if not any(left):
            return


def _narrow(scene: Scene) -> Scene:
    """One object, in the middle of a plain ground."""
    plain = Background("plain", scene.background.color, scene.background.color, 0.0, scene.background.shade)
    middle = dataclasses.replace(scene.main, x=0.5, y=0.5)
    return dataclasses.replace(scene, objects=(middle,), count=1, background=plain)


def _blurred(picture: np.ndarray) -> np.ndarray:
    blurred = gaussian_blur(torch.from_numpy(picture).float(), [7, 7], [SIGMA, SIGMA])
    return blurred.round().clamp(0, 255).to(torch.uint8).numpy()


def _write(
    folder: Path,
    labelled: Iterator[tuple[int, Scene]],
    scene_of: Callable[[Scene], Scene] = lambda scene: scene,
    picture_of: Callable[[np.ndarray], np.ndarray] = lambda picture: picture,
) -> None:
    counts = dict.fromkeys(range(len(NAMES)), 0)
    for label, scene in labelled:
        path = folder / NAMES[label].replace(" ", "_") / f"{counts[label]:05d}.png"
        counts[label] += 1
        if not path.is_file():
            write_whole(path, compress(picture_of(render(scene_of(scene), SIDE)), "png"))


def _few(labelled: Iterator[tuple[int, Scene]], count: int, shift: float) -> Iterator[tuple[int, Scene]]:
    """The scenes of each class again and again; the noise of a noisy ground is another each time.

    ``shift`` in grey levels of the ground keeps a file of the test from being one of the training.
    """
    chosen: dict[int, list[Scene]] = {}
    for label, scene in labelled:
        ground = dataclasses.replace(scene.background, shade=scene.background.shade + shift)
        chosen.setdefault(label, []).append(dataclasses.replace(scene, background=ground))
    for label, members in chosen.items():
        for index in range(count):
            yield label, dataclasses.replace(members[index % len(members)], noise_seed=index + int(1000 * shift))


def _relabelled(labelled: Iterator[tuple[int, Scene]], count: int) -> Iterator[tuple[int, Scene]]:
    """With ``WRONG`` of the labels of each class replaced by the others in turn, so that classes stay equally large."""
    seen = [0] * len(NAMES)
    for label, scene in labelled:
        shift = 1 + seen[label] % (len(NAMES) - 1) if seen[label] < round(WRONG * count) else 0
        seen[label] += 1
        yield (label + shift) % len(NAMES), scene


def render_sources(folder: Path, size: Size) -> None:
    """Class folders of the real images and of every source, where they are not there yet."""
    for part, count in (("train", size.train), ("test", size.test)):
        of_test = part == "test"
        real, same, narrow, blurred, mislabelled = (_scenes(10 * k + of_test, "train", count) for k in range(5))
        collapsed = _few(_scenes(50, "train", SCENES), count, 1.0 if of_test else 0.0)  # the same ones in the test
        _write(folder / "real" / part, real)
        _write(folder / "same" / part, same)
        _write(folder / "collapsed" / part, collapsed)
        _write(folder / "narrow" / part, narrow, scene_of=_narrow)
        _write(folder / "blurred" / part, blurred, picture_of=_blurred)
        _write(folder / "mislabelled" / part, _relabelled(mislabelled, count))
    write_whole(folder / "classes.tsv", "".join(f"{name.replace(' ', '_')}\t{name}\n" for name in NAMES))


# ------------------------------------------------------------------ the benchmark, and what must come out


def measure(folder: Path, size: Size, jobs: int) -> None:
    """The cells: every source on rgb, and the real and the blurred one on low frequencies."""
    for view, sources in (("rgb", SOURCES), ("low", ("blurred",))):
        words = ["benchmark", "synthreal", "--real", str(folder / "real"), "--out", str(folder / view)]
        words += [word for name in sources for word in ("--synth", f"{name}={folder / name}")]
        words += ["--classes", str(folder / "classes.tsv"), "--views", view, "--networks", "test_resnet"]
        words += ["--seeds", str(size.seeds), "--jobs", str(jobs), *RECIPE.split()]
        words += ["--trainer.max_epochs", str(size.epochs)]
        words += ["--model.learning_rate.warmup_epochs", str(size.epochs // 5)]
        words += ["--distribution", "--features", "random"] if view == "rgb" else []
        if cli.main(words):
            raise SystemExit(f"benchmark synthreal of {view} has failed: see {folder / view / 'logs'}")


def read(folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Numbers of every source, on rgb and on low frequencies."""
    tables = []
    for view in ("rgb", "low"):
        with (folder / view / "table.csv").open() as file:
            rows = {row["source"]: row for row in csv.DictReader(file)}
        numbers = {name: {key: _number(text) for key, text in row.items()} for name, row in rows.items()}
        tables.append(numbers)
    for path in (folder / "rgb" / "distribution").glob("*.json"):
        measured = json.loads(path.read_text())
        tables[0][path.name.rpartition("-")[0]] |= {key: measured[key] for key in ("density", "coverage", "copies")}
    return tables[0], tables[1]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def judge(rgb: dict[str, dict[str, float]]) -> list[str]:
    """What must hold and does not, in words."""
    real, wrong = rgb["real"], []
    for name in SOURCES:
        row = rgb[name]
        gap = real["synth_real"] - row["synth_real"]
        error = math.hypot(real["synth_real_total"], row["synth_real_total"])
        if name == "same" and abs(gap) > 2 * error:
            wrong.append(f"same law: {gap:+.3f} from real, more than 2 standard errors of {error:.3f}")
        if name != "same" and gap <= 3 * error:
            wrong.append(f"{name}: {gap:+.3f} below real, not more than 3 standard errors of {error:.3f}")
    if rgb["collapsed"]["coverage"] >= 0.3:
        wrong.append(f"collapsed: coverage {rgb['collapsed']['coverage']:.2f}, not below 0.3")
    return wrong


def table(rgb: dict[str, dict[str, float]], low: dict[str, dict[str, float]]) -> str:
    """The numbers as Markdown."""
    columns = ["source", "Synth→Real", "Real→Synth", "gap", "density", "coverage", "copies"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in rgb.items():
        both = [f"{row[key]:.3f} ± {row[f'{key}_total']:.3f}" for key in ("synth_real", "real_synth")]
        rest = [f"{row.get(key, math.nan):.3f}" for key in ("gap", "density", "coverage", "copies")]
        lines.append(f"| {' | '.join([name, *both, *rest]).replace('nan ± nan', '-').replace('nan', '-')} |")
    for name in ("collapsed", "narrow"):
        lines.append(f"\n{name}: Real→Synth minus Synth→Real {rgb[name]['real_synth'] - rgb[name]['synth_real']:+.3f}")
    gaps = [numbers["blurred"]["relative_gap"] for numbers in (low, rgb)]
    lines.append(f"\nblurred: relative gap {gaps[0]:.1%} on low frequencies, {gaps[1]:.1%} on rgb")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Renders, measures, prints; the exit status is 1 where a fault is not found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/synthreal_proof"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a short form, of which nothing is expected")
    args = parser.parse_args(words)
    size, started = TINY if args.tiny else Size(), time.monotonic()
    render_sources(args.out, size)
    measure(args.out, size, args.jobs)
    rgb, low = read(args.out)
    print(f"\n{table(rgb, low)}\n\n{(time.monotonic() - started) / 60:.1f} minutes, {size.seeds} seeds")
    wrong = [] if args.tiny else judge(rgb)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
