"""The pictures of several models, paired by number: folders of ``t2ikit sample``, and kept images of snapshots.

    DIR/00000.png                          sample, and most prompt sources
    DIR/n01440764/00000.png                class folders
    DIR/00000/samples/00000.png            GenEval
    DIR/partiprompts7.png                  DPG-Bench, one grid a prompt

Each PNG holds its prompt as text. Pictures of other programs need a file of prompts, and a number as name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.PngImagePlugin import PngImageFile

from t2ikit.files import check_text, read_lines
from t2ikit.photos import SUFFIXES
from t2ikit.pictures import head_of, named
from t2ikit.prompts import read_prompts


@dataclass(frozen=True)
class Found:
    """A picture in the folder of a model.

    Attributes:
        path: of the file.
        prompt: its text.
    """

    path: Path
    prompt: str


@dataclass(frozen=True)
class Pairing:
    """The pictures of several models, by what they share.

    Attributes:
        prompts: number -> text; in the order of the numbers.
        pictures: number -> model -> file.
        left_out: number -> the models that lack it.
    """

    prompts: dict[str, str]
    pictures: dict[str, dict[str, Path]]
    left_out: dict[str, list[str]]


def pair(folders: Mapping[str, Path], prompts: str | Path | None = None) -> Pairing:
    """Finds the pictures that every model has.

    Args:
        folders: model -> folder, two or more.
        prompts: a text file with one prompt a line: line N is the prompt of the pictures called N, from 0. For pictures
            that do not hold their prompt.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a folder twice, a picture without a prompt, unlike prompts of one number (names both), or no number
            that all models have.
    """
    resolved: dict[Path, str] = {}
    for model, folder in folders.items():
        if folder.resolve() in resolved:
            raise ValueError(f"{model}={folder} is the folder of {resolved[folder.resolve()]} too: name another one")
        resolved[folder.resolve()] = model
    texts = None if prompts is None else _numbered_prompts(prompts)
    found = {model: find(folder, texts) for model, folder in folders.items()}
    numbers = sorted({number for pictures in found.values() for number in pictures})
    pairing = Pairing({}, {}, {})
    for number in numbers:
        there = {model: pictures[number] for model, pictures in found.items() if number in pictures}
        _check_same(number, there)
        lacking = [model for model in folders if model not in there]
        if lacking:
            pairing.left_out[number] = lacking
        else:
            pairing.prompts[number] = next(iter(there.values())).prompt
            pairing.pictures[number] = {model: picture.path for model, picture in there.items()}
    if not pairing.prompts:
        examples = ", ".join(f"{next(iter(pictures))} of {model}" for model, pictures in found.items())
        raise ValueError(f"no number has a picture of every model (there are {examples}): name folders that pair")
    return pairing


def _numbered_prompts(path: str | Path) -> list[str]:
    """The lines of a file of prompts, where the number of a line counts.

    Raises:
        FileNotFoundError, ValueError: see :func:`t2ikit.prompts.read_prompts`, which leaves empty lines out; one before
            the last prompt would give all after it to other pictures.
    """
    prompts = read_prompts(path, "--prompts")
    for number, line in enumerate(read_lines(Path(path).expanduser())[: len(prompts)]):
        if not line.strip():
            raise ValueError(
                f"--prompts {path}: line {number} (from 0) is empty, and line N is the prompt of the pictures called N"
                ": write its prompt, or remove the line"
            )
    return prompts


def find(folder: Path, texts: Sequence[str] | None) -> dict[str, Found]:
    """The pictures of a folder and of those in it, by number: their path without suffix, digits as five.

    Pictures that have neither a prompt nor a number, such as ``grid.png``, are passed over.

    Args:
        folder: of one model.
        texts: prompts by number, or None: each picture holds its own.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        ValueError: two files of one number, or a picture without a prompt.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: name one of `t2ikit sample` or of kept images")
    found: dict[str, Found] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).with_suffix("").parts
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or any(part.startswith(".") for part in parts):
            continue
        prompt = _prompt_of(path, texts)
        if prompt is None:
            continue
        check_text(prompt, f"the prompt of {path}")
        number = "/".join(f"{int(part):05d}" if _is_number(part) else part for part in parts)
        check_text(number, f"the name of {path}")
        if number in found:
            raise ValueError(f"{found[number].path} and {path} have the same number: remove one of them")
        found[number] = Found(path, prompt)
    if not found:
        raise FileNotFoundError(f"no picture in {folder} that has a prompt or a number, such as 00000.png")
    return found


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _prompt_of(path: Path, texts: Sequence[str] | None) -> str | None:
    """The prompt of a picture; None where it is none of those to compare.

    Raises:
        ValueError: it is a numbered picture without prompt, or with another one than the file of prompts says.
    """
    held = text_of(path)
    numbered = _is_number(path.stem)
    if texts is None:
        if "prompt" not in held and numbered:
            raise ValueError(
                f"{path} does not hold its prompt: give --prompts FILE, whose line N (from 0) is the prompt of the "
                "pictures called N"
            )
        return held.get("prompt")
    own = held.get("prompt") if held.get("Software", "").startswith("t2ikit ") else None
    if not numbered:
        return own
    if int(path.stem) >= len(texts):
        raise ValueError(f"{path}: --prompts has {len(texts)} lines, for the numbers 0 to {len(texts) - 1}")
    prompt = texts[int(path.stem)]
    if own is not None and own != prompt:
        raise ValueError(f"{path} has the prompt {own!r}, --prompts says {prompt!r}: give the prompts of its sampling")
    return prompt


def text_of(path: Path) -> dict[str, str]:
    """The text entries of a PNG file; none of any other one.

    Raises:
        ValueError: it is no picture; names it.
    """
    if path.suffix.lower() != ".png":
        return {}
    head_of(path)
    with named(path), path.open("rb") as file:
        if file.read(8) != b"\x89PNG\r\n\x1a\n":
            return {}  # of another format than its name says
        file.seek(0)
        # Not by `Image.open`, whose limit of pixels is lower than that of t2ikit.photos. Of `info`, not of `text`: the
        # entries stand before the pixels, which need no decoding.
        with PngImageFile(file) as image:
            entries = image.info.items()
            return {key: value for key, value in entries if isinstance(key, str) and isinstance(value, str)}


def _check_same(number: str, there: Mapping[str, Found]) -> None:
    """Refuses unlike prompts of one number."""
    (model, first), *others = there.items()
    for other, picture in others:
        if picture.prompt != first.prompt:
            raise ValueError(
                f"picture {number} of {model} and of {other} have unlike prompts, {first.prompt!r} and "
                f"{picture.prompt!r} ({first.path}, {picture.path}): compare folders of the same prompts"
            )
