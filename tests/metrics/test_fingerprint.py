"""Fingerprints: stable hash, refusal of unlike scores, score files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from t2ikit.metrics.fingerprint import (
    Fingerprint,
    Score,
    UnlikeFingerprints,
    compare,
    images_sha256,
    read_score,
    write_files,
    write_score,
    write_scores,
)

ONE = Fingerprint(reference="val", num_images=200, steps=25, guidance=1.5, features="net", extra={"k": 5})


def test_hash_does_not_depend_on_order_or_process() -> None:
    first = replace(ONE, extra={"k": 5, "a": 1})
    second = replace(ONE, extra={"a": 1, "k": 5})
    assert first.hash() == second.hash() != ONE.hash()
    assert Fingerprint(reference="val", steps=25).hash() == (
        "4fd9c3b02a7174af5b934dc48f47248957498462595c27c0ad4ef73a703b28a5"
    )


def test_unknown_keys_are_extra() -> None:
    assert Fingerprint.from_dict({"features": "net", "k": 5, "extra": {"a": 1}}).extra == {"k": 5, "a": 1}
    assert Fingerprint.from_dict(asdict(ONE)) == ONE


def test_unlike_scores_are_refused_by_the_field_that_differs() -> None:
    compare(ONE, Fingerprint.from_dict(json.loads(json.dumps(asdict(ONE)))))
    with pytest.raises(UnlikeFingerprints, match="steps: 25 and 50$"):
        compare(ONE, replace(ONE, steps=50))
    with pytest.raises(UnlikeFingerprints, match=r"num_images: 200 and None; extra.k: 5 and 3$"):
        compare(ONE, replace(ONE, num_images=None, extra={**ONE.extra, "k": 3}))


def test_score_files(tmp_path: Path) -> None:
    score = Score("frechet_distance", 6.62, ONE, step=250_000)
    path = tmp_path / "scores" / "fid.json"
    write_score(path, score)
    assert read_score(path) == score
    content = json.loads(path.read_text())
    assert content["fingerprint_sha256"] == ONE.hash()
    content["fingerprint"]["steps"] = 50
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="changed by hand"):
        read_score(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="fid.json is not a score file"):
        read_score(path)


def test_hashes_see_content_and_order() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    assert images_sha256(images) == images_sha256(images.clone())
    assert len({images_sha256(images), images_sha256(images.flip(0)), images_sha256(images.view(1, 3, 8, 4))}) == 3


def test_names_of_scores_and_details_stay_in_their_folder(tmp_path: Path) -> None:
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(ValueError, match="no plain name of a file below"):
            write_files(tmp_path / "details", {name: b""})
        with pytest.raises(ValueError, match="no plain name of a file below"):
            write_scores(tmp_path / "scores", [Score(name, 1.0, ONE)])
    assert list(tmp_path.rglob("x*")) == []
