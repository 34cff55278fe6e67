"""The loss of the validation set as a score."""

from __future__ import annotations

import hashlib
import json

import torch
from tqdm import tqdm

from t2ikit import ranks
from t2ikit.data.datamodule import DataModule
from t2ikit.evaluation.sampling import Sampling
from t2ikit.metrics.fingerprint import Fingerprint, Score
from t2ikit.module import TextToImage


def validation_loss(
    module: TextToImage, data: DataModule, sampling: Sampling, weights: str, step: int | None, label: str
) -> Score:
    """Mean loss of the validation set, every record once, summed over the ranks; every rank must call it.

    Args:
        module: on its device, with the weights to judge.
        data: the data module, set up.
        sampling: whose precision counts.
        weights: which weights those are, for the fingerprint.
        step: optimizer steps of the weights, or None.
        label: of the progress bar.

    Raises:
        OtherRankFailed: another rank failed.
    """
    loader = data.val_dataloader()
    # Without a Trainer the data module knows of no other rank, and its loader gives every rank all batches.
    share, mine = (ranks.count(), ranks.this()) if data.trainer is None else (1, 0)

    def work() -> tuple[float, int]:
        total, count = torch.zeros((), dtype=torch.float64, device=module.device), 0
        bar = tqdm(loader, desc=f"{label}: loss", leave=False, disable=ranks.this() > 0, mininterval=1.0)
        with torch.autocast(module.device.type, dtype=torch.bfloat16, enabled=sampling.bf16):
            for index, stored in enumerate(bar):
                if index % share == mine:
                    loss_B, _ = module.validation_losses(stored.to(module.device))
                    total, count = total + loss_B.double().sum(), count + loss_B.shape[0]
        return float(total), count

    sums = ranks.together(work)
    manifest = data.record_set("val").manifest
    chunks = {name: digest for name, digest in manifest.chunk_sha256.items() if name.endswith(".bin")}
    fingerprint = Fingerprint(
        reference="val",
        reference_sha256=hashlib.sha256(json.dumps(chunks, sort_keys=True).encode()).hexdigest(),
        num_reference=len(data.record_set("val")),
        seeds=str(module.seed),
        extra={"metric": "validation_loss", "precision": sampling.precision, "weights": weights},
    )
    value = sum(total for total, _ in sums) / sum(count for _, count in sums)
    return Score("loss", value, fingerprint, step)
