"""The classes of a classifier as prompts: their names, or captions of their photos; images in class folders.

``t2ikit evaluate --snapshot`` samples them into ``images/<wnid>/00000.png``, and scores class folders of any program.
Source: "When Pretty Isn't Useful", arXiv 2602.19946: the name alone, or ``"{name}, {caption}"``, one image a caption.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

from t2ikit.classify.classes import ClassList, ImageClass, read_classes
from t2ikit.data.datamodule import DataModule
from t2ikit.files import parse_json
from t2ikit.pictures import Images, PictureFiles, find_pictures, save_png
from t2ikit.prompts import Prompt, PromptSource, check_count

Kind = Literal["names", "captions"]
_TEMPLATES: Mapping[str, str] = {"names": "{name}", "captions": "{name}, {caption}"}
_WNID = re.compile(r"n\d{8}(?=_)")
_FIELD = re.compile(r"\{(name|caption)\}")

Captioned = Iterator[tuple[int | None, str, str]]
"""Label, caption, and where it stands, of every captioned photo; label None for one of no class."""


@dataclass
class ClassPrompts(PromptSource):
    """``per_class`` prompts of every class, class by class; ``metadata`` holds ``class_id`` and ``class_name``.

    Attributes:
        kind: "names": the name of the class, the same for all of its images; "captions": a caption of one of its photos
            for each image.
        classes: "tiny200", "imagenet", or a file with one ``folder<TAB>name`` a line.
        names: "paper": as the paper's prompts have them, with their mistakes; "clear": those mended.
        per_class: images of each class.
        template: of a prompt, with ``{name}`` and ``{caption}``; None is "{name}" or "{name}, {caption}".
        captions: JSON lines, as ``t2ikit prepare captions`` writes them: ``key`` holds the class folder of the photo
            (or ``class_id`` names it), ``caption`` or ``captions`` the text; None takes the captions of ``split``.
        split: set of the data root whose records have captions and ``class_id``.
        column: which caption of a photo that has several; -1 is the last.
    """

    kind: Kind = "names"
    classes: str = "tiny200"
    names: Literal["paper", "clear"] = "paper"
    per_class: int = 500
    template: str | None = None
    captions: str | None = None
    split: str = "train"
    column: int = -1
    _data: DataModule | None = field(default=None, repr=False, compare=False, init=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"ClassPrompts: kind must be names or captions, got {self.kind!r}")
        check_count("ClassPrompts", "per_class", self.per_class)
        self._template = _TEMPLATES[self.kind] if self.template is None else self.template
        used = set(_FIELD.findall(self._template))
        if not used or (self.kind == "names" and "caption" in used) or (self.kind == "captions") > ("caption" in used):
            raise ValueError(
                f"ClassPrompts: template {self.template!r} needs {{name}} for kind names, {{caption}} (and {{name}}) "
                "for kind captions"
            )
        if self.captions is not None and self.kind == "names":
            raise ValueError("ClassPrompts: captions are for kind captions")
        if self.captions is not None and not Path(self.captions).expanduser().is_file():
            raise FileNotFoundError(f"ClassPrompts: there is no file {self.captions}: set captions")
        self.name = f"ClassPrompts {self.kind} {self.classes} {self.names}"

    def with_data(self, data: DataModule) -> PromptSource:
        if self.kind == "names" or self.captions is not None:
            return self
        source = replace(self)
        source._data = data
        return source

    def prompts(self) -> list[Prompt]:
        """``per_class`` prompts of each class.

        Raises:
            ValueError: a caption of no known class, or a class with too few captions; names it.
        """
        classes = read_classes(self.classes, self.names)
        if self.kind == "names":  # one prompt stands ``per_class`` times: 100,000 take no memory
            named = [Prompt(_filled(self._template, entry.name), _metadata(entry)) for entry in classes.classes]
            return [prompt for prompt in named for _ in range(self.per_class)]
        texts: list[list[str]] = [[] for _ in classes.classes]
        for label, caption, where in self._captions(classes):
            if label is None:
                raise ValueError(
                    f"{where} has a caption of no known class: ClassPrompts needs the class folder of every photo in "
                    "its key, or class_id, as `classes` names them"
                )
            if len(texts[label]) < self.per_class:
                texts[label].append(caption)
        prompts = []
        for entry, captions in zip(classes.classes, texts, strict=True):
            if len(captions) < self.per_class:
                raise ValueError(
                    f"class {entry.key} ({entry.name}) has {len(captions)} captions, per_class is {self.per_class}: "
                    "caption more photos of it, or lower per_class"
                )
            metadata = _metadata(entry)
            prompts += [Prompt(_filled(self._template, entry.name, caption), metadata) for caption in captions]
        return prompts

    def _captions(self, classes: ClassList) -> Captioned:
        if self.captions is not None:
            return _of_file(Path(self.captions).expanduser(), classes, self.column)
        if self._data is None:
            raise ValueError("the captions of a prepared set are read through its data module: with_data(data)")
        return _of_set(self._data, self.split, classes, self.column)

    def write_images(self, folder: Path, images: Images, prompts: Sequence[Prompt], facts: Mapping[str, str]) -> None:
        """``<class folder>/00000.png``, counted in each class."""
        for first, wnid, count in _classes_of(prompts):
            (folder / wnid).mkdir()
            for row in range(count):
                text = {"prompt": prompts[first + row].text, "index": str(first + row), **facts}
                save_png(images[first + row], folder / wnid / f"{row:05d}.png", text)

    def read_images(self, folder: Path, prompts: Sequence[Prompt]) -> Images:
        """Class folders of any program, as many pictures of a class as it has prompts, in the order of their names.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a class folder that is missing or unknown, or one with another number of pictures.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
        wanted = {wnid: count for _, wnid, count in _classes_of(prompts)}
        paths = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        folders = {unicodedata.normalize("NFC", path.name).strip(): path for path in paths}
        known = read_classes(self.classes, self.names).label_of_folder
        for name in sorted(folders.keys() - known.keys()):
            raise ValueError(f"{folder} has a folder {name}, which is no class of {self.classes}: remove it")
        files: list[Path] = []
        for wnid, count in wanted.items():
            if wnid not in folders:
                raise ValueError(f"{folder} has no class folder {wnid}: one folder a class of {self.classes} is needed")
            pictures = find_pictures(folders[wnid])
            if len(pictures) < count or (len(pictures) > count and count == self.per_class):
                raise ValueError(
                    f"{folders[wnid]} holds {len(pictures)} pictures, {count} are needed: set per_class of the prompts "
                    "to the number of pictures that every class has"
                )
            files += pictures[:count]
        return PictureFiles(files)


def _metadata(entry: ImageClass) -> dict[str, Any]:
    return {"class_id": entry.numbers[0], "class_name": entry.name, "class_folder": entry.folders[0]}


def _filled(template: str, name: str, caption: str = "") -> str:
    return _FIELD.sub(lambda match: {"name": name, "caption": caption}[match[1]], template)


def _classes_of(prompts: Sequence[Prompt]) -> Iterator[tuple[int, str, int]]:
    """First prompt, class folder and number of prompts of each class."""
    first = 0
    for wnid, members in groupby(prompts, key=lambda prompt: str(prompt.metadata["class_folder"])):
        count = sum(1 for _ in members)
        yield first, wnid, count
        first += count


def _of_set(data: DataModule, split: str, classes: ClassList, column: int) -> Captioned:
    """The captions of a prepared set; photos of classes that ``classes`` does not have are left out."""
    records = data.record_set(split)
    for index in range(len(records)):
        captions, metadata = records.view(index).details()
        number = metadata.get("class_id")
        if number is None:
            yield None, "", f"record {index} of {data.folder / split}"
        elif number in classes.label_of_number:
            yield classes.label_of_number[number], captions[column], ""


def _of_file(path: Path, classes: ClassList, column: int) -> Captioned:
    """The captions of a file; those of ImageNet's other classes are left out.

    Raises:
        ValueError: a line that is no JSON with a caption; says which.
    """
    imagenet = read_classes("imagenet").label_of_folder
    for line, text in enumerate(_lines(path), 1):
        if not text.strip():
            continue
        try:
            row = parse_json(text)
            if line == 1 and "columns" in row and "key" not in row:  # the header of `prepare captions`
                continue
            given = row["captions"] if "captions" in row else [row["caption"]]
            caption, key = str(given[column]).strip(), str(row.get("key", row.get("path", "")))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"line {line} of {path} is no caption: ClassPrompts reads JSON lines with `key` and `captions`"
            ) from error
        parts = [str(row["class_id"])] if "class_id" in row else [*key.split("/")[:-1], *_WNID.findall(key)]
        label = next((classes.label_of_folder[part] for part in parts if part in classes.label_of_folder), None)
        if label is not None or not any(part in imagenet for part in parts):
            yield label, caption, f"line {line} of {path}"


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        try:
            yield from stream
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error}): set captions of ClassPrompts") from error
