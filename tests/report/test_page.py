"""Pages: whole in one file, nothing of any network, escaped, and with a table below every figure."""

from __future__ import annotations

import io
import re

from PIL import Image

from t2ikit.classify.aggregate import Trained, rows_of
from t2ikit.classify.results import ClassificationResults, TestScore
from t2ikit.classify.summary import Distribution, Shown, Summary
from t2ikit.report.page import Paragraph, Section, Table, page
from t2ikit.report.synthreal import synthreal_page


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
    names = {"n01443537": "goldfish"}
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
    assert "one seed" in synthreal_page(summary(1)) and "one seed" not in body.partition("<main")[0]
