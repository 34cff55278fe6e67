"""The classes of ImageNet's validation photos, which lie in one folder, from the ground truth of the challenge.

Source: readme of ILSVRC2012_devkit_t12: ``data/ILSVRC2012_validation_ground_truth.txt`` holds one number per photo, the
ILSVRC2012_ID of its synset, in the order of the photos' own numbers; ``data/meta.mat`` gives the wnid of each ID. IDs
are not in alphabetical order of the wnids, as the class numbers 0 .. 999 of trained networks are.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np

from t2ikit.prepare.sources.classes import wnid_in
from t2ikit.prepare.sources.paths import files_of

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
_DEVKIT = "ILSVRC2012_devkit_t12"
_CSV = "LOC_val_solution.csv"
_FORMS = (
    f"{_DEVKIT}.tar.gz of image-net.org (or its unpacked folder), Kaggle's {_CSV}, or a text file with one wnid per "
    "line in the order of the photos' numbers, or one `photo wnid` per line"
)


class Truth:
    """Which class each validation photo shows.

    Args:
        source: where it comes from, for messages.
        by_number: wnids of photos 1, 2, 3, ...
        by_name: wnid of each photo, by its name without ending.
    """

    def __init__(self, source: str, by_number: list[str] | None = None, by_name: dict[str, str] | None = None) -> None:
        self.source = source
        self.by_number = by_number or []
        self.by_name = by_name or {}

    def wnid_of(self, photo: str) -> str:
        """The class of ``ILSVRC2012_val_00000001.JPEG``.

        Raises:
            ValueError: the ground truth has no line for it.
        """
        stem = photo.rpartition("/")[2].partition(".")[0]
        if stem in self.by_name:
            return self.by_name[stem]
        digits = re.search(r"_val_(\d+)", stem)
        if self.by_number and digits and 1 <= int(digits[1]) <= len(self.by_number):
            return self.by_number[int(digits[1]) - 1]
        raise ValueError(
            f"{self.source} tells no class of the validation photo {photo}; it knows "
            f"{len(self.by_number) + len(self.by_name):,} photos: give the ground truth of these photos with "
            "--val-labels"
        )


def truth_of(labels: str | None, beside: str) -> Truth:
    """The ground truth of ImageNet's validation photos.

    Args:
        labels: the option ``--val-labels``; without it, the usual names are looked for beside the photos.
        beside: file or folder of the photos.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read.
    """
    if labels is None:
        labels = _found_beside(beside.rpartition("/")[0] or ".")
        if labels is None:
            raise FileNotFoundError(
                f"{beside} holds validation photos without classes, and their ground truth is not beside it: give it "
                f"with --val-labels FILE: {_FORMS}"
            )
    files = files_of(labels)
    if files.is_folder(labels):
        folders = [labels, f"{labels}/data", f"{labels}/{_DEVKIT}/data"]
        folder = next((path for path in folders if files.is_file(f"{path}/{GROUND_TRUTH}")), None)
        if folder is None:
            raise FileNotFoundError(f"there is no {GROUND_TRUTH} in {labels}: give --val-labels: {_FORMS}")
        return _of_ids(labels, files.read(f"{folder}/{GROUND_TRUTH}"), _meta_beside(f"{folder}/{GROUND_TRUTH}"))
    if not files.is_file(labels):
        raise FileNotFoundError(f"there is no file {labels}: give --val-labels: {_FORMS}")
    content = files.read(labels)
    if labels.endswith((".tar.gz", ".tgz", ".tar")):
        return _of_devkit(labels, content)
    lines = [re.split(r"[\s,;]+", line.strip()) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    if lines and all(len(words) == 1 and words[0].isdigit() for words in lines):
        return _of_ids(labels, content, _meta_beside(labels))
    if lines and all(len(words) == 1 and wnid_in(words[0]) == words[0] for words in lines):
        return Truth(labels, by_number=[words[0] for words in lines])
    named = lines[1:] if lines and lines[0][:2] == ["ImageId", "PredictionString"] else lines
    if not named or not all(len(words) >= 2 and wnid_in(words[1]) == words[1] for words in named):
        raise ValueError(f"{labels} is no ground truth that can be read; --val-labels takes {_FORMS}")
    return Truth(labels, by_name={words[0].rpartition("/")[2].partition(".")[0]: words[1] for words in named})


def _found_beside(folder: str) -> str | None:
    files = files_of(folder)
    names = {entry.name for entry in files.entries(folder)}
    for name in (f"{_DEVKIT}.tar.gz", _DEVKIT, _CSV, GROUND_TRUTH):
        if name in names:
            return f"{folder}/{name}"
    # Kaggle's archive holds ILSVRC/Data/CLS-LOC/val beside ILSVRC and LOC_val_solution.csv.
    if "://" not in folder:
        above = Path(folder).resolve()
        for parent in list(above.parents)[:3]:
            if (parent / _CSV).is_file():
                return str(parent / _CSV)
    return None


def _meta_beside(path: str) -> bytes:
    meta = f"{path.rpartition('/')[0] or '.'}/{META}"
    files = files_of(meta)
    if not files.is_file(meta):
        raise FileNotFoundError(
            f"{path} holds numbers of the challenge, whose wnids stand in {META}, and there is no {meta}: put it "
            f"there, or give --val-labels: {_FORMS}"
        )
    return files.read(meta)


def _of_devkit(path: str, content: bytes) -> Truth:
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                stream = tar.extractfile(member) if name in (GROUND_TRUTH, META) else None
                if stream is not None:
                    parts[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): download the development kit again") from error
    missing = [name for name in (GROUND_TRUTH, META) if name not in parts]
    if missing:
        raise ValueError(f"{path} holds no {' and no '.join(missing)}: give --val-labels: {_FORMS}")
    return _of_ids(path, parts[GROUND_TRUTH], parts[META])


def _of_ids(source: str, truth: bytes, meta: bytes) -> Truth:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        ids = [int(line) for line in truth.split()]
        return Truth(source, by_number=[wnids[synset] for synset in ids])
    except KeyError as error:
        raise ValueError(f"{source}: the ground truth names {error}, which {META} does not have") from error
    except (ValueError, TypeError, IndexError, MatReadError) as error:
        raise ValueError(f"{source}: {META} or the ground truth cannot be read ({error}); --val-labels") from error
