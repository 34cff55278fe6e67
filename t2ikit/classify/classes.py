"""The classes of a classifier: their order is the order of the labels.

A class is known by its folder, a wnid for ImageNet, never by its place in a listing: a folder that is missing does not
shift the labels of the others.

Source: "When Pretty Isn't Useful", arXiv 2602.19946, Appendix D: 200 classes, those of Tiny ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from t2ikit.prepare.sources.classes import imagenet_classes, read_class_names

TINY200_WNIDS = """
    n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384 n01774750
    n01784675 n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731 n01983481 n01984695
    n02002724 n02056570 n02058221 n02074367 n02085620 n02094433 n02099601 n02099712 n02106662 n02113799
    n02123045 n02123394 n02124075 n02125311 n02129165 n02132136 n02165456 n02190166 n02206856 n02226429
    n02231487 n02233338 n02236044 n02268443 n02279972 n02281406 n02321529 n02364673 n02395406 n02403003
    n02410509 n02415577 n02423022 n02437312 n02480495 n02481823 n02486410 n02504458 n02509815 n02666196
    n02669723 n02699494 n02730930 n02769748 n02788148 n02791270 n02793495 n02795169 n02802426 n02808440
    n02814533 n02814860 n02815834 n02823428 n02837789 n02841315 n02843684 n02883205 n02892201 n02906734
    n02909870 n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304 n02999410 n03014705
    n03026506 n03042490 n03085013 n03089624 n03100240 n03126707 n03160309 n03179701 n03201208 n03250847
    n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034 n03447447 n03544143
    n03584254 n03599486 n03617480 n03637318 n03649909 n03662601 n03670208 n03706229 n03733131 n03763968
    n03770439 n03796401 n03804744 n03814639 n03837869 n03838899 n03854065 n03891332 n03902125 n03930313
    n03937543 n03970156 n03976657 n03977966 n03980874 n03983396 n03992509 n04008634 n04023962 n04067472
    n04070727 n04074963 n04099969 n04118538 n04133789 n04146614 n04149813 n04179913 n04251144 n04254777
    n04259630 n04265275 n04275548 n04285008 n04311004 n04328186 n04356056 n04366367 n04371430 n04376876
    n04398044 n04399382 n04417672 n04456115 n04465501 n04486054 n04487081 n04501370 n04507155 n04532106
    n04532670 n04540053 n04560804 n04562935 n04596742 n04597913 n06596364 n07579787 n07583066 n07614500
    n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607 n07749582 n07753592 n07768694
    n07871810 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890 n09428293 n12267677
""".split()  # noqa: SIM905 (200 quoted names are hard to read)
"""The 200 wnids, ascending: a label is an index into this list."""

_PAPER = {  # where the paper's prompts differ from the first synonym in lower case
    "n02123045": "tabby cat",
    "n02226429": "grasshoppe",
    "n02509815": "panda",
    "n02988304": "CD player",
    "n03584254": "iPod",
    "n03854065": "pipe organ",
    "n04399382": "teddy bear",
    "n04417672": "thatched roof",
    "n07615774": "lollipop",
}

_CLEAR = {  # a misspelt name, an animal that is another one, and names of several things
    "n02226429": "grasshopper",
    "n02279972": "monarch butterfly",
    "n02509815": "red panda",
    "n02892201": "brass plaque",
    "n03014705": "storage chest",
    "n03126707": "construction crane",
    "n03804744": "metal nail",
    "n04067472": "fishing reel",
    "n04456115": "burning torch",
    "n07579787": "plate of food",
}


@dataclass(frozen=True)
class ImageClass:
    """One class.

    Attributes:
        key: what scores call it: its folder, or its name where it groups several folders.
        name: for prompts and tables.
        folders: the class folders that belong to it; wnids for ImageNet.
        numbers: ``class_id`` of the records that belong to it, in a prepared set.
    """

    key: str
    name: str
    folders: tuple[str, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class ClassList:
    """All classes, in the order of their labels.

    Attributes:
        source: "tiny200", "imagenet", or the file that names them.
        classes: the classes.
    """

    source: str
    classes: tuple[ImageClass, ...]

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def label_of_folder(self) -> dict[str, int]:
        """Label of every class folder."""
        return {folder: label for label, entry in enumerate(self.classes) for folder in entry.folders}

    @cached_property
    def label_of_number(self) -> dict[int, int]:
        """Label of every ``class_id`` of prepared records."""
        return {number: label for label, entry in enumerate(self.classes) for number in entry.numbers}


def read_classes(classes: str, names: str = "paper") -> ClassList:
    """The classes that an option names.

    Args:
        classes: "tiny200", "imagenet", or a file with one ``folder<TAB>name`` a line; lines of one name are one class.
        names: "paper": the first synonym in lower case, and for the 200 the strings of the paper's prompts, whose
            mistakes are kept; "clear": ambiguous and wrong names are replaced. A file's names stay as they are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other ``names``, a line that cannot be read, or a single class.

    Example:
        >>> [read_classes("tiny200", names).classes[58].name for names in ("paper", "clear")]
        ['panda', 'red panda']
    """
    if names not in ("paper", "clear"):
        raise ValueError(f"names must be paper or clear, got {names!r}")
    if classes in ("tiny200", "imagenet"):
        return _of_imagenet(classes, names)
    if not Path(classes).is_file():
        raise FileNotFoundError(
            f"classes: {classes} is neither tiny200 nor imagenet, and no file: give one `folder<TAB>name` a line"
        )
    return _of_file(Path(classes))


def _of_imagenet(classes: str, names: str) -> ClassList:
    known = imagenet_classes()
    wnids = TINY200_WNIDS if classes == "tiny200" else list(known)
    other = (_PAPER if classes == "tiny200" else {}) | (_CLEAR if names == "clear" else {})
    return ClassList(
        classes,
        tuple(ImageClass(wnid, other.get(wnid, known[wnid][1].lower()), (wnid,), (known[wnid][0],)) for wnid in wnids),
    )


def _of_file(file: Path) -> ClassList:
    lines = read_class_names(file)
    imagenet = imagenet_classes()
    wnids = all(folder in imagenet for folder in lines)  # records of ImageNet carry its numbers, others their line
    grouped: dict[str, list[tuple[str, int]]] = {}
    for folder, (line, name) in lines.items():
        grouped.setdefault(name, []).append((folder, imagenet[folder][0] if wnids else line))
    if len(grouped) < 2:
        raise ValueError(f"{file} names {len(grouped)} class: a classifier needs at least two")
    classes = []
    for name, members in grouped.items():
        folders = tuple(folder for folder, _ in members)
        key = folders[0] if len(folders) == 1 else name
        classes.append(ImageClass(key, name, folders, tuple(number for _, number in members)))
    keys = [entry.key for entry in classes]
    double = next((key for key in keys if keys.count(key) > 1), None)
    if double is not None:
        raise ValueError(f"{file} uses {double} both as a folder and as the name of a group: rename the group")
    return ClassList(str(file), tuple(classes))
