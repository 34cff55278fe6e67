"""The numbers of the papers, by the row that a run repeats: the tables of docs/reproduce.md for a report.

Sources: "How far can we go with ImageNet for Text-to-Image generation?", versions 1 and 2; "Greedy growing enables
high-resolution pixel-based diffusion models", Table 6. A test compares every number with docs/reproduce.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

GROWING = "Greedy growing, Table 6"
STEPS = {"v1": 250_000, "v2": 250_000, GROWING: 2_000_000}
_ORIGINAL, _EXTENDED = "original prompts", "extended prompts"
_DISTRIBUTION = "dinov2/frechet_distance dinov2/precision dinov2/recall dinov2/density dinov2/coverage"
_TASKS = "single_object two_object counting colors position color_attr"
_FID = "inception/frechet_distance"


@dataclass(frozen=True)
class Published:
    """A number of a paper.

    Attributes:
        row: as docs/reproduce.md calls it, such as "CAD-I TA + CutMix".
        version: of the paper, "v1" or "v2", or the paper.
        score: ``<snapshot>/<name>``, as a run logs it; a snapshot "*" is any.
        prompts: "" or which ones of GenEval.
        value: the number, in the unit of the score.
    """

    row: str
    version: str
    score: str
    prompts: str
    value: float

    @property
    def column(self) -> str:
        """Heading of its column in a table of scores."""
        return f"paper, {self.version}{', ' if self.prompts else ''}{self.prompts}"

    def matches(self, score: str) -> bool:
        """Whether it is a number of the score ``<snapshot>/<name>``."""
        snapshot, _, name = self.score.partition("/")
        return score == self.score or (snapshot == "*" and score.partition("/")[2] == name)


# Which rows a run repeats, by run.name: those of docs/reproduce.md.
ROWS = {
    "cad_i_aio": "CAD-I AIO",
    "cad_i_ta": "CAD-I TA",
    "cad_i_cmall": "CAD-I TA + CutMix",
    "cad_i_crop": "CAD-I TA + Crop",
    "dit_i_aio": "DiT-I AIO",
    "dit_i_ta": "DiT-I TA",
    "dit_i_cmall": "DiT-I TA + CutMix",
    "dit_i_crop": "DiT-I TA + Crop",
    "cad_i_flow_ta": "CAD-I Flow TA",
    "cad_i_flow_cmall": "CAD-I Flow TA + CutMix",
    **{
        f"uvit_{size.lower()}_{way}": f"{size} {way}"
        for size in ("Base", "Large", "Huge", "XHuge")
        for way in ("scratch", "finetuned", "frozen", "thawed")
        if size != "XHuge" or way in ("frozen", "thawed")  # the others diverged
    },
}

# version | snapshot | prompts | names of the scores, then `row: numbers`; a dash is not given.
_TABLES = f"""
v1 | imagenet_val | | {_FID}
CAD-I AIO: 84.77
CAD-I TA: 6.16
CAD-I TA + CutMix: 6.62
DiT-I AIO: 23.13
DiT-I TA: 8.22
DiT-I TA + CutMix: 8.52
v2 | imagenet_val | | {_FID}
CAD-I AIO: 84.77
CAD-I TA: 6.16
CAD-I TA + CutMix: 6.62
DiT-I AIO: 20.14
DiT-I TA: 6.29
DiT-I TA + CutMix: 7.30
DiT-I TA + Crop: 6.20
v1 | geneval | {_ORIGINAL} | overall
CAD-I AIO: 0.17
CAD-I TA: 0.51
CAD-I TA + CutMix: 0.55
DiT-I AIO: 0.07
DiT-I TA: 0.25
DiT-I TA + CutMix: 0.24
v1 | geneval_extended | {_EXTENDED} | overall
CAD-I AIO: 0.04
CAD-I TA: 0.55
CAD-I TA + CutMix: 0.57
DiT-I AIO: 0.00
DiT-I TA: 0.55
DiT-I TA + CutMix: 0.57
v2 | geneval_extended | {_EXTENDED} | overall
CAD-I AIO: 0.17
CAD-I TA: 0.55
CAD-I TA + CutMix: 0.57
CAD-I TA + Crop: 0.54
DiT-I AIO: 0.11
DiT-I TA: 0.55
DiT-I TA + CutMix: 0.58
DiT-I TA + Crop: 0.54
v1 | imagenet_val | | {_DISTRIBUTION} clip_score jina_clip_score
CAD-I AIO: 904.50 0.75 0.05 1.40 0.10 8.94 20.55
CAD-I TA: 91.53 0.80 0.72 0.89 0.76 8.69 38.01
CAD-I TA + CutMix: 91.72 0.80 0.70 0.90 0.76 8.53 38.17
DiT-I AIO: 354.84 0.66 0.17 0.62 0.41 25.71 32.93
DiT-I TA: 112.55 0.75 0.73 0.78 0.68 9.06 38.77
DiT-I TA + CutMix: 114.54 0.75 0.73 0.78 0.68 9.22 38.75
v2 | imagenet_val | | {_DISTRIBUTION} clip_score jina_clip_score
DiT-I AIO: - 0.67 0.29 0.71 0.39 - 31.21
DiT-I TA: - 0.77 0.76 0.82 0.72 - 38.45
DiT-I TA + CutMix: - 0.79 0.74 0.88 0.75 - 38.77
DiT-I TA + Crop: - 0.77 0.75 0.83 0.74 - 38.45
v1 | coco | | {_FID} {_DISTRIBUTION} clip_score jina_clip_score
CAD-I AIO: 46.35 858.43 0.52 0.18 0.45 0.15 12.89 14.06
CAD-I TA: 46.93 655.37 0.66 0.42 0.61 0.28 26.37 35.72
CAD-I TA + CutMix: 49.41 646.51 0.66 0.41 0.57 0.29 26.60 36.51
DiT-I AIO: 252.22 2372.27 0.24 0.05 0.15 0.02 13.16 8.64
DiT-I TA: 34.19 664.20 0.57 0.35 0.46 0.23 24.44 33.94
DiT-I TA + CutMix: 36.46 656.57 0.57 0.36 0.47 0.24 24.85 34.51
v2 | coco | | {_FID} {_DISTRIBUTION} clip_score jina_clip_score
CAD-I AIO: 46.35 858.43 0.52 0.18 0.45 0.15 12.89 14.06
CAD-I TA: 46.93 655.37 0.66 0.42 0.61 0.28 26.37 35.72
CAD-I TA + CutMix: 49.41 646.51 0.66 0.41 0.57 0.29 26.60 36.51
DiT-I AIO: 71.00 1107.22 0.46 0.07 0.37 0.08 18.03 22.42
DiT-I TA: 45.71 631.91 0.64 0.44 0.52 0.29 25.52 36.63
DiT-I TA + CutMix: 49.12 631.01 0.65 0.45 0.54 0.30 25.68 36.80
DiT-I TA + Crop: 44.02 627.78 0.63 0.41 0.51 0.29 25.46 38.39
v1 | geneval | {_ORIGINAL} | {_TASKS}
CAD-I AIO: 0.82 0.04 0.03 0.13 0.25 0.25
CAD-I TA: 0.95 0.56 0.37 0.79 0.14 0.29
CAD-I TA + CutMix: 0.94 0.64 0.38 0.77 0.21 0.37
DiT-I AIO: 0.33 0.00 0.00 0.06 0.00 0.00
DiT-I TA: 0.71 0.16 0.17 0.39 0.05 0.04
DiT-I TA + CutMix: 0.65 0.10 0.17 0.44 0.03 0.02
v1 | geneval_extended | {_EXTENDED} | {_TASKS}
CAD-I AIO: 0.20 0.01 0.00 0.02 0.00 0.00
CAD-I TA: 0.97 0.60 0.42 0.74 0.26 0.35
CAD-I TA + CutMix: 0.94 0.68 0.40 0.70 0.35 0.36
DiT-I AIO: 0.00 0.00 0.00 0.00 0.00 0.00
DiT-I TA: 0.95 0.61 0.36 0.80 0.28 0.33
DiT-I TA + CutMix: 0.96 0.68 0.36 0.74 0.28 0.39
v2 | geneval_extended | {_EXTENDED} | {_TASKS}
CAD-I TA: 0.97 0.60 0.42 0.74 0.26 0.35
CAD-I TA + CutMix: 0.94 0.68 0.40 0.70 0.35 0.36
CAD-I TA + Crop: 0.96 0.61 0.40 0.71 0.23 0.33
DiT-I TA: 0.95 0.61 0.36 0.80 0.28 0.33
DiT-I TA + CutMix: 0.95 0.67 0.43 0.80 0.30 0.35
DiT-I TA + Crop: 0.96 0.56 0.38 0.79 0.22 0.33
v1 | dpg | | dpg_bench/global dpg_bench/entity dpg_bench/attribute dpg_bench/relation dpg_bench/other dpg_bench
CAD-I TA + CutMix: 80.85 87.48 85.32 93.54 78.00 79.94
DiT-I TA + CutMix: 76.29 84.77 83.34 92.22 70.80 75.99
v2 | parti | | pick_score aesthetic hps_v2 image_reward
CAD-I TA: 20.03 5.17 0.24 0.22
CAD-I TA + CutMix: 20.03 5.16 0.24 0.30
CAD-I Flow TA: 20.61 4.96 0.24 0.10
CAD-I Flow TA + CutMix: 20.57 5.00 0.24 0.09
DiT-I TA: 20.74 5.29 0.25 0.18
DiT-I TA + Crop: 20.63 5.17 0.24 0.12
DiT-I TA + CutMix: 20.81 5.34 0.25 0.26
{GROWING} | * | | dsg
Base scratch: 64.83
Base finetuned: 62.75
Base frozen: 61.16
Base thawed: 66.13
Large scratch: 66.02
Large finetuned: 67.39
Large frozen: 72.13
Large thawed: 67.79
Huge scratch: 66.90
Huge finetuned: 69.67
Huge frozen: 75.15
Huge thawed: 71.50
XHuge frozen: 75.70
XHuge thawed: 73.53
"""


@cache
def published() -> tuple[Published, ...]:
    """Every number."""
    return tuple(_numbers())


def numbers_of(row: str) -> list[Published]:
    """The numbers of a row, of every version of its paper."""
    return [entry for entry in published() if entry.row == row]


def row_of(name: object, data: object) -> str | None:
    """The row that a run repeats by its ``run.name``; None for none, or where it is trained on rendered shapes."""
    return None if "Shapes" in str(data).rpartition(".")[2] else ROWS.get(str(name))


def _numbers() -> Iterator[Published]:
    version, snapshot, prompts, names = "", "", "", list[str]()
    for line in _TABLES.strip().splitlines():
        if "|" in line:
            version, snapshot, prompts, words = (part.strip() for part in line.split("|"))
            names = words.split()
            continue
        row, _, values = line.partition(": ")
        for name, value in zip(names, values.split(), strict=True):
            if re.fullmatch(r"[\d.]+", value):
                yield Published(row, version, f"{snapshot}/{name}", prompts, float(value))


def by_column(row: str) -> Mapping[str, list[Published]]:
    """The numbers of a row by the heading of their column."""
    columns: dict[str, list[Published]] = {}
    for entry in numbers_of(row):
        columns.setdefault(entry.column, []).append(entry)
    return columns
