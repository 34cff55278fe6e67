"""Pages: whole in one file, nothing of any network, escaped, and with a table below every figure."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

from PIL import Image

from t2ikit.classify.aggregate import Group, Row, Trained, rows_of
from t2ikit.classify.classes import TINY200_WNIDS
from t2ikit.classify.conditions import unlike_paper
from t2ikit.classify.results import ClassificationResults, TestScore
from t2ikit.classify.summary import Distribution, Shown, Summary
from t2ikit.report.page import Paragraph, Section, Table, page
from t2ikit.report.synthreal import _comparisons, synthreal_page, table_of
from t2ikit.run.synthreal_results import _line


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    return stream.getvalue()


def summary(seeds: int, per_class: tuple[int | None, ...] = (None,)) -> Summary:
    runs = []
    for view, network in (("rgb", "resnet50"), ("rgb", "vit_tiny"), ("low", "resnet50")):
        for source in ("real", "sd15", "mine"):
            for count in per_class:
                for seed in range(seeds):
                    tests = {"real": TestScore(0.5 + 0.01 * seed, 100, {"n01443537": (5, 10)})}
                    tests |= {name: TestScore(0.25, 100, {}) for name in ("sd15", "mine") if source == "real"}
                    results = ClassificationResults({"seed": seed}, {}, tests, {})
                    runs.append(Trained(source, view, network, seed, count, results))
    distributions = {"mine": Distribution(0.4, 0.2, 0.015, 100, "clip:openai/clip-vit-large-patch14")}
    shown = Shown("Test images", ["goldfish"], [("real", [png()]), ("mine", [None])])
    names = dict.fromkeys(TINY200_WNIDS, "a class") | {"n01443537": "goldfish"}
    classes = {"mine": {"n01443537": 0.5}}
    return Summary(rows_of(runs), distributions, classes, names, [shown], {"rgb-mine": {"seed": 0}}, seeds)


def test_text_is_escaped_and_numbers_are_rounded() -> None:
    table = Table("<b>caption</b>", ["a", "b"], [["<script>x</script>", 0.12345], ["y", None]], ["note & more"])
    text = page("A <title>", ["Lead."], [Section("First", [Paragraph("1 < 2"), table])])
    assert "<script>x" not in text and "&lt;script&gt;x" in text and "0.123" in text and "note &amp; more" in text
    assert "1 &lt; 2" in text and "<title>A &lt;title&gt;</title>" in text
    assert "plotly" not in text.lower().replace("js-plotly-plot", "").replace("plotly.relayout", "").replace(
        "plotly.plots.resize", ""
    )  # no figure, no script of figures


def test_the_page_of_synthreal_is_whole() -> None:
    text = synthreal_page(summary(3, (None, 50, 100)))
    body = text.partition("<body>")[2]
    titles = re.findall(r"<h2[^>]*>([^<]*)</h2>", body)
    assert [title.partition(" (")[0] for title in titles] == [
        "Every number",
        "All models",
        "Networks",
        "Structure, texture, frequencies",
        "Density and coverage",
        "Both directions",
        "More images of each class",
        "Class by class",
        "Pictures",
        "What the numbers depend on",
    ]
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", body)
    assert body.count('class="plot"') == body.count("The numbers of this figure") == 6
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    assert "over 3 seeds" in body and body.count("generators learned from photos and captions") >= 8
    assert "0.455" in body and "0.730" in body  # the paper's SD1.5 and real photos
    for network in ("resnet50", "vit_tiny"):  # the paper gives Real->Synth of ResNet-50 alone
        rows = {group: entries for group, entries in summary(1).rows.items() if group.network == network}
        section = synthreal_page(replace(summary(1), rows=rows)).partition(">Both directions")[2]
        section = section.partition(">Both directions")[2].partition(">Class by class")[0]
        assert ("SD1.5" in section) == (network == "resnet50")
    assert "one seed" in synthreal_page(summary(1)) and "one seed" not in body.partition("<main")[0]


FACTS: dict[str, Any] = {
    "network": "resnet50",
    "recipe": {
        "optimizer": ["AdamW", {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "scale": {}}],
        "learning_rate": [
            "EpochCosine",
            {"epochs": 80, "warmup_epochs": 5, "start_factor": 1e-5, "least_factor": 1e-8},
        ],
        "epochs": 80.0,
        "clip": 1.0,
        "precision": "32-true",
        "cutmix": True,
        "ema": None,
    },
    "select": "lowest",
    "seed": 0,
    "compat": "meant",
    "train": {"images": 90_000, "formats": {"png": 90_000}, "sha256": "ours"},
    "val": {"images": 10_000, "formats": {"png": 10_000}, "sha256": "ours"},
    "tests": {"real": {"images": 10_000, "sha256": "photos"}, "mine": {"images": 10_000, "sha256": "drawn"}},
    "view": {
        "name": "low",
        "size": 224,
        "cutoff": 0.2,
        "filter_size": 256,
        "clip": True,
        "augmentation": "paper",
        "crops": 9,
    },
    "depth": None,
    "held_out": 0.1,
    "batch_size": 1024,
    "data_seed": 0,
    "data_compat": "meant",
}
"""The fingerprint of a training of the shipped experiment low.yaml."""


def rows_with(accuracy: float, **others: Any) -> tuple[Group, list[Row]]:
    """Rows of real photos and of sd15, with another fingerprint than that of the shipped experiment."""
    results = ClassificationResults({**FACTS, **others}, {}, {"real": TestScore(accuracy, 100, {})}, {})
    runs = [Trained(source, "low", "resnet50", 0, None, results) for source in ("real", "sd15")]
    return next(iter(rows_of(runs).items()))


def test_the_paper_s_numbers_stand_beside_its_classes_alone() -> None:
    own = synthreal_page(replace(summary(1), names={"n01443537": "goldfish", "mine": "a class of one's own"}))
    body = own.partition("<body>")[2]
    assert ">0.455<" not in body and ">0.730<" not in body and ">paper<" not in body and '"paper"' not in body
    assert "The classes are not the 200 of the paper" in body
    group, rows = rows_with(0.5)
    assert table_of(group, rows, {}, False).columns.count("paper") == 0
    assert table_of(group, rows, {}, True).columns.count("paper") == 2
    assert _line(group, rows[1], False)[-2:] == ["", ""] and _line(group, rows[1], True)[-2:] == [0.37, ""]


def test_another_recipe_beside_the_paper_s_numbers_is_said() -> None:
    group, rows = rows_with(0.5)
    assert not any("shipped" in note for note in table_of(group, rows, {}, True).notes)
    others = {
        "recipe": {**FACTS["recipe"], "epochs": 2.0},
        "compat": "released",
        "view": {**FACTS["view"], "cutoff": 0.1},
    }
    group, rows = rows_with(0.5, **others)
    said = "they differ in recipe.epochs, compat, view.cutoff."
    assert any(note.endswith(said) for note in table_of(group, rows, {}, True).notes)
    assert _line(group, rows[1], True)[-2:] == [0.37, "recipe.epochs compat view.cutoff"]
    assert unlike_paper("texture", [FACTS])[:2] == ["view.name", "view.size"]


def test_unlike_trainings_are_not_set_side_by_side() -> None:
    def compared(**others: Any) -> Table:
        ours, theirs = rows_with(0.37), rows_with(0.05, **others)
        (table,) = _comparisons(Summary(dict([ours]), compared={"other": dict([theirs])}))
        return table

    newer = {"train": {**FACTS["train"], "sha256": "newer"}, "val": {**FACTS["val"], "sha256": "newer"}}
    tests = {**FACTS["tests"], "mine": {"images": 5, "sha256": "later"}}
    alike = compared(seed=1, data_seed=1, tests=tests, **newer)
    assert [line[2] for line in alike.rows] == ["0.050 ± 0.022"] * 2 and len(alike.notes) == 1
    photos = {**FACTS["tests"], "real": {"images": 10_000, "sha256": "other photos"}}
    unlike = compared(recipe={**FACTS["recipe"], "epochs": 1.0}, tests=photos, view={**FACTS["view"], "clip": False})
    assert [line[2] for line in unlike.rows] == [None, None]
    fields = "recipe.epochs, view.clip, tests.real"
    assert unlike.notes[1:] == [f"Not comparable: real, sd15 of other (it differs in {fields})."]
