"""What a benchmark SynthReal has measured: its files, and the typed data of its page.

OUT/table.csv      a row for each source, view, network and number of images; of the paper's classes its number beside,
                   and in which fields of the fingerprint its recipe is another one
OUT/results.json   the same with every training and its fingerprint
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from t2ikit.classify import ClassFolders
from t2ikit.classify.aggregate import REAL, Estimate, Group, Row, Trained, most_images, per_class, rows_of
from t2ikit.classify.conditions import has_paper_classes, unlike_paper
from t2ikit.classify.pictures import checked, find
from t2ikit.classify.published import paper_accuracy
from t2ikit.classify.results import ClassificationResults, TestScore
from t2ikit.classify.shown import shown_classes, shown_pictures
from t2ikit.classify.summary import Distribution, Shown, Summary
from t2ikit.config.class_nodes import check_component
from t2ikit.config.errors import ConfigError
from t2ikit.config.origins import Origins
from t2ikit.files import parse_json, write_whole
from t2ikit.metrics.features.features import FeatureExtractor, RandomConvFeatures
from t2ikit.metrics.features.networks import CLIPFeatures
from t2ikit.run.distribution import distributions
from t2ikit.run.synthreal import Benchmark
from t2ikit.run.synthreal_cells import Item, trained_of

RESULTS = "results.json"
RANDOM = "random"
COLUMNS = """
    view network per_class source seeds synth_real synth_real_error synth_real_total error_of real_synth
    real_synth_error real_synth_total gap gap_error relative_gap relative_gap_error paper unlike_paper
"""


def write_results(benchmark: Benchmark, trained: Mapping[str, Trained]) -> None:
    """Writes the table, and all trainings with their fingerprints."""
    order = [source.name for source in benchmark.sources]
    listed = sorted(trained.values(), key=lambda run: order.index(run.source))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS.split())
    groups = rows_of(listed)
    keys = [entry.key for entry in benchmark.class_list.classes]
    for group, rows in groups.items():
        for row in rows:
            table.writerow(_line(group, row, has_paper_classes(keys) and group.per_class == most_images(groups)))
    write_whole(benchmark.out / "table.csv", text.getvalue())
    content = {
        "classes": keys,
        "trainings": {name: asdict(run) for name, run in sorted(trained.items())},
    }
    write_whole(benchmark.out / RESULTS, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _line(group: Group, row: Row, beside: bool) -> list[Any]:
    def three(estimate: Estimate | None) -> list[Any]:
        return [""] * 3 if estimate is None else [round(x, 6) for x in (estimate.mean, estimate.error, estimate.total)]

    gaps = [[""] * 2 if pair is None else [round(value, 6) for value in pair] for pair in (row.gap, row.relative)]
    paper = paper_accuracy(row.source, group.view, group.network) if beside else None
    seeds = len(row.synth_real.values)
    first = [group.view, group.network, group.per_class or "all", row.source, seeds]
    numbers = [*three(row.synth_real), row.synth_real.kind, *three(row.real_synth), *gaps[0], *gaps[1]]
    differing = [] if paper is None else unlike_paper(group.view, row.fingerprints)
    return [*first, *numbers, paper or "", " ".join(differing)]


def refuse_unlike(benchmark: Benchmark, others: Sequence[Path]) -> None:
    """Refuses to compare with a benchmark of other classes.

    Raises:
        ConfigError: no results there, or of other classes; names one.
    """
    keys = [entry.key for entry in benchmark.class_list.classes]
    for folder in others:
        path = folder / RESULTS
        if not path.is_file():
            raise ConfigError(
                f"--compare {folder}: there is no {RESULTS}: give the --out of another benchmark synthreal"
            )
        unlike = set(parse_json(path.read_text(encoding="utf-8"))["classes"]) ^ set(keys)
        if unlike:
            raise ConfigError(
                f"--compare {folder}: its classes are others, {len(unlike)} are in one of the two alone, such as "
                f"{min(unlike)}: accuracies over other classes are not comparable"
            )


def read_trained(folder: Path) -> list[Trained]:
    """The trainings of another benchmark."""
    trainings = parse_json((folder / RESULTS).read_text(encoding="utf-8"))["trainings"]
    return [_trained(stored) for stored in trainings.values()]


def _trained(stored: dict[str, Any]) -> Trained:
    results = stored["results"]
    tests = {
        name: TestScore(
            score["accuracy"], score["images"], {key: (pair[0], pair[1]) for key, pair in score["per_class"].items()}
        )
        for name, score in results["tests"].items()
    }
    known = ClassificationResults(results["fingerprint"], results["selected"], tests, results["validation"])
    return Trained(stored["source"], stored["view"], stored["network"], stored["seed"], stored["per_class"], known)


def summary_of(
    benchmark: Benchmark,
    items: Sequence[Item],
    origins: Origins,
    features: str | None = None,
    pictures: bool = False,
    compare: Sequence[Path] = (),
) -> Summary:
    """Writes table and results; returns what the page shows.

    Args:
        benchmark: what was measured.
        items: its cells.
        origins: which modules an experiment may name.
        features: CLIP model for density, coverage and copies, or "random"; None leaves these out.
        pictures: show some.
        compare: folders of other benchmarks.
    """
    trained = dict(trained_of(benchmark, items))
    write_results(benchmark, trained)
    order = [source.name for source in benchmark.sources]
    listed = sorted(trained.values(), key=lambda run: order.index(run.source))
    return Summary(
        rows_of(listed),
        {} if features is None else _distributions(benchmark, features),
        _per_class(benchmark, listed),
        {entry.key: entry.name for entry in benchmark.class_list.classes},
        _pictures(items, benchmark, origins) if pictures else (),
        {name: run.results.fingerprint for name, run in sorted(trained.items())},
        benchmark.seeds,
        {str(folder): rows_of(read_trained(folder)) for folder in compare},
        len(items) - len(trained),
    )


def _distributions(benchmark: Benchmark, features: str) -> dict[str, Distribution]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return distributions(benchmark, feature_network(features), device)


def feature_network(name: str) -> FeatureExtractor:
    """The network of ``--features``: a CLIP model, with the pixels of open_clip, or "random"."""
    if name == RANDOM:
        return RandomConvFeatures()
    from transformers import AutoConfig

    try:
        width = int(AutoConfig.from_pretrained(name, trust_remote_code=False).projection_dim)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"--features {name}: no CLIP model of transformers ({error})") from error
    return CLIPFeatures(name, dim=width, pipeline="open_clip_224")


def _per_class(benchmark: Benchmark, trained: Sequence[Trained]) -> dict[str, dict[str, float]]:
    """Accuracy of every class on real photos by source, of rgb with the first network and most images."""
    wanted = [run for run in trained if (run.view, run.network) == ("rgb", benchmark.networks[0])]
    most = most_images([Group(run.view, run.network, run.per_class) for run in wanted])
    wanted = [run for run in wanted if run.per_class == most]
    names = dict.fromkeys(run.source for run in wanted)
    return {name: per_class([run.results.tests[REAL] for run in wanted if run.source == name]) for name in names}


def _pictures(items: Sequence[Item], benchmark: Benchmark, origins: Origins) -> list[Shown]:
    """A picture of some classes from every source, in every view."""
    shown = []
    classes = shown_classes(benchmark.class_list)
    labels = [benchmark.class_list.classes.index(entry) for entry in classes]
    for view in benchmark.views:
        config = next(item.sweep.compose(item.cell) for item in items if item.cell.grid == view)
        data = check_component("data", config["data"], LightningDataModule, origins=origins).build()
        assert isinstance(data, ClassFolders)
        rows = []
        for source in benchmark.sources:
            listed = find(str(source.test), benchmark.class_list, source.name)
            first = listed.rows(np.array([int(np.flatnonzero(listed.labels == label)[0]) for label in labels]))
            pictures = checked(first, data.seen.check, source.name)
            if data.depth is not None:
                data.depth.make(pictures, "cuda" if torch.cuda.is_available() else "cpu", source.name)
            rows.append((source.name, shown_pictures(pictures, data.seen, data.read)))
        shown.append(Shown(f"Test images of every source, {view}", [entry.name for entry in classes], rows))
    return shown
