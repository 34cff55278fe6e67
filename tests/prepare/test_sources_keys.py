"""The list of a million photos is small, and the same as a list of strings."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from t2ikit.prepare.sources import find_images
from t2ikit.prepare.sources.classes import imagenet_classes
from t2ikit.prepare.sources.files import Entry, LocalFiles
from t2ikit.prepare.sources.keys import Keys
from t2ikit.prepare.sources.photos import FileReader, Listing

WORDS = ["a", "", "train/n01440764/ö.JPEG", "b\udcff.jpg", "train/long" * 30]


def packed(strings: list[str]) -> Keys:
    listing = Listing()
    for string in strings:
        listing.add(string, -1, 0)
    return listing.keys


def test_keys_are_a_sequence_of_strings() -> None:
    keys = packed(WORDS)
    assert keys == WORDS and list(keys) == WORDS and len(keys) == 5 and keys[-1] == WORDS[-1]
    assert keys != WORDS[:4] and keys != [*WORDS[:4], "x"] and "a" in keys and keys.index("") == 1
    assert keys[1:3] == WORDS[1:3] and keys[::-1] == WORDS[::-1]
    some = keys.take(np.array([4, 0, 2]))
    assert some == [WORDS[4], WORDS[0], WORDS[2]] and some.position(1) == 0 and some.take(np.array([2]))[0] == WORDS[2]
    assert pickle.loads(pickle.dumps(some)) == some and some.text is keys.text
    for index in (5, -6):
        with pytest.raises(IndexError):
            keys[index]
    with pytest.raises(IndexError):
        some[3]


class ManyFiles(LocalFiles):
    """1,000 class folders of ``per_class`` photos that exist in name only."""

    def __init__(self, per_class: int) -> None:
        super().__init__()
        self.per_class = per_class

    def is_folder(self, path: str) -> bool:
        return not path.endswith(("train", "val"))

    def entries(self, folder: str):  # type: ignore[no-untyped-def]
        if folder == "/photos":
            return (Entry(wnid, True, False, 0) for wnid in imagenet_classes())
        wnid = folder.rpartition("/")[2]
        return (Entry(f"{wnid}_{k}.JPEG", False, False, 110_000 + k) for k in range(self.per_class))


def test_a_list_takes_less_than_100_bytes_a_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet_classes()
    monkeypatch.setattr("t2ikit.prepare.sources.forms.files_of", lambda path: ManyFiles(20))
    monkeypatch.setattr("t2ikit.prepare.sources.forms._shards", lambda *args: [])
    tracemalloc.start()
    lists = find_images("/photos", val_share=0.1)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    count = len(lists["train"]) + len(lists["val"])
    assert count == 20_000 and len(lists["train"].class_names) == 1000
    assert held / count < 100, "a list"
    assert peak / count < 250, "while it is made"


def test_photos_read_by_name_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.jpg").write_bytes(b"photo")
    keys = packed(["caf\udce9.jpg"])
    assert FileReader(LocalFiles(), str(tmp_path), keys, np.array([5])).read(0) == b"photo"


def test_two_equal_strings_are_found() -> None:
    assert packed(WORDS).repeated() is None and packed([]).repeated() is None
    assert packed([*WORDS, "b", WORDS[2]]).repeated() == (2, 6)
