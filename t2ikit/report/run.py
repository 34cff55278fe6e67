"""The page of runs: curves, grids, scores beside the paper's numbers, what differs between the experiments, cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.merging import flatten
from t2ikit.evaluation.comparison import shown
from t2ikit.metrics.fingerprint import Score
from t2ikit.report.curves import losses, number, rates, scores, seconds_of
from t2ikit.report.grids import slides
from t2ikit.report.page import Block, Cell, Paragraph, Section, Table, page
from t2ikit.report.published import ROWS, STEPS, Published, by_column, row_of
from t2ikit.report.run_folder import Measured, Run

PAPER_NOTE = (
    "The paper's fingerprints are not published: guidance, seeds, extended prompts and the choice of COCO captions are "
    "not known (docs/reproduce.md), so that its numbers are targets, not equal conditions."
)
NO_ROW = (
    "No row of a paper is known for these runs: it is found by run.name as in docs/reproduce.md, and never for "
    "rendered shapes. --paper ROW shows the numbers of a row beside them."
)
SHAPES_NOTE = "Scores on rendered shapes are not comparable with any paper's."
_SHOWN_HASH = 8


def run_page(runs: Sequence[Run], title: str, papers: Sequence[str] = ()) -> str:
    """The HTML of the page.

    Args:
        runs: in the order of their colours.
        title: its heading.
        papers: further rows of a paper to show, as ``ROWS`` names them.

    Raises:
        ConfigError: a row that no paper has.
    """
    rows = _rows(runs, papers)
    sections: list[tuple[str, Sequence[Block]]] = [
        ("Runs", [_overview(runs), *_missing(runs)]),
        ("Scores", _scores(runs, rows)),
        ("Samples", slides(runs)),
        ("Scores against steps", list(scores(runs))),
        ("Losses", losses(runs)),
        ("What differs between the experiments" if len(runs) > 1 else "Experiment", _configurations(runs)),
        ("Cost", [_cost(runs)]),
        ("Rates and other values", rates(runs)),
    ]
    return page(title, _lead(runs), [Section(name, _or_word(name, blocks)) for name, blocks in sections])


def _or_word(name: str, blocks: Sequence[Block]) -> Sequence[Block]:
    """A section is never empty: it says why."""
    words = {
        "Samples": "There are no grids of samples.",
        "Scores against steps": "No score was taken at two steps or more: there is no curve of one.",
        "Losses": "No loss was logged.",
        "Rates and other values": "Nothing was logged.",
    }
    return blocks or [Paragraph(words[name])]


def _lead(runs: Sequence[Run]) -> list[str]:
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs, each in one colour"
    return [f"{count}. Every figure has a table of its numbers below it; a click on a heading sorts a table."]


def _rows(runs: Sequence[Run], papers: Sequence[str]) -> dict[str, str | None]:
    """The row of the paper of every run, and of every further one under its own name."""
    known = sorted({*ROWS.values()})
    for row in papers:
        if row not in known:
            raise ConfigError(f"--paper {row}: no such row{nearest(row, known)}; the rows are {', '.join(known)}")
    rows = {run.name: row_of(run.option("run.name"), run.option("data.class_path")) for run in runs}
    return {**rows, **{row: row for row in papers}}


def _overview(runs: Sequence[Run]) -> Table:
    lines: list[list[Cell]] = []
    for run in runs:
        state = "finished" if run.finished else "not finished"
        steps = run.option("trainer.max_steps")
        lines.append([run.name, state, run.last_step, steps if isinstance(steps, int) else None, str(run.folder)])
    return Table("Runs", ["run", "state", "last step", "of trainer.max_steps", "folder"], lines)


def _missing(runs: Sequence[Run]) -> list[Paragraph]:
    return [Paragraph(f"{run.name}: {sentence}") for run in runs for sentence in run.missing]


# ------------------------------------------------------------------ scores


def _scores(runs: Sequence[Run], rows: Mapping[str, str | None]) -> list[Block]:
    measured = [(run, entry) for run in runs for entry in _last(run)]
    blocks: list[Block] = []
    for snapshot in dict.fromkeys(entry.snapshot for _, entry in measured):
        columns = {_title(run, entry): entry for run, entry in measured if entry.snapshot == snapshot}
        blocks.append(_table(snapshot, columns, rows))
    blocks += [_classification(run) for run in runs if run.classification]
    if not blocks:
        return [Paragraph("None of these runs has scores.")]
    if measured:
        if not any(rows.values()):
            blocks.append(Paragraph(NO_ROW))
        if any("Shapes" in str(run.option("data.class_path")) for run, _ in measured):
            blocks.append(Paragraph(SHAPES_NOTE))
        blocks.append(_fingerprints(measured))
    return blocks


def _last(run: Run) -> Iterator[Measured]:
    """The last scores of every snapshot of the run, and all of its later evaluations."""
    newest: dict[str, Measured] = {}
    for entry in run.measured:
        if not entry.how and entry.step >= newest.get(entry.snapshot, entry).step:
            newest[entry.snapshot] = entry
    yield from newest.values()
    yield from (entry for entry in run.measured if entry.how)


def _title(run: Run, entry: Measured) -> str:
    """The column of an entry: no two of one snapshot have the same."""
    return f"{run.name}, {f'evaluation {entry.how}' if entry.how else entry.step}"


def _table(snapshot: str, columns: Mapping[str, Measured], rows: Mapping[str, str | None]) -> Table:
    """The scores of a snapshot: a column for each run, then one for each version of the paper's row."""
    names = dict.fromkeys(name for entry in columns.values() for name in entry.scores)
    papers: dict[str, list[Published]] = {}
    for row in dict.fromkeys(row for row in rows.values() if row):
        papers |= {f"{row}: {column}": entries for column, entries in by_column(row).items()}
    found = {
        column: {name: entry.value for name in names for entry in entries if entry.matches(f"{snapshot}/{name}")}
        for column, entries in papers.items()
    }
    found = {column: values for column, values in found.items() if values}
    lines: list[list[Cell]] = []
    for name in names:
        ours = [_cell(entry.scores.get(name)) for entry in columns.values()]
        lines.append([name, *ours, *(number(values.get(name)) for values in found.values())])
    notes = ["In brackets: the first digits of the fingerprint; only scores of one fingerprint may be compared."]
    notes += _unlike(columns, names)
    if found:
        steps = ", ".join(f"{STEPS[version]:,} ({version})" for version in _versions(papers, found))
        notes += [PAPER_NOTE, f"Steps of the paper's rows: {steps}."]
    title = f"Snapshot {snapshot}: last scores, with their step, and ± one standard error where it is known"
    return Table(title, ["score", *columns, *found], lines, notes)


def _versions(papers: Mapping[str, list[Published]], found: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(entry.version for column in found for entry in papers[column]))


def _cell(score: Score | None) -> str | None:
    return None if score is None else f"{shown(score)} [{score.fingerprint.hash()[:_SHOWN_HASH]}]"


def _unlike(columns: Mapping[str, Measured], names: Mapping[str, None]) -> list[str]:
    """A sentence for each set of fields in which the fingerprints of a score differ from the first column's."""
    reasons: dict[str, list[str]] = {}
    for name in names:
        have = [entry.scores[name].fingerprint for entry in columns.values() if name in entry.scores]
        fields = dict.fromkeys(field for other in have[1:] for field in have[0].differences(other))
        if fields:
            reasons.setdefault(", ".join(fields), []).append(name)
    return [
        f"Not comparable along the row: {', '.join(names)} (they differ in {fields})."
        for fields, names in reasons.items()
    ]


def _fingerprints(measured: Sequence[tuple[Run, Measured]]) -> Table:
    lines: dict[str, list[Cell]] = {}
    for run, entry in measured:
        for name, score in entry.scores.items():
            key = score.fingerprint.hash()[:_SHOWN_HASH]
            facts = json.dumps(score.fingerprint.named(), sort_keys=True)
            lines.setdefault(key, [key, f"{_title(run, entry)}: {entry.snapshot}/{name}", facts])
    columns = ["fingerprint", "first seen in", "conditions"]
    return Table("Fingerprints of these scores", columns, list(lines.values()), folded=True)


def _classification(run: Run) -> Table:
    """The tests of a classifier of SynthReal."""
    tests = _part(run.classification, "tests")
    lines: list[list[Cell]] = [
        [name, number(test.get("accuracy")), test.get("images")]
        for name, test in tests.items()
        if isinstance(test, dict)
    ]
    selected = _part(run.classification, "selected")
    notes = [f"Selected weights: {', '.join(f'{key} {value}' for key, value in selected.items())}."] if selected else []
    notes.append(
        "A whole benchmark, with gaps and the paper's numbers, has a page of its own: t2ikit benchmark synthreal."
    )
    return Table(
        f"{run.name}: accuracy of the classifier on every test set", ["test set", "accuracy", "images"], lines, notes
    )


# ------------------------------------------------------------------ experiments and cost


def _configurations(runs: Sequence[Run]) -> list[Block]:
    blocks: list[Block] = []
    options = {run.name: dict(flatten(run.config)) for run in runs if run.config}
    if len(runs) > 1:
        rows = _differing(options)
        same = Paragraph("The resolved experiments are the same but for their names and folders.")
        blocks.append(Table("Options that differ between the runs", ["option", *options], rows) if rows else same)
    for run in runs:
        if len(run.configs) > 1:
            starts = {name: dict(flatten(config)) for name, config in run.configs.items()}
            rows = _differing(starts)
            same = Paragraph(f"{run.name}: its resumes have changed nothing.")
            title = f"{run.name}: what its resumes have changed"
            blocks.append(Table(title, ["option", *starts], rows) if rows else same)
    first = next(iter(options.items()), None)
    if first is None:
        return [Paragraph("The experiments of these runs are not known: there is no config.yaml.")]
    every: list[list[Cell]] = [[key, _text(value)] for key, value in first[1].items()]
    blocks.append(Table(f"Every option of {first[0]}", ["option", "value"], every, folded=True))
    return blocks


def _differing(options: Mapping[str, Mapping[str, Any]]) -> list[list[Cell]]:
    keys = dict.fromkeys(key for values in options.values() for key in values if not key.startswith("run."))
    rows: list[list[Cell]] = []
    for key in keys:
        texts = [_text(values[key]) if key in values else None for values in options.values()]
        if len(set(texts)) > 1:
            rows.append([key, *texts])
    return rows


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _cost(runs: Sequence[Run]) -> Table:
    facts = [_facts(run) for run in runs]
    lines: list[list[Cell]] = [[name, *(fact[name] for fact in facts)] for name in facts[0]]
    notes = [
        "Seconds of training are the images of every logged interval by its images per second; those of loading and "
        "saving, and of a fork those before it began, are not in them. Device seconds count every device."
    ]
    return Table("Cost", ["", *(run.name for run in runs)], lines, notes)


def _facts(run: Run) -> dict[str, Cell]:
    batch = run.option("data.init_args.batch_size")
    batch = batch if isinstance(batch, int) else None
    every = run.option("trainer.log_every_n_steps")
    training, evaluation = seconds_of(run.series, batch, every if isinstance(every, int) else None)
    devices = _devices(run)
    total = None if training is None else training + evaluation
    machine, packages = (_part(run.environment, name) for name in ("machine", "packages"))
    gpus = machine.get("gpus")
    kind = {"cpu": "CPU", "cuda": "GPU", "gpu": "GPU"}.get(str(run.option("trainer.accelerator")), "device")
    return {
        "steps": run.last_step,
        "images of a step": batch,
        "images trained on": None if batch is None else f"{run.last_step * batch:,}",
        "seconds of training": None if training is None else f"{training:,.0f}",
        "seconds of evaluation": f"{evaluation:,.0f}",
        "devices": "as many as the machine has (auto)" if devices is None else f"{devices} ({kind})",
        "device seconds": None if total is None or devices is None else f"{total * devices:,.0f}",
        "precision": _word(run.option("trainer.precision") or ("32-true" if run.config else None)),
        "processor": _word(machine.get("processor")),
        "cores": _word(machine.get("cores")),
        "memory, GB": _word(machine.get("memory_gb")),
        "GPUs": ", ".join(map(str, gpus)) or "none" if isinstance(gpus, list) else _word(gpus),
        "system": _word(run.environment.get("platform")),
        "t2ikit": _word(run.environment.get("t2ikit")),
        "commit": _word(run.environment.get("commit")),
        "torch": _word(packages.get("torch")),
        "command": _word(run.environment.get("command")),
    }


def _part(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A mapping below a mapping; an empty one for anything else."""
    part = content.get(name)
    return part if isinstance(part, dict) else {}


def _word(value: Any) -> str | None:
    return None if value is None else str(value)


def _devices(run: Run) -> int | None:
    """Devices of all machines; None where the run took what there was."""
    devices, machines = run.option("trainer.devices"), run.option("trainer.num_nodes")
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    count = len(devices) if isinstance(devices, list) else devices
    machines = machines or 1
    return count * machines if isinstance(count, int) and isinstance(machines, int) and count > 0 else None
