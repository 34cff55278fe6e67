"""A snapshot outside training, of a checkpoint or of pictures from any other model, for ``t2ikit evaluate``."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.pytorch import Callback, LightningDataModule
from rich.console import Console

from t2ikit import ranks
from t2ikit.callbacks import Snapshot
from t2ikit.checkpoints import read_weights
from t2ikit.checkpoints.denoiser import stored_experiment
from t2ikit.checkpoints.runs import find_trained, run_folder_of
from t2ikit.config.class_nodes import check_component
from t2ikit.config.compose import changed, compose
from t2ikit.config.errors import ConfigError, nearest
from t2ikit.config.files import find_experiment
from t2ikit.config.imports import find_class
from t2ikit.config.origins import Origins
from t2ikit.data.datamodule import DataModule
from t2ikit.evaluation import MODEL_FIELDS, Evaluated, is_of_images
from t2ikit.evaluation.comparison import Found, find_scores, paired_tables, score_table
from t2ikit.evaluation.guidance_sweep import plot_sweep, sweep_table, write_csv
from t2ikit.evaluation.settings import Sampling
from t2ikit.files import require_folder
from t2ikit.metrics.fingerprint import Fingerprint, Score, compare
from t2ikit.records.manifest import Manifest
from t2ikit.run.evaluation_folder import UNFINISHED, Asked, alone_in, remove_unfinished
from t2ikit.run.evaluation_name import check_overrides, evaluation_name
from t2ikit.run.experiment import find_method, origins_of
from t2ikit.run.search import find_search
from t2ikit.run.trained import TrainedModel, find_device, load_trained

# Precisions as an experiment may say them, and as the Trainer calls them.
PRECISIONS = {"None": "32-true", "32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def evaluate(args: argparse.Namespace) -> None:
    """Does what the command line of ``t2ikit evaluate`` asks for; writes and prints scores.

    Raises:
        ConfigError, FileNotFoundError, ValueError: what is missing or wrong, and what to change.
    """
    checkpoint = None if args.checkpoint is None else find_trained(args.checkpoint, "checkpoint")
    base = Path() if checkpoint is None else run_folder_of(checkpoint)
    out = args.out or base / "evaluations" / args.snapshot
    if args.write_reference is None:
        require_folder(out, "--out")
    experiment: Path | None = args.experiment or checkpoint
    assert experiment is not None  # the command line gives one of them
    if checkpoint is None or args.experiment:
        composed = partial(compose, experiment)
    else:
        composed = partial(changed, stored_experiment(read_weights(checkpoint, mmap=True), checkpoint))
    plain, config = composed(()), composed(args.overrides)
    check_overrides(args, composed)
    # Files of a run folder may come from elsewhere: only an experiment that the user names brings its own.
    named = find_experiment(experiment) if args.experiment else None
    asked = Asked(*(None if path is None else str(path.resolve()) for path in (args.images, named)))
    origins = origins_of(trusted=args.trust, checkpoint=checkpoint, experiment=named)
    snapshot = _snapshot(config, args.snapshot, experiment, origins)
    snapshot.evaluation.limit = args.limit
    others = None if args.compare is None else find_scores(args.compare, args.snapshot, "--compare")
    if others is not None:
        _check_varied(args.varied, others)
    sampling = _sampling(args, snapshot, config, origins)
    device = _launch(args)
    data = _data(config, origins)
    if args.write_reference is not None:
        _report_reference(snapshot.evaluation.write_reference(args.write_reference, data, device))
        return
    if checkpoint is None:
        name = evaluation_name(args.images.resolve().name, args, config, plain)
        where = out / name
        with alone_in(where, asked):
            evaluated = snapshot.evaluation.evaluate_pictures(args.images, data, device)
            ranks.from_first(lambda: _write(where, snapshot, evaluated, None))
        _report(where, evaluated.scores, others, args)
        return
    trained = _model(args, checkpoint, snapshot, data, device, origins)
    sampling = sampling.filled(device, origins)
    first = f"step-{trained.step:08d}"
    if args.experiment is not None and args.snapshot in (trained.config.get("callbacks") or {}):
        first += f"-experiment-{args.experiment.stem}"  # the run's own snapshot of that name is another evaluation
    name = evaluation_name(first, args, config, plain)
    where = out / name
    if args.guidance is None or len(args.guidance) == 1:
        sampling = sampling if args.guidance is None else sampling.with_weight(args.guidance[0])
        if others is not None:
            _check_comparable(snapshot, data, {**sampling.conditions(), "weights": trained.weights}, others, args)
        with alone_in(where, asked):
            scores = _evaluate(where, snapshot, trained, data, sampling)
            remove_unfinished(where)
        _report(where, scores, others, args)
    else:
        snapshot.evaluation.validation_loss = False  # guidance does not change it
        title = f"{base}: {args.snapshot} of {checkpoint.name}, {trained.weights}"
        with alone_in(where, asked):
            sweep = {
                weight: _evaluate(where / f"guidance-{weight:g}", snapshot, trained, data, sampling.with_weight(weight))
                for weight in args.guidance
            }
            remove_unfinished(where)
            names = {score.name for scores in sweep.values() for score in scores}
            _report_sweep(where, sweep, title, {name for name in names if snapshot.evaluation.less_is_better(name)})


# ------------------------------------------------------------------ the request


def _snapshot(config: dict[str, Any], name: str, experiment: Path, origins: Origins) -> Snapshot:
    """The snapshot of that name, built."""
    callbacks = config.get("callbacks") or {}

    def is_snapshot(key: str) -> bool:
        class_path = callbacks[key] if isinstance(callbacks[key], str) else callbacks[key].get("class_path")
        return issubclass(find_class(class_path, f"callbacks.{key}.class_path", origins), Snapshot)

    if name not in callbacks or not is_snapshot(name):
        known = []
        for key in callbacks:
            with suppress(ConfigError):  # a plug-in that is not trusted
                known += [key] if is_snapshot(key) else []
        listed = f"; it has {', '.join(known)}" if known else ""
        raise ConfigError(f"--snapshot {name}: no snapshot of that name in {experiment}{listed}{_near(name, known)}")
    built: Snapshot = check_component(f"callbacks.{name}", callbacks[name], Callback, name, origins).build()
    return built


def _near(name: str, known: Collection[str]) -> str:
    close = nearest(name, known)
    return close if close.startswith("; nearest") else ""


def _check_varied(varied: Sequence[str], others: Found) -> None:
    """Refuses a word of ``--varied`` that is no field of a fingerprint and would have no effect."""
    fields = {field for score in others.scores.values() for field in score.fingerprint.named()} | {*MODEL_FIELDS}
    for name in varied:
        if name.removeprefix("extra.") not in fields:
            hint = ": scores of any two steps of training may be compared" if name == "step" else ""
            raise ConfigError(
                f"--varied {name}: no field of the fingerprints of {others.details.parent}{hint}{_near(name, fields)}; "
                f"the fields are {', '.join(sorted(fields))}"
            )


def _sampling(args: argparse.Namespace, snapshot: Snapshot, config: dict[str, Any], origins: Origins) -> Sampling:
    """The snapshot's, with what the command line changes."""
    given = {name: getattr(args, name) for name in ("steps", "method", "seed", "batch_size")}
    if args.method is not None:
        given["method"] = find_method(args.method, origins)
    given["search"] = find_search(args, origins, snapshot.sampling.search)
    precision = str((config.get("trainer") or {}).get("precision"))
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(snapshot.sampling, precision=PRECISIONS.get(precision, precision), **changes)


# ------------------------------------------------------------------ device, data, model


def _launch(args: argparse.Namespace) -> torch.device:
    """Has Lightning start the other processes, if there are any; returns the device of this one."""
    device = find_device(args.device)
    if device.index is not None and args.devices is not None:
        raise ConfigError(f"--device {args.device} is one device: leave out --devices, or say --device {device.type}")
    devices: Any = args.devices or 1 if device.index is None else [device.index]
    several = (args.devices or 1) * (args.num_nodes or 1) > 1
    fabric = Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=args.num_nodes or 1,
        strategy="ddp" if several else "auto",
    )
    fabric.launch()
    return fabric.device


def _data(config: dict[str, Any], origins: Origins) -> DataModule:
    data: DataModule = check_component("data", config["data"], LightningDataModule, origins=origins).build()
    ranks.from_first(data.prepare_data)
    return data


def _model(
    args: argparse.Namespace,
    checkpoint: Path,
    snapshot: Snapshot,
    data: DataModule,
    device: torch.device,
    origins: Origins,
) -> TrainedModel:
    """The checkpoint's model on its device, with the empty prompt of the data."""

    data.setup("validate")
    decay = None if args.weights == "raw" else snapshot.ema_decay
    trained = load_trained(checkpoint, args.weights or "auto", args.autoencoder, decay, origins)
    trained.module.check_manifest(data.manifest)
    _check_encoders(trained.manifest, data.manifest)
    trained.module.unconditional = data.unconditional()
    trained.module.space.load()  # refuses a missing one before the work, not after it
    trained.module.to(device)
    return trained


def _check_encoders(before: Manifest, now: Manifest) -> None:
    """Refuses prompts as states of a text encoder that the checkpoint never saw; of imported ones only names are known.

    Raises:
        ConfigError: names both encoders.
    """
    known = all(encoder.sha256 for encoder in (*before.text_encoders, *now.text_encoders))
    if known and not now.same_encoders(before):
        raise ConfigError(
            f"the checkpoint was trained on the text states of {before.encoders_shown}, the data have those of "
            f"{now.encoders_shown}, which it cannot read: give the data of its training (--data.root; "
            "of shapes --data.word_order too, or leave out --experiment)"
        )


def _evaluate(
    folder: Path, snapshot: Snapshot, trained: TrainedModel, data: DataModule, sampling: Sampling
) -> list[Score]:
    """One evaluation into its folder."""
    evaluated = snapshot.evaluation.evaluate(
        trained.module, data, sampling, folder / UNFINISHED, weights=trained.weights, step=trained.step
    )
    facts = {**sampling.conditions(), "weights": trained.weights, "checkpoint_sha256": trained.sha256}
    ranks.from_first(lambda: _write(folder, snapshot, evaluated, facts))
    return evaluated.scores


def _check_comparable(
    snapshot: Snapshot, data: DataModule, conditions: dict[str, Any], others: Found, args: argparse.Namespace
) -> None:
    """Refuses, before sampling, what the table would refuse: other prompts, sampler, seeds, ..."""
    snapshot.evaluation.prepare(data, samples=False)
    ours = snapshot.evaluation.conditions(conditions)
    for score in others.scores.values():
        theirs = score.fingerprint
        if is_of_images(score.name) and theirs.sampler is not None:
            known = Fingerprint.from_dict({key: value for key, value in theirs.named().items() if key in ours})
            compare(Fingerprint.from_dict(ours), known, args.varied)


# ------------------------------------------------------------------ results


def _write(folder: Path, snapshot: Snapshot, evaluated: Evaluated, facts: dict[str, Any] | None) -> None:
    """Scores, grid and details; the images too where there are facts about them and the snapshot keeps them."""
    snapshot.write(
        evaluated,
        facts if snapshot.keep_images else None,
        grid=folder / "grid.png",
        images=folder / "images",
        details=folder / "details",
        scores=folder / "scores",
    )


def _report(where: Path, scores: list[Score], others: Found | None, args: argparse.Namespace) -> None:
    """Prints the scores, beside others with --compare, and with confidence where it is known."""
    if ranks.this() > 0:
        return
    by_name = {score.name: score for score in scores}
    theirs = None if others is None else others.scores
    both = [*scores, *theirs.values()] if theirs is not None else []
    pictures = [score.name for score in both if is_of_images(score.name) and score.fingerprint.sampler is None]
    if pictures:
        print(f"of pictures of another program is not known, and not compared: {', '.join(MODEL_FIELDS)}")
    print(f"scores: {where / 'scores'}")
    console = Console(width=100)
    unknown = dict.fromkeys(pictures, MODEL_FIELDS)
    console.print(score_table(where.name, by_name, theirs, args.varied, str(args.compare), unknown))
    if others is not None:
        for table in paired_tables(where / "details", others.details, str(args.compare)):
            console.print(table)


def _report_reference(files: dict[Path, list[str]]) -> None:
    """Prints what to write into the experiment."""
    for path, titles in files.items() if ranks.this() == 0 else ():
        print(f"reference_statistics: {path}  # init_args of {', '.join(titles)}")


def _report_sweep(where: Path, sweep: dict[float, list[Score]], title: str, less_is_better: set[str]) -> None:
    """Writes CSV and figure, prints the table."""
    if ranks.this() > 0:
        return
    write_csv(where / "scores.csv", sweep)
    plot_sweep(where / "guidance.png", sweep, title, less_is_better)
    Console(width=120).print(sweep_table(sweep, less_is_better))
    print(f"scores: {where / 'scores.csv'}\ncurves: {where / 'guidance.png'}")
