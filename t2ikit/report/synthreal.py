"""The page of SynthReal: the figures and tables of the paper for one's own generators, beside the paper's numbers.

Source: "When Pretty Isn't Useful", arXiv 2602.19946: Figures 1 and 3 to 6, Appendices A and B.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from t2ikit.classify.aggregate import REAL, Estimate, Group, Row, most_images
from t2ikit.classify.conditions import has_paper_classes, unlike, unlike_paper
from t2ikit.classify.published import PUBLISHED, paper_accuracy, published
from t2ikit.classify.summary import Distribution, Summary
from t2ikit.report.page import Cell, Paragraph, Pictures, Plotted, Section, Table, page
from t2ikit.report.plots import Series, curves, plane, points

NOT_COMPARABLE = (
    "The paper's generators learned from photos and captions of the web. One that was trained on ImageNet has seen the "
    "real training photos of this test, or photos of their very kind: its numbers are not comparable with theirs."
)
OTHER_CLASSES = "The classes are not the 200 of the paper, so that its numbers are left out."
VIEW_TITLES = {
    "rgb": "all of the image",
    "depth": "structure (depth maps)",
    "texture": "texture (small patches)",
    "low": "low frequencies",
    "high": "high frequencies",
}


def synthreal_page(data: Summary, title: str = "SynthReal: how useful are the images of a generator?") -> str:
    """The HTML of the page."""
    most, paper = most_images(data.rows), has_paper_classes(data.names)
    tables = [
        table_of(group, rows, data.distributions, paper and group.per_class == most)
        for group, rows in data.rows.items()
    ]
    sections = [Section("Every number", tables)]
    sections += [Section(title, blocks) for title, blocks in _figures(data) if blocks]
    if data.compared:
        sections.append(Section("Beside other benchmarks", _comparisons(data)))
    if data.per_class:
        sections.append(Section("Class by class", [_classes(data)]))
    if data.pictures:
        pictures = [Pictures(shown.caption, shown.columns, shown.rows) for shown in data.pictures]
        sections.append(Section("Pictures", pictures))
    sections.append(Section("What the numbers depend on", [_fingerprints(data)]))
    return page(title, _lead(data), sections)


def _lead(data: Summary) -> list[str]:
    if data.seeds > 1:
        errors = f"± is the standard error of the mean over {data.seeds} seeds of training."
    else:
        errors = (
            "± is the standard error by the choice of the test images: there is one seed, so that what differs between "
            "trainings of one kind is not in it."
        )
    unfinished = [f"{data.left} trainings are still to be made: give the command again."] if data.left else []
    return [
        *unfinished,
        "Synth→Real: a classifier learns from generated images alone and is tested on real photos. Real→Synth is the "
        "reverse. The gap is what is lost against a classifier that learned from real photos; the relative gap is its "
        "share of that classifier's accuracy.",
        errors,
        NOT_COMPARABLE,
        *([] if has_paper_classes(data.names) else [OTHER_CLASSES]),
    ]


def table_of(group: Group, rows: Sequence[Row], distributions: Mapping[str, Distribution], beside: bool) -> Table:
    """The numbers of a group; ``beside`` those of the paper, where a source is called after one of its generators."""
    lines: list[list[Cell]] = []
    by_rgb = group.view == "rgb" and group.network == "resnet50"
    for row in rows:
        known = published(row.source)
        distribution = distributions.get(row.source)
        paper: list[Cell] = [paper_accuracy(row.source, group.view, group.network)] if beside else []
        reverse: list[Cell] = [known[1].real_synth if known is not None and by_rgb else None] if beside else []
        lines.append(
            [
                row.source,
                str(row.synth_real),
                *paper,
                None if row.real_synth is None else str(row.real_synth),
                *reverse,
                None if row.gap is None else f"{row.gap[0]:.3f} ± {row.gap[1]:.3f}",
                None if row.relative is None else f"{row.relative[0]:.1%} ± {row.relative[1]:.1%}",
                None if distribution is None else distribution.copies,
            ]
        )
    kinds = {row.synth_real.kind for row in rows}
    notes = [NOT_COMPARABLE, *(_other_recipe(group.view, group.network, rows) if beside else [])]
    if "images" in kinds:
        notes.append("± over test images where there is one seed, else over seeds.")
    if not distributions:
        notes.append("The share of copies of training photos is measured with --distribution.")
    column = ["paper"] if beside else []
    columns = ["source", "Synth→Real", *column, "Real→Synth", *column, "gap", "relative gap", "copies"]
    return Table(_title(group), columns, lines, notes)


def _other_recipe(view: str, network: str, rows: Sequence[Row]) -> list[str]:
    """A note where trainings beside a number of the paper are not as the shipped experiments make them."""
    beside = [row for row in rows if paper_accuracy(row.source, view, network) is not None]
    fields = unlike_paper(view, [facts for row in beside for facts in row.fingerprints]) if beside else []
    said = f"These trainings are not those of the shipped experiments: they differ in {', '.join(fields)}."
    return [said] if fields else []


def _title(group: Group) -> str:
    images = "" if group.per_class is None else f", {group.per_class} images a class"
    return f"{group.view}: {VIEW_TITLES.get(group.view, group.view)}, {group.network}{images}"


def _figures(data: Summary) -> list[tuple[str, list[Paragraph | Plotted]]]:
    most, paper = most_images(data.rows), has_paper_classes(data.names)
    whole = {group: rows for group, rows in data.rows.items() if group.per_class == most}
    rgb = {group.network: rows for group, rows in whole.items() if group.view == "rgb"}
    views = {group: rows for group, rows in whole.items() if group.view != "rgb"}
    scaled = {group: rows for group, rows in data.rows.items() if group.per_class is not None}
    several = len({group.per_class for group in scaled}) > 1
    return [
        (
            "All models (Figure 1)",
            [_by_source("Synth→Real on rgb", "rgb", *next(iter(rgb.items())), paper)] if rgb else [],
        ),
        ("Networks (Figure 3)", [_by_network(rgb)] if len(rgb) > 1 else []),
        (
            "Structure, texture, frequencies (Figure 4)",
            [_by_source(_title(group), group.view, group.network, rows, paper) for group, rows in views.items()],
        ),
        ("Density and coverage (Figure 5)", [_density(data.distributions, paper)] if data.distributions else []),
        ("Both directions (Figure 6)", [_directions(*next(iter(rgb.items())), paper)] if rgb else []),
        ("More images of each class (Appendix A)", [_scaling(scaled)] if several else []),
    ]


def _by_source(caption: str, view: str, network: str, rows: Sequence[Row], beside: bool) -> Plotted:
    synthetic = [row for row in rows if row.source != REAL]
    names = [row.source for row in synthetic]
    series = [_series("ours", [row.synth_real for row in synthetic])]
    lines = {"real photos": rows[0].synth_real.mean} if rows[0].source == REAL else {}
    columns = ["source", "ours", "standard error"]
    numbers: list[list[Cell]] = [[row.source, row.synth_real.mean, row.synth_real.error] for row in synthetic]
    notes: list[str] = []
    if beside:
        paper = [paper_accuracy(name, view, network) for name in names]
        columns.append("paper")
        numbers = [[*line, value] for line, value in zip(numbers, paper, strict=True)]
        if any(value is not None for value in paper):
            series.append(Series("paper", paper, hollow=True))
            of_real = paper_accuracy(REAL, view, network)
            lines |= {} if of_real is None else {"real photos, paper": of_real}
            notes = _other_recipe(view, network, rows)
    table = Table(caption, columns, numbers, notes)
    return Plotted(caption, points(names, series, "accuracy on real photos", lines), table)


def _series(name: str, estimates: Sequence[Estimate | None]) -> Series:
    values = [None if entry is None else entry.mean for entry in estimates]
    return Series(name, values, [None if entry is None else entry.error for entry in estimates])


def _by_network(rgb: Mapping[str, Sequence[Row]]) -> Plotted:
    names = list(dict.fromkeys(row.source for rows in rgb.values() for row in rows))
    by_network = {network: {row.source: row.synth_real for row in rows} for network, rows in rgb.items()}
    series = [_series(network, [rows.get(name) for name in names]) for network, rows in by_network.items()]
    table = Table(
        "Networks", ["source", *rgb], [[name, *(entry.values[k] for entry in series)] for k, name in enumerate(names)]
    )
    return Plotted(
        "Accuracy on real photos by network, rgb", points(names, series, "accuracy on real photos", {}), table
    )


def _density(distributions: Mapping[str, Distribution], beside: bool) -> Plotted:
    ours = [(name, entry.density, entry.coverage) for name, entry in distributions.items()]
    paper = [
        (name, entry.density, entry.coverage)
        for name, entry in PUBLISHED.items()
        if entry.density is not None and entry.coverage is not None
    ]
    first = next(iter(distributions.values()))
    table = Table(
        "Density and coverage",
        ["source", "density", "coverage", "copies", "images of each set"],
        [[name, entry.density, entry.coverage, entry.copies, entry.images] for name, entry in distributions.items()],
        [
            f"Features: {first.features}; k = 5, cosine distance, both sets shuffled and cut to the smaller.",
            NOT_COMPARABLE,
        ],
    )
    comparable = beside and "clip-vit-large-patch14" in first.features
    marks = {"ours": ours, "paper": paper} if comparable else {"ours": ours}
    return Plotted(
        "Density and coverage of the real training photos", plane("density", "coverage", marks, ["paper"]), table
    )


def _directions(network: str, rows: Sequence[Row], beside: bool) -> Plotted:
    ours = [(row.source, row.synth_real.mean, row.real_synth.mean) for row in rows if row.real_synth is not None]
    paper = [
        (known[0], known[1].networks["resnet50"], known[1].real_synth)
        for row in rows
        if beside and network == "resnet50" and (known := published(row.source))
    ]
    given = [(name, x, y) for name, x, y in paper if x is not None and y is not None]
    marks = {"ours": ours, "paper": given} if given else {"ours": ours}
    notes = _other_recipe("rgb", network, rows) if given else []
    table = Table("Both directions", ["source", "Synth→Real", "Real→Synth"], [list(entry) for entry in ours], notes)
    return Plotted("Synth→Real against Real→Synth", plane("Synth→Real", "Real→Synth", marks, ["paper"]), table)


def _scaling(scaled: Mapping[Group, Sequence[Row]]) -> Plotted:
    lines: dict[str, list[tuple[float, float, float]]] = {}
    several = len({(group.view, group.network) for group in scaled}) > 1
    for group, rows in sorted(scaled.items(), key=lambda entry: entry[0].per_class or 0):
        for row in rows:
            name = f"{row.source}, {group.view}, {group.network}" if several else row.source
            point = (float(group.per_class or 0), row.synth_real.mean, row.synth_real.error)
            lines.setdefault(name, []).append(point)
    table = Table(
        "Accuracy on real photos by the number of images of each class",
        ["source", "images a class", "Synth→Real", "standard error"],
        [[name, int(x), y, error] for name, entries in lines.items() for x, y, error in entries],
    )
    return Plotted(table.caption, curves("images of each class", "accuracy on real photos", lines), table)


def _comparisons(data: Summary) -> list[Table]:
    """The accuracies of other benchmarks; of trainings under other conditions, the fields that differ instead."""
    tables = []
    for group, rows in data.rows.items():
        others = {name: {row.source: row for row in groups.get(group, ())} for name, groups in data.compared.items()}
        lines: list[list[Cell]] = []
        reasons: dict[str, list[str]] = {}
        for row in rows:
            line: list[Cell] = [row.source, str(row.synth_real)]
            for name, entries in others.items():
                other = entries.get(row.source)
                fields = [] if other is None else unlike(row.fingerprints, other.fingerprints, REAL)
                line.append(None if other is None or fields else str(other.synth_real))
                if fields:
                    reasons.setdefault(f"{name} (it differs in {', '.join(fields)})", []).append(row.source)
            lines.append(line)
        notes = [f"Not comparable: {', '.join(sources)} of {reason}." for reason, sources in reasons.items()]
        title = f"Synth→Real, {_title(group)}"
        tables.append(Table(title, ["source", "here", *others], lines, [NOT_COMPARABLE, *notes]))
    return tables


def _classes(data: Summary) -> Table:
    keys = list(next(iter(data.per_class.values())))
    lines: list[list[Cell]] = [
        [f"{data.names.get(key, key)} ({key})", *(scores.get(key) for scores in data.per_class.values())]
        for key in keys
    ]
    notes = [
        "Names of several things (crane, nail, torch) and wrong ones (panda for the red panda) may be drawn as others."
    ]
    return Table("Accuracy on real photos by class, rgb", ["class", *data.per_class], lines, notes, folded=True)


def _fingerprints(data: Summary) -> Table:
    lines: list[list[Cell]] = [[name, json.dumps(facts, sort_keys=True)] for name, facts in data.fingerprints.items()]
    return Table("Fingerprints of the trainings", ["training", "fingerprint"], lines, folded=True)
