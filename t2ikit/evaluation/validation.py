"""Losses of the validation set, and of as many training records, as scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from tqdm import tqdm

from t2ikit import ranks
from t2ikit.data.datamodule import DataModule
from t2ikit.data.loaders import EvaluationLoader
from t2ikit.diffusion.objectives.denoising import FIXED_SEED, LEVELS
from t2ikit.evaluation.settings import Sampling
from t2ikit.metrics.fingerprint import Fingerprint, Score
from t2ikit.module import TextToImage


def _score_name(loss: str, split: str) -> str:
    return loss if split == "val" else f"{loss}_{split}"


LOSSES = {"val": ("loss", "loss_fixed_t"), "train": ("loss_fixed_t",)}
"""Which losses are taken of which set; those of the training set get its name."""

SCORES = tuple(_score_name(name, split) for split, names in LOSSES.items() for name in names)
"""Names of the scores; of no sampler."""

LevelLosses = dict[str, list[float]]
"""By split: the loss at each of the fixed t; NaN where it has no record."""


def validation_losses(
    module: TextToImage,
    data: DataModule,
    sampling: Sampling,
    weights: str,
    step: int | None,
    label: str,
    levels: LevelLosses | None = None,
) -> list[Score]:
    """Mean losses of the validation set, every record once, and of as many training records; every rank must call it.

    Args:
        module: on its device, with the weights to judge.
        data: the data module, set up.
        sampling: whose precision counts.
        weights: which weights those are, for the fingerprint.
        step: optimizer steps of the weights, or None.
        label: of the progress bar.
        levels: gets the loss at each fixed t of both sets, and of as many records of each stream behind a gate, which
            is a split by its folder.

    Returns:
        ``loss``, ``loss_fixed_t`` and ``loss_fixed_t_train``.

    Raises:
        OtherRankFailed: another rank failed.
    """
    scores = []
    limit = sum(len(records) for records in data.record_sets("val"))
    for split, names in LOSSES.items():
        loader = data.evaluation_dataloader(split, limit)
        means, count, by_level = _means(module, data, sampling, loader, names, f"{label}: loss", levels is not None)
        if levels is not None:
            levels[split] = by_level
        chunks = {
            name if bucket == 0 else f"{data.bucket_names[bucket]}/{name}": digest
            for bucket, records in enumerate(data.record_sets(split))
            for name, digest in records.manifest.chunk_sha256.items()
            if name.endswith(".bin")
        }
        for name in names:
            metric = "validation_loss" if name == "loss" else name
            extra = {"metric": metric, "precision": sampling.precision, "weights": weights}
            if name != "loss" and module.space.stochastic:
                extra["posterior"] = str(FIXED_SEED)  # once it was that of the run's seed
            fingerprint = Fingerprint(
                reference=split,
                reference_sha256=hashlib.sha256(json.dumps(chunks, sort_keys=True).encode()).hexdigest(),
                num_reference=count,
                seeds=str(module.seed if name == "loss" else FIXED_SEED),
                extra=extra,
            )
            scores.append(Score(_score_name(name, split), means[name], fingerprint, step))
    for gate in data.gates if levels is not None else ():
        split = str(gate.folder)
        loader = data.evaluation_dataloader(split, limit)
        *_, by_level = _means(module, data, sampling, loader, ["loss_fixed_t"], f"{label}: loss of {gate.name}", True)
        assert levels is not None
        levels[split] = by_level
    return scores


def _means(
    module: TextToImage,
    data: DataModule,
    sampling: Sampling,
    loader: EvaluationLoader,
    names: Sequence[str],
    label: str,
    by_level: bool,
) -> tuple[dict[str, float], int, list[float]]:
    """Means of the losses over all ranks, by name, and the number of records.

    With ``by_level`` also ``loss_fixed_t`` at each of its levels, [LEVELS]; else an empty list.
    """
    # Without a Trainer the data module knows of no other rank, and its loader gives every rank all batches.
    share, mine = (ranks.count(), ranks.this()) if data.trainer is None else (1, 0)

    def work() -> tuple[list[float], int, list[list[float]]]:
        totals = torch.zeros(len(names), dtype=torch.float64, device=module.device)
        levels = torch.zeros(2, LEVELS, dtype=torch.float64, device=module.device)  # sums, and numbers of records
        count = 0
        bar = tqdm(loader, desc=label, leave=False, disable=ranks.this() > 0, mininterval=1.0)
        autocast = torch.autocast(module.device.type, dtype=torch.bfloat16, enabled=sampling.bf16)
        with autocast, module.denoiser.fixed_weights():
            for index, stored in enumerate(bar):
                ranks.stop_if_asked()
                if index % share == mine:
                    losses = module.validation_losses(stored.to(module.device), names)
                    totals = totals + torch.stack([losses[name].double().sum() for name in names])
                    count += len(stored)
                    if by_level:
                        loss_B = losses["loss_fixed_t"].double()
                        level = torch.nn.functional.one_hot(stored.index.to(module.device) % LEVELS, LEVELS)
                        levels += torch.stack([loss_B, torch.ones_like(loss_B)]) @ level.double()
        return totals.tolist(), count, levels.tolist()

    parts = ranks.together(work)
    count = sum(part_count for _, part_count, _ in parts)
    means = {name: sum(totals[row] for totals, _, _ in parts) / count for row, name in enumerate(names)}
    if not by_level:
        return means, count, []
    sums, counts = torch.tensor([levels for *_, levels in parts], dtype=torch.float64).sum(dim=0)
    return means, count, (sums / counts).tolist()  # 0 / 0 is NaN: no record
