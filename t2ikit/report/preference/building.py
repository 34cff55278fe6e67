"""The page on which people compare pictures: one HTML file that asks nothing of any network, and its key.

Nothing in the page says which model made a picture: pictures are encoded anew without metadata, those of one prompt
have one size, their names are hashes with a salt that only the key holds, and they stand in the order of these names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from t2ikit.files import partial_of, publish, recover, write_whole
from t2ikit.photos import compress, read_rgb
from t2ikit.pictures import head_of, named
from t2ikit.report.page import template
from t2ikit.report.preference.folders import Pairing, pair
from t2ikit.report.preference.key import QUESTIONS, Key, Shown, key_file, name_of
from t2ikit.report.preference.orders import MOST_REPEATED, repeats_of

MOST_INLINE = 100_000_000
"""Bytes of pictures, as text, that a page holds itself; more of them lie in a folder beside it."""

_UNLIKE = 0.01
"""Relative difference of two aspect ratios from which on it can be seen."""


@dataclass(frozen=True)
class Built:
    """What was written.

    Attributes:
        key: also in the file.
        page, key_path: the files.
        pictures: folder of the pictures, or None: they are in the page.
        comparisons: of a rater who answers everything, repeats included.
        enlarged: pictures that were brought to the size of a larger one of their prompt, by model.
    """

    key: Key
    page: Path
    key_path: Path
    pictures: Path | None
    comparisons: int
    enlarged: dict[str, int]


def build(
    folders: Mapping[str, Path],
    out: Path,
    salt: str,
    questions: Sequence[str] = tuple(QUESTIONS),
    repeat: float = 0.05,
    seed: int = 0,
    prompts: str | Path | None = None,
) -> Built:
    """Writes a page, and its key beside it; the same arguments give the same bytes.

    Args:
        folders: model -> folder of its pictures, two or more.
        out: the page, NAME.html.
        salt: secret, for the names of the pictures.
        questions: names of ``QUESTIONS``.
        repeat: share of the comparisons that a rater sees again, at most a half.
        seed: of the orders.
        prompts: see :func:`t2ikit.report.preference.folders.pair`.

    Raises:
        FileNotFoundError: a folder or a picture is missing.
        ValueError: what does not fit, and what to change; nothing is written then.
    """
    _check(folders, out, questions, repeat)
    pairing = pair(folders, prompts)
    sizes = {number: _size(number, pictures) for number, pictures in pairing.pictures.items()}
    names = {
        (number, model): name_of(salt, model, number)
        for number, pictures in pairing.pictures.items()
        for model in pictures
    }
    key = _key(folders, pairing, names, salt, questions, repeat, seed)
    # In the order of their names: the times of the files say nothing either.
    sources = {name: (pairing.pictures[number][model], sizes[number]) for (number, model), name in names.items()}
    beside = out.with_suffix(".pictures")
    recover(beside)
    partial = partial_of(beside)
    partial.mkdir(parents=True)
    try:
        total = 0
        # Shown in a terminal alone: a thousand pictures of 1024 pixels take minutes.
        for name in tqdm(sorted(sources), desc="pictures", unit="picture", mininterval=0.5, disable=None):
            content = picture_of(*sources[name])
            (partial / f"{name}.png").write_bytes(content)
            total += (len(content) + 2) // 3 * 4
        inline = total <= MOST_INLINE
        # The key first: a page without one would be answered in vain.
        write_whole(key_file(out), key.to_json())
        if not inline:
            publish(partial, beside)
        held = {name: _base64((partial / f"{name}.png").read_bytes()) for name in sorted(sources)} if inline else {}
        write_whole(out, page_of(key, held, None if inline else beside))
    except BaseException:  # neither was there before: see _check
        key_file(out).unlink(missing_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    enlarged = {model: _enlarged(model, pairing, sizes) for model in folders}
    count = len(pairing.prompts) * comb(len(folders), 2) + key.repeats
    return Built(key, out, key_file(out), None if inline else beside, count * len(questions), enlarged)


def _check(folders: Mapping[str, Path], out: Path, questions: Sequence[str], repeat: float) -> None:
    """Refuses arguments that cannot give a page, before anything is read."""
    if len(folders) < 2:
        raise ValueError("a comparison needs two models: give A=DIR B=DIR")
    for model in folders:
        if re.search("[\ud800-\udfff]", model):  # what Python makes of bytes that are no UTF-8
            raise ValueError(f"{ascii(model)}=DIR: the name of the model is no UTF-8 text: give another name")
    unknown = [name for name in questions if name not in QUESTIONS]
    if unknown or not questions or len(set(questions)) < len(questions):
        raise ValueError(f"--questions {','.join(questions)}: give one or more of {', '.join(QUESTIONS)}, each once")
    if not 0.0 <= repeat <= MOST_REPEATED:
        raise ValueError(f"--repeat {repeat:g}: a share from 0 to {MOST_REPEATED:g} can be shown again")
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: it is an HTML file: give a name that ends with .html, such as page.html")
    for path in (out, key_file(out), out.with_suffix(".pictures")):
        if path.exists():
            raise ValueError(
                f"--out {out}: {path} is there, and answers to its page can be read with its key alone: give another "
                "name, or remove page and key"
            )


def _key(
    folders: Mapping[str, Path],
    pairing: Pairing,
    names: Mapping[tuple[str, str], str],
    salt: str,
    questions: Sequence[str],
    repeat: float,
    seed: int,
) -> Key:
    prompts = tuple(
        Shown(number, text, {model: names[number, model] for model in folders})
        for number, text in pairing.prompts.items()
    )
    repeats = repeats_of(repeat, len(prompts) * comb(len(folders), 2))
    models = {model: str(folder) for model, folder in folders.items()}
    key = Key("", seed, salt, tuple(questions), repeats, models, prompts, pairing.left_out)
    identity = hashlib.sha256(json.dumps(data_of(key), sort_keys=True).encode()).hexdigest()[:16]
    return Key(identity, seed, salt, key.questions, repeats, models, prompts, pairing.left_out)


def _size(number: str, pictures: Mapping[str, Path]) -> tuple[int, int]:
    """(width, height) of the largest picture of a prompt, which all get.

    Raises:
        ValueError: unlike aspect ratios, which would tell the models apart; names two files.
    """
    sizes = {path: head_of(path) for path in pictures.values()}
    largest = max(sizes, key=lambda path: sizes[path][0] * sizes[path][1])
    width, height = sizes[largest]
    for path, (other_width, other_height) in sizes.items():
        if abs(other_width * height / (other_height * width) - 1) > _UNLIKE:
            raise ValueError(
                f"picture {number} has {width} x {height} pixels in {largest}, {other_width} x {other_height} in {path}"
                ": the shape would tell whose it is: bring all to one aspect ratio"
            )
    return width, height


def _enlarged(model: str, pairing: Pairing, sizes: Mapping[str, tuple[int, int]]) -> int:
    return sum(head_of(pictures[model]) != sizes[number] for number, pictures in pairing.pictures.items())


def picture_of(path: Path, size: tuple[int, int]) -> bytes:
    """A picture as a PNG without metadata.

    Args:
        path: of any format that the kit reads.
        size: (width, height) that it gets, by Lanczos' filter.

    Raises:
        ValueError: it is no whole picture; names it.
    """
    with named(path):
        pixels = read_rgb(path.read_bytes())
    if pixels.shape[1:] != (size[1], size[0]):
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    return compress(pixels, "png")


# ------------------------------------------------------------------ the page


def data_of(key: Key) -> dict[str, Any]:
    """What the page knows."""
    prompts = [
        {"id": shown.prompt, "text": shown.text, "pictures": sorted(shown.pictures.values())} for shown in key.prompts
    ]
    questions = [{"name": name, "text": QUESTIONS[name]} for name in key.questions]
    # The seed as text: numbers of JavaScript are exact up to 2^53 alone.
    seed = str(key.seed)
    return {"page": key.page, "seed": seed, "questions": questions, "repeats": key.repeats, "prompts": prompts}


def page_of(key: Key, pictures: Mapping[str, str], folder: Path | None) -> str:
    """The HTML of a page.

    Args:
        key: its prompts and names.
        pictures: name -> the picture as base64, where the page holds them.
        folder: of the pictures, beside the page, or None.
    """
    script, style = script_of_page(), _part("preference.css")
    # "file:" for a page from the disk, which has no origin of its own; 'self' for one from a server.
    sources = "data:" if folder is None else "data: 'self' file:"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src {sources}; "
        "base-uri 'none'; form-action 'none'"
    )
    data = data_of(key) | {"folder": None if folder is None else folder.name}
    # "<" would end the element in a prompt such as "</script>"; other letters of all scripts are escaped as ASCII.
    text = json.dumps(data).replace("<", "\\u003c")
    return template("preference.html").render(policy=policy, style=style, script=script, data=text, pictures=pictures)


def script_of_page() -> str:
    """The script of the page, which knows no prompt and no picture."""
    return f"{_part('preference_order.js')}\n{_part('preference.js')}"


def _part(name: str) -> str:
    return files("t2ikit.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + _base64(hashlib.sha256(text.encode()).digest())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
