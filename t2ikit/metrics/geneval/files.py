"""GenEval's official files, so that images made here can be scored by the official program, and the reverse.

FOLDER/00000/metadata.jsonl          one JSON object: the line of the benchmark
FOLDER/00000/samples/00000.png ...   its images
FOLDER/00000/grid.png                all of them in one picture (optional, never read)
results.jsonl                        one line an image: filename, tag, prompt, correct, reason, metadata, details
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ikit.files import check_text, parse_json, read_lines, write_whole
from t2ikit.metrics.base import Samples
from t2ikit.metrics.geneval.rules import check_metadata
from t2ikit.photos import SUFFIXES
from t2ikit.pictures import Images, PictureFiles, save_grid, save_png

RESULT_KEYS = ("filename", "tag", "prompt", "correct", "reason", "metadata", "details")


@dataclass(frozen=True)
class PromptFolder:
    """The images of one prompt: ``folder`` with its ``metadata`` and its ``pictures`` in the order of their numbers."""

    folder: Path
    metadata: dict[str, Any]
    pictures: list[Path]


def metadata_key(metadata: Mapping[str, Any]) -> str:
    """Text that is equal for equal metadata, whatever the order of its keys."""
    return json.dumps(metadata, sort_keys=True)


def picture_names(metadata: Sequence[Mapping[str, Any]]) -> list[str]:
    """The place of every image below the folder: ``00000/samples/00000.png``, prompts by their first appearance."""
    prompts: dict[str, list[int]] = {}
    names = []
    for entry in metadata:
        counted = prompts.setdefault(metadata_key(entry), [len(prompts), 0])
        names.append(f"{counted[0]:05d}/samples/{counted[1]:05d}.png")
        counted[1] += 1
    return names


def read_metadata(path: str | Path, option: str = "path") -> list[dict[str, Any]]:
    """The lines of ``evaluation_metadata.jsonl``.

    Args:
        path: the file.
        option: what names it, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that does not belong to the benchmark; names file, line and what was expected.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"no GenEval metadata {file}: set {option} to evaluation_metadata.jsonl of github.com/djghosh13/geneval"
        )
    rows = [(line_number, _json(line, f"{file}, line {line_number}")) for line_number, line in _lines(file)]
    if not rows:
        raise ValueError(f"{file} holds no line: expected one JSON object a prompt")
    for line_number, row in rows:
        check_metadata(row, f"{file}, line {line_number}")
    return [row for _, row in rows]


def write_folder(
    folder: str | Path, samples: Samples, facts: Mapping[str, str] | None = None, grid: bool = False
) -> list[Path]:
    """Writes images in the official layout.

    Args:
        folder: an empty one; it is made.
        samples: images with the benchmark's metadata; in any order.
        facts: how they were made, for the text entries of the PNG files.
        grid: also ``grid.png``, all images of a prompt side by side.

    Returns:
        The image files, in the order of the samples.

    Raises:
        ValueError: metadata that does not belong to GenEval, or a folder that is not empty.
    """
    root = Path(folder)
    if root.is_dir() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty: name another folder, the official program would score both")
    _check_samples(samples)
    paths = [root / name for name in picture_names(samples.metadata)]
    rows: dict[Path, list[int]] = {}
    for index, path in enumerate(paths):
        rows.setdefault(path.parent.parent, []).append(index)
    for prompt_folder, indices in rows.items():
        metadata = samples.metadata[indices[0]]
        (prompt_folder / "samples").mkdir(parents=True)
        write_whole(prompt_folder / "metadata.jsonl", json.dumps(metadata))
        for index in indices:
            save_png(samples.images[index], paths[index], {"prompt": _text(samples, index), **(facts or {})})
        if grid:
            save_grid(samples.images[indices], prompt_folder / "grid.png")
    return paths


def find_prompt_folders(folder: str | Path) -> list[PromptFolder]:
    """The prompts of a folder in the official layout, by number.

    Raises:
        FileNotFoundError: no such folder, or a part of it is missing.
        ValueError: a name or a metadata file that breaks the layout; names it and the rule.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: name one in GenEval's layout (<number>/samples/<number>.png)")
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in folders:
        if not path.name.isdecimal() and (path / "metadata.jsonl").exists():
            raise ValueError(f"{path}: the folder of a prompt is named by digits alone (00000, 00001, ...): rename it")
    numbered = sorted((path for path in folders if path.name.isdecimal()), key=lambda path: (int(path.name), path.name))
    if not numbered:
        raise FileNotFoundError(f"no folder of a prompt (00000, 00001, ...) in {root}: it is not in GenEval's layout")
    return [PromptFolder(path, _metadata(path), _pictures(path)) for path in numbered]


def read_images(folder: str | Path, metadata: Sequence[Mapping[str, Any]]) -> Images:
    """The images of a folder in the official layout for given prompts, found by their metadata.

    Args:
        folder: of any model.
        metadata: one entry an image that is wanted; several of one prompt take its pictures in their order.

    Returns:
        [N, 3, H, W] uint8, which stay on disk.

    Raises:
        FileNotFoundError, ValueError: see `find_prompt_folders`; a prompt that is not there or has another number of
            pictures; or pictures that are broken or of unlike sizes.
    """
    by_metadata = {metadata_key(prompt.metadata): prompt for prompt in find_prompt_folders(folder)}
    wanted: dict[str, int] = {}
    chosen = []
    for entry in metadata:
        key = metadata_key(entry)
        if key not in by_metadata:
            raise ValueError(f"no folder in {folder} has the metadata of the prompt {entry.get('prompt')!r}")
        chosen.append((by_metadata[key], wanted.get(key, 0)))
        wanted[key] = wanted.get(key, 0) + 1
    for key, count in wanted.items():
        if len(by_metadata[key].pictures) != count:
            pictures = f"{by_metadata[key].folder} holds {len(by_metadata[key].pictures)} pictures"
            raise ValueError(f"{pictures}, {count} are asked for: set images_per_prompt")
    return PictureFiles([prompt.pictures[index] for prompt, index in chosen])


def results_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """The text of ``results.jsonl`` as the official program writes it: one line an image."""
    return "".join(json.dumps({key: row[key] for key in RESULT_KEYS}) + "\n" for row in rows)


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``results.jsonl``, of this kit or of the official program; what ``summarize`` takes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no row, or a line that is no result; names file, line and what was expected.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no GenEval results {file}: name a results.jsonl")
    rows = []
    for line_number, line in _lines(file):
        where = f"{file}, line {line_number}"
        row = _json(line, where)
        missing = sorted({"tag", "correct", "metadata"} - set(row if isinstance(row, dict) else ()))
        if missing:
            raise ValueError(f"{where}: a result needs {', '.join(map(repr, missing))}")
        if not isinstance(row["correct"], bool):
            raise ValueError(f"{where}: 'correct' is true or false; got {row['correct']!r}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} holds no result")
    return rows


def _check_samples(samples: Samples) -> None:
    if len(samples) == 0 or len(samples.metadata) != len(samples):
        raise ValueError(f"GenEval needs images with its metadata; got {len(samples)} and {len(samples.metadata)}")
    for index, entry in enumerate(samples.metadata):
        check_metadata(entry, f"image {index}")


def _text(samples: Samples, index: int) -> str:
    return samples.prompts[index] if samples.prompts else str(samples.metadata[index]["prompt"])


def _metadata(folder: Path) -> dict[str, Any]:
    file = folder / "metadata.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"no {file}: every prompt has its line of evaluation_metadata.jsonl there")
    lines = [line for _, line in _lines(file)]
    if len(lines) != 1:
        raise ValueError(f"{file}: expected one JSON object on one line; got {len(lines)} lines")
    metadata = _json(lines[0], f"{file}, line 1")
    check_metadata(metadata, f"{file}, line 1")
    return dict(metadata)


def _pictures(folder: Path) -> list[Path]:
    samples = folder / "samples"
    if not samples.is_dir():
        raise FileNotFoundError(f"no folder {samples}: the images of the prompt belong there")
    pictures = [path for path in samples.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    for path in pictures:
        if not re.fullmatch(r"\d+\.png", path.name):
            raise ValueError(f"{path}: the official program reads names of digits with .png only: rename it")
    if not pictures:
        raise FileNotFoundError(f"no image in {samples}: expected 00000.png, 00001.png, ...")
    return sorted(pictures, key=lambda path: (int(path.stem), path.name))


def _lines(file: Path) -> list[tuple[int, str]]:
    """Numbers and texts of the lines that are not empty."""
    return [(line_number, line) for line_number, line in enumerate(read_lines(file), start=1) if line.strip()]


def _json(line: str, where: str) -> Any:
    try:
        content = parse_json(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object ({error})") from error
    check_text(json.dumps(content, ensure_ascii=False), where)
    return content
