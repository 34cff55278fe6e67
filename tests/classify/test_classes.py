"""The classes: the paper's lists by their hashes, files that group, names that are mended."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from t2ikit.classify.classes import TINY200_WNIDS, read_classes


def digest(lines: list[str]) -> str:
    return sha256("\n".join(lines).encode()).hexdigest()


def test_the_200_classes_are_those_of_the_paper() -> None:
    classes = read_classes("tiny200").classes
    assert TINY200_WNIDS == sorted(set(TINY200_WNIDS)) == [one.key for one in classes]
    assert digest(TINY200_WNIDS) == "add4bf0c8712ef7fb4bca98e3bbaf07101636c5db62cce486fd2af71cc11caf8"
    names = [one.name for one in classes]
    assert digest(names) == "f42510135e4d130e6b2ac5240596f069b89895925aac699c03238c2f21436ed3"


def test_clear_names_mend_what_is_wrong_or_ambiguous() -> None:
    pairs = zip(read_classes("tiny200").classes, read_classes("tiny200", "clear").classes, strict=True)
    changed = {paper.name: clear.name for paper, clear in pairs if paper.name != clear.name}
    assert changed["grasshoppe"] == "grasshopper" and changed["panda"] == "red panda"
    assert {"crane", "brass", "nail", "reel", "chest", "torch", "monarch", "plate"} < set(changed)
    names = [one.name for one in read_classes("tiny200", "clear").classes]
    assert len(set(names)) == 200


def test_imagenet_has_a_thousand_classes_by_their_numbers() -> None:
    classes = read_classes("imagenet")
    assert len(classes) == 1000
    assert classes.label_of_folder["n01440764"] == 0 == classes.label_of_number[0]
    assert read_classes("tiny200").label_of_number[1] == 0  # goldfish is number 1 of ImageNet


def test_a_file_may_group(tmp_path: Path) -> None:
    file = tmp_path / "classes.tsv"
    file.write_text("n01440764\tanimal\nn02965783\tthing\nn01443537\tanimal\n")
    classes = read_classes(str(file))
    assert [one.name for one in classes.classes] == ["animal", "thing"]
    assert [one.key for one in classes.classes] == ["animal", "n02965783"]
    assert classes.label_of_folder == {"n01440764": 0, "n01443537": 0, "n02965783": 1}
    assert classes.label_of_number == {0: 0, 1: 0, 475: 1}
    file.write_text("b\tone\na\ttwo\n")
    assert read_classes(str(file)).label_of_number == {0: 0, 1: 1}


def test_bad_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither tiny200 nor imagenet"):
        read_classes("tiny300")
    with pytest.raises(ValueError, match="paper or clear"):
        read_classes("tiny200", "plain")
    (tmp_path / "one.tsv").write_text("a\tone\nb\tone\n")
    with pytest.raises(ValueError, match="at least two"):
        read_classes(str(tmp_path / "one.tsv"))
