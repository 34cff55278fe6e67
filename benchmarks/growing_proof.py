"""Does growing pay? ``python -m benchmarks.growing_proof --out DIR`` trains ``experiments/shapes_growing.yaml`` from
several seeds, and from scratch once more at the cost of the shallow model and the frozen one together, and compares.

    DIR/runs/seed_0/version_0/<stage>/     the runs; a call that was killed goes on with them, and trains none twice
    DIR/scores/seed_0-frozen.json          what one of them gave
    DIR/proof.csv                          every score
    DIR/proof.json, proof.md               means over seeds with 95 % intervals, also of paired differences
    DIR/grids/seed_0-frozen.png            samples of held-out captions, the same ones everywhere

Compared are networks of 32 pixels with their averaged weights: the mean squared error of v at fixed t on the validation
set, with noise that the index of a record alone keys, and the share of samples whose largest object has the colour that
was asked for. Cost is counted in floating-point operations.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from benchmarks.counting import flops
from t2ikit.batch import Text
from t2ikit.callbacks.metrics_csv import read_metrics
from t2ikit.checkpoints.runs import is_finished, newest_checkpoint
from t2ikit.config.class_nodes import check_component
from t2ikit.config.compose import compose
from t2ikit.files import write_whole
from t2ikit.pretrained import sha256_of
from t2ikit.rng import Keyed
from t2ikit.run.experiment import check
from t2ikit.run.sweep_scores import mean_and_interval
from t2ikit.run.trained import load_trained

TIMES = (0.2, 0.5, 0.8, 0.95)
STRONG = (0.8, 0.95)
"""Where growing is promised to win at equal high-resolution steps."""
GROWN = ("frozen", "finetuned", "scratch")
LONG = "scratch_long"
STAGES = ("shallow", *GROWN, LONG)
COLOR = "largest_color_share"
TOKENS = 24
"""Length of the text for which cost is counted: captions of simple shapes are about as long."""
SMALL = {
    "model": {
        "init_args": {
            "denoiser": {
                "init_args": {
                    "core": {"width": 32, "blocks": 1, "heads": 2, "noise_width": 16},
                    "shell": {"init_args": {"channels": [8], "blocks": [1], "head_channels": 8}},
                }
            },
            "learning_rate": {"init_args": {"warmup": 0}},
        }
    },
    "data": {"init_args": {"count": 64, "val_count": 16, "batch_size": 8}},
    "trainer": {"max_steps": 4, "log_every_n_steps": 1},
    "callbacks": {"val": {"init_args": {"prompts": {"init_args": {"limit": 8}}, "steps": 2}}},
    "stages": {"shallow": {"data": {"init_args": {"count": 64}}, "trainer": {"max_steps": 6}}},
}


@dataclass(frozen=True)
class Scores:
    """Of one network.

    Attributes:
        seed: of the run.
        stage: how it was trained.
        steps: optimizer steps at 32 pixels.
        teraflops: of all its training, that of the shallow model it starts from included.
        seconds: the same by the clock, at the median rate of each run.
        errors: mean squared error of v by t.
        color: share of samples whose largest object has the right colour; None without samples that are scored.
        checkpoint: SHA-256 of the file.
    """

    seed: int
    stage: str
    steps: int
    teraflops: float
    seconds: float
    errors: dict[str, float]
    color: float | None
    checkpoint: str

    @property
    def values(self) -> dict[str, float]:
        """Every score by name."""
        errors = {f"error at t {t}": error for t, error in self.errors.items()}
        return errors | ({} if self.color is None else {"colour right": self.color})


# ------------------------------------------------------------------ training


def write_experiment(folder: Path, small: bool) -> Path:
    """The experiment: that of the kit, with a stage that trains from scratch for as long as growing takes in all."""
    path = folder / "proof.yaml"
    overlay: dict[str, Any] = {"extends": ["shapes_growing.yaml"], **(SMALL if small else {})}
    write_whole(path, json.dumps(overlay, indent=1) + "\n")  # JSON is YAML
    costs = {stage: step_cost(path, stage) for stage in ("shallow", "frozen", "scratch")}
    steps = {stage: check(compose(path, (), stage)).trainer["max_steps"] for stage in costs}
    long = round(sum(costs[stage] * steps[stage] for stage in ("shallow", "frozen")) / costs["scratch"])
    stage = {"model": {"init_args": {"start": None}}, "trainer": {"max_steps": long}}
    overlay = {**overlay, "stages": {**overlay.get("stages", {}), LONG: stage}}
    write_whole(path, json.dumps(overlay, indent=1) + "\n")
    return path


def step_cost(path: Path, stage: str) -> float:
    """TFLOP of one training step: forward and backward pass of a batch."""
    plan = check(compose(path, (), stage))
    batch = plan.config["data"]["init_args"]["batch_size"]
    with torch.device("meta"):
        denoiser = plan.model.build().denoiser
        x, level = torch.empty(1, *denoiser.input_shape), torch.empty(1)
        text = Text(torch.empty(1, TOKENS, denoiser.text_dim), torch.empty(1, TOKENS, dtype=torch.bool))
    return batch * flops(lambda: denoiser(x, level, denoiser.encode_text(text)).output.sum().backward()) / 1e12


def train(path: Path, seed: int, threads: int) -> Path:
    """Trains what is not trained yet of the stages of a seed; their folder.

    Raises:
        RuntimeError: the run failed; says with which status.
    """
    if (version := trained_version(path, seed)) is not None:
        return version
    words = ["run", path.name, "--seed_everything", str(seed), "--run.name", f"seed_{seed}", "--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-m", "t2ikit", *words], cwd=path.parent, env=environment)
    version = trained_version(path, seed)
    if done.returncode or version is None:
        raise RuntimeError(f"the run of seed {seed} ended with status {done.returncode}: give the same command again")
    return version


def trained_version(path: Path, seed: int) -> Path | None:
    """The version of a seed all of whose stages are trained; a run that was killed early may have begun another."""
    versions = sorted((path.parent / "runs" / f"seed_{seed}").glob("version_*"))
    return next((version for version in versions if all(is_finished(version / stage) for stage in STAGES)), None)


# ------------------------------------------------------------------ scores


def scored(path: Path, version: Path, seed: int, stage: str) -> Scores:
    """The scores of a stage; taken once, and kept in a file."""
    kept = path.parent / "scores" / f"seed_{seed}-{stage}.json"
    checkpoint = newest_checkpoint(version / stage)
    assert checkpoint is not None
    digest = sha256_of(checkpoint)
    if kept.is_file():
        scores = Scores(**json.loads(kept.read_text()))
        if scores.checkpoint == digest:
            return scores
    before = ["shallow"] if stage in ("frozen", "finetuned") else []
    color = read_metrics(version / stage / "metrics.csv").get(f"val/{COLOR}")
    steps = {name: check(compose(path, (), name)).trainer["max_steps"] for name in (*before, stage)}
    scores = Scores(
        seed,
        stage,
        steps[stage],
        sum(count * step_cost(path, name) for name, count in steps.items()),
        sum(count * seconds_a_step(path, version, name) for name, count in steps.items()),
        errors(checkpoint),
        color[-1][1] if color else None,
        digest,
    )
    kept.parent.mkdir(exist_ok=True)
    write_whole(kept, json.dumps(asdict(scores), indent=1) + "\n")
    return scores


def seconds_a_step(path: Path, version: Path, stage: str) -> float:
    """Of a stage, by the clock, at its median rate; NaN without rates."""
    rates = [rate for _, rate in read_metrics(version / stage / "metrics.csv").get("train/images_per_second", [])]
    batch: int = check(compose(path, (), stage)).config["data"]["init_args"]["batch_size"]
    return batch / sorted(rates)[len(rates) // 2] if rates else float("nan")


@torch.no_grad()
def errors(checkpoint: Path) -> dict[str, float]:
    """Mean squared error of v at each of TIMES over the validation set, of the averaged weights."""
    trained = load_trained(checkpoint)
    module = trained.module
    data = check_component("data", trained.config["data"], LightningDataModule).build()
    data.setup("validate")
    sums, count = dict.fromkeys(TIMES, 0.0), 0
    for stored in data.evaluation_dataloader("val"):
        batch = module.ready(stored)
        noise = Keyed(0).normal("growing proof", batch.slot, len(batch), batch.latents.shape[1:], "cpu")
        context = module.denoiser.encode_text(batch.text)
        for time in TIMES:
            t = torch.full((len(batch),), time)
            x_t = module.process.add_noise(batch.latents, noise, t)
            level = module.process.level(t, module.denoiser.level_kind)
            miss: Tensor = module.denoiser(x_t, level, context).output - module.process.target(batch.latents, noise, t)
            sums[time] += float(miss.square().mean((1, 2, 3)).sum())
        count += len(batch)
    return {str(time): total / count for time, total in sums.items()}


# ------------------------------------------------------------------ tables


def summary(results: Sequence[Scores]) -> dict[str, Any]:
    """Means over seeds with 95 % intervals of every stage, and of differences at equal steps and at equal cost."""
    stages: dict[str, Any] = {}
    for stage in (*GROWN, LONG):
        own = [scores for scores in results if scores.stage == stage]
        stages[stage] = {
            "steps": own[0].steps,
            "teraflops": round(own[0].teraflops, 2),
            "seconds": round(mean_and_interval([scores.seconds for scores in own])[0], 1),
            "scores": {name: mean_and_interval([each.values[name] for each in own]) for name in own[0].values},
        }
    found = {(scores.seed, scores.stage): scores.values for scores in results}
    seeds = sorted({scores.seed for scores in results})
    differences = {
        f"{stage} - {other}": {
            name: {
                "mean and interval": mean_and_interval(
                    gaps := [found[seed, stage][name] - found[seed, other][name] for seed in seeds]
                ),
                "seeds below 0": sum(gap < 0 for gap in gaps),
            }
            for name in found[seeds[0], stage]
        }
        for stage, other in (("frozen", "scratch"), ("finetuned", "scratch"), ("frozen", LONG), ("frozen", "finetuned"))
    }
    promised = all(differences["frozen - scratch"][f"error at t {t}"]["seeds below 0"] == len(seeds) for t in STRONG)
    return {"seeds": seeds, "stages": stages, "differences": differences, "frozen wins where noise is strong": promised}


def table(summarised: dict[str, Any]) -> str:
    """The summary in Markdown."""
    names = list(next(iter(summarised["stages"].values()))["scores"])
    lines = [
        f"| 32 pixels | steps | TFLOP in all | seconds in all | {' | '.join(names)} |",
        "|---" * (4 + len(names)) + "|",
    ]

    def entry(mean: float, half: float | None) -> str:
        return f"{mean:.4f}" + ("" if half is None else f" ± {half:.4f}")

    for stage, own in summarised["stages"].items():
        scores = " | ".join(entry(*own["scores"][name]) for name in names)
        lines.append(f"| {stage} | {own['steps']} | {own['teraflops']} | {own['seconds']} | {scores} |")
    for label, own in summarised["differences"].items():
        scores = " | ".join(
            f"{entry(*own[name]['mean and interval'])} ({own[name]['seeds below 0']})" for name in names
        )
        lines.append(f"| {label} (seeds below 0) | | | | {scores} |")
    return "\n".join(lines) + "\n"


def write_results(folder: Path, results: Sequence[Scores]) -> dict[str, Any]:
    """Writes the three tables; the summary."""
    rows = io.StringIO()
    writer = csv.writer(rows)
    names = list(results[0].values)
    writer.writerow(["seed", "stage", "steps", "teraflops", "seconds", *names])
    for scores in results:
        values = [scores.values[name] for name in names]
        writer.writerow([scores.seed, scores.stage, scores.steps, scores.teraflops, scores.seconds, *values])
    summarised = summary(results)
    write_whole(folder / "proof.csv", rows.getvalue())
    write_whole(folder / "proof.json", json.dumps(summarised, indent=1) + "\n")
    write_whole(folder / "proof.md", table(summarised))
    return summarised


def main(arguments: list[str] | None = None) -> int:
    """Trains, scores and prints; 1 where the frozen core does not win under strong noise for every seed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growing_proof", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="runs, scores and tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="%(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of a run (%(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny networks and few steps, to try this program")
    args = parser.parse_args(arguments)
    folder = args.out.resolve()
    (folder / "grids").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    path = write_experiment(folder, args.small)
    results = []
    for seed in args.seeds:
        version = train(path, seed, args.threads)
        for stage in (*GROWN, LONG):
            results.append(scored(path, version, seed, stage))
            for picture in sorted((version / stage / "samples" / "val").glob("step-*.png"))[-1:]:
                shutil.copyfile(picture, folder / "grids" / f"seed_{seed}-{stage}.png")
        summarised = write_results(folder, results)
    print(table(summarised))
    return 0 if summarised["frozen wins where noise is strong"] else 1


if __name__ == "__main__":
    sys.exit(main())
