"""COCO's validation captions: a seeded, published choice of them, and the photos that they describe.

The papers take 30,000 captions and do not say which. The rule here, the same on every machine:

1. images and captions are put in the order of their ids;
2. ``rng.permutation(seed, "coco images", ...)`` puts the images in a random order, ``rng.permutation(seed, "coco
   captions", ...)`` all captions;
3. the first caption of every image comes before the second of any, and so on; captions of one rank follow the order
   of the images. The first ``count`` are taken.

So no image is asked for twice before every image was asked for once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t2ikit import rng
from t2ikit.files import below, check_text, parse_json, read_utf8, write_whole
from t2ikit.prompts import Prompt, PromptSource, check_count


@dataclass(frozen=True)
class CocoCaption:
    """One caption: ``caption_id``, ``image_id``, the image's ``file_name``, and the ``text`` on one line."""

    caption_id: int
    image_id: int
    file_name: str
    text: str


@dataclass
class CocoCaptions(PromptSource):
    """Captions of COCO's validation images, one image each, chosen by the rule of this file.

    Attributes:
        annotations: ``captions_val2014.json`` (40,504 images) or ``captions_val2017.json`` (5,000), as published on
            cocodataset.org.
        count: number of captions.
        seed: of the choice.
        images: folder of the photos (``val2014``), for `pictures`.
        chosen: where the chosen captions are written, one JSON object a line, so that they can be published.
    """

    annotations: str
    count: int = 30_000
    seed: int = 0
    images: str | None = None
    chosen: str | None = None

    def __post_init__(self) -> None:
        check_count("CocoCaptions", "count", self.count)
        self.name = f"COCO captions {Path(self.annotations).stem}, seed {self.seed}"

    def prompts(self) -> list[Prompt]:
        """The chosen captions; metadata are the ids and the file of the photo."""
        captions = self.captions()
        if self.chosen is not None:
            write_whole(self.chosen, "".join(json.dumps(vars(caption)) + "\n" for caption in captions))
        names = ("caption_id", "image_id", "file_name")
        return [Prompt(caption.text, {name: getattr(caption, name) for name in names}) for caption in captions]

    def captions(self) -> list[CocoCaption]:
        """The chosen captions in their order.

        Raises:
            FileNotFoundError: no file of annotations.
            ValueError: it does not come from COCO, or has fewer captions than ``count``.
        """
        captions = read_captions(self.annotations, "the `annotations` of CocoCaptions")
        if len(captions) < self.count:
            raise ValueError(f"{self.annotations} has {len(captions)} captions: lower the `count` of CocoCaptions")
        return choose(captions, self.count, self.seed)

    def pictures(self) -> list[Path]:
        """The photos of the chosen captions, each once, for the reference set of a Frechet distance.

        Raises:
            FileNotFoundError: ``images`` is not set, or a photo is not there.
        """
        if self.images is None:
            raise FileNotFoundError("no photos of the captions: set the `images` of CocoCaptions to their folder")
        folder = Path(self.images).expanduser()
        files = [below(folder, name) for name in dict.fromkeys(caption.file_name for caption in self.captions())]
        lacking = [file for file in files if not file.is_file()]
        if lacking:
            raise FileNotFoundError(
                f"{len(lacking)} of {len(files)} photos are not there, first {lacking[0]}: set the `images` of "
                "CocoCaptions to the folder of the same split"
            )
        return files


def read_captions(path: str | Path, option: str) -> list[CocoCaption]:
    """All captions of an official file, by their ids.

    Args:
        path: of ``captions_*.json``.
        option: what names it, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no file of captions; names the entry and what was expected.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no COCO captions {file}: set {option} to captions_val2014.json")
    try:
        content = parse_json(read_utf8(file))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): set {option}") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= set(content):
        raise ValueError(f"{file} is no file of COCO captions, it lacks 'images' and 'annotations': set {option}")
    names = {}
    for index, image in enumerate(content["images"]):
        _need(image, {"id": int, "file_name": str}, f"{file}, images[{index}]")
        names[image["id"]] = image["file_name"]
    captions = []
    for index, entry in enumerate(content["annotations"]):
        where = f"{file}, annotations[{index}]"
        _need(entry, {"id": int, "image_id": int, "caption": str}, where)
        if entry["image_id"] not in names:
            raise ValueError(f"{where}: image {entry['image_id']} is not among 'images'")
        text = " ".join(entry["caption"].split())
        check_text(text, where)
        if text:
            captions.append(CocoCaption(entry["id"], entry["image_id"], names[entry["image_id"]], text))
    ids = {caption.caption_id for caption in captions}
    if len(ids) != len(captions) or not captions:
        raise ValueError(
            f"{file} has {len(captions)} captions under {len(ids)} ids: expected an id of its own for each"
        )
    return sorted(captions, key=lambda caption: caption.caption_id)


def choose(captions: list[CocoCaption], count: int, seed: int) -> list[CocoCaption]:
    """The first ``count`` of the captions (in the order of their ids) by the rule of this file."""
    images = sorted({caption.image_id for caption in captions})
    order = rng.permutation(seed, "coco images", 0, len(images))
    position = {images[int(index)]: rank for rank, index in enumerate(order)}
    seen: dict[int, int] = {}
    ranked = []
    for index in rng.permutation(seed, "coco captions", 0, len(captions)):
        caption = captions[int(index)]
        rank = seen[caption.image_id] = seen.get(caption.image_id, -1) + 1
        ranked.append((rank, position[caption.image_id], caption))
    return [caption for _, _, caption in sorted(ranked, key=lambda entry: entry[:2])][:count]


def _need(entry: Any, kinds: dict[str, type], where: str) -> None:
    wrong = [key for key, kind in kinds.items() if not isinstance(entry, dict) or not isinstance(entry.get(key), kind)]
    if wrong:
        raise ValueError(f"{where}: expected {', '.join(f'{key!r} ({kinds[key].__name__})' for key in wrong)}")
