"""Prompts -> images -> metrics -> scores, with no Trainer: what a snapshot of a run and ``t2ikit evaluate`` both do.

Shapes: N images of an evaluation, uint8 [N, 3, H, W].
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import t2ikit
from t2ikit import ranks
from t2ikit.cost import Cost, measured
from t2ikit.data.datamodule import DataModule
from t2ikit.data.prompts import Prompt, PromptSource, prompts_hash
from t2ikit.drawing import Sampling, draw_missing
from t2ikit.drawn import DrawnImages
from t2ikit.files import partial_of, publish
from t2ikit.metrics.base import Metric, Samples
from t2ikit.metrics.fingerprint import Fingerprint, Score
from t2ikit.metrics.scoring import score_samples
from t2ikit.module import TextToImage
from t2ikit.prepare.decode import decode

MODEL_FIELDS = ("seeds", "sampler", "steps", "guidance", "precision", "weights")
"""Fields of a fingerprint that describe the model's side; they are not known of pictures of another program."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave.

    Attributes:
        scores: every score, on all ranks.
        costs: of drawing, of the validation loss and of each metric, on all ranks.
        images: uint8 [N, 3, H, W] on the first rank, None elsewhere.
    """

    scores: list[Score]
    costs: list[Cost]
    images: Tensor | None


class Evaluation:
    """Draws images of a model and scores them, or scores pictures that are there. All ranks call the same methods.

    Image i depends on (seed, i, prompt) and the weights alone: not on the batch size, nor on the number of ranks. The
    images are drawn into a folder by all ranks; the first one reads them and scores, so that every metric sees all
    images at once and its value does not depend on the ranks.

    Args:
        name: of the snapshot, for progress bars and messages.
        source: which texts to draw.
        metrics: what to compute of the images.
        reference: split whose images the distribution metrics compare with; "prompts" for the photos that the prompts
            describe (CocoCaptions), cropped and resized to the size of the drawn ones; None if no metric needs them.
        reference_limit: how many of them; None takes all.
        validation_loss: also compute the loss of the validation set, as ``loss``.
        limit: take the first prompts only; None takes all.
    """

    def __init__(
        self,
        name: str,
        source: PromptSource,
        metrics: Sequence[Metric] = (),
        reference: str | None = None,
        reference_limit: int | None = None,
        validation_loss: bool = False,
        limit: int | None = None,
    ) -> None:
        self.name = name
        self.source = source
        self.metrics = list(metrics)
        self.reference = reference
        self.reference_limit = reference_limit
        self.validation_loss = validation_loss
        self.limit = limit
        self.prompts: list[Prompt] = []
        self._states: Sequence[Tensor] | None = None
        self._reference_images: Tensor | None = None
        self._pictures: list[Path] = []

    def prepare(self, data: DataModule, draws: bool = True) -> None:
        """Reads prompts, text states and reference images; they are kept, being the same for every checkpoint.

        Args:
            data: the data module, set up.
            draws: also the text states, which drawing needs.

        Raises:
            ValueError, FileNotFoundError: what is missing, and which option names it.
        """
        if not self.prompts:
            self.prompts = self.source.prompts(data)[: self.limit]
            if not self.prompts:
                raise ValueError(f"callbacks.{self.name}: {type(self.source).__name__} gives no prompt")
            if self.reference is not None:
                ranks.from_first(lambda: self._read_reference(data))
        if draws and self._states is None:
            self._states = self.source.states(data, self.prompts)

    def evaluate(
        self,
        module: TextToImage,
        data: DataModule,
        sampling: Sampling,
        folder: Path,
        *,
        weights: str,
        step: int | None,
    ) -> Evaluated:
        """Draws the images with the present weights of ``module`` and scores them.

        Args:
            module: on its device, with the empty prompt.
            data: the data module, set up.
            sampling: how the images are drawn.
            folder: where the images are while they are drawn; the same for all ranks. Images that an interrupted call
                left there are taken over if they are of the same weights and settings. Remove it with ``discard`` when
                the scores are kept.
            weights: which weights those are ("ema 0.9999", "raw"), for the fingerprint.
            step: optimizer steps of the weights.

        Raises:
            OtherRankFailed: another rank failed.
        """
        self.prepare(data)
        assert self._states is not None
        drawn, costs = DrawnImages(folder, len(self.prompts)), list[Cost]()
        scores = []
        if self.validation_loss:
            with measured("loss", costs):
                scores.append(self._loss(module, data, sampling, weights, step))
        with measured("drawing", costs):
            draw_missing(module, self._states, sampling, drawn, self.name)
        images = ranks.from_first_kept(drawn.read)
        conditions = {**sampling.conditions(), "weights": weights}
        return self._score(images, conditions, step, scores, costs)

    def evaluate_pictures(self, folder: Path, data: DataModule) -> Evaluated:
        """Scores pictures of any model, one for each prompt, in the layout of the prompt source."""
        self.prepare(data, draws=False)
        images = ranks.from_first_kept(lambda: self.source.read_images(folder, self.prompts))
        return self._score(images, {}, None, [], [])

    def keep_images(self, folder: Path, images: Tensor, facts: dict[str, Any]) -> None:
        """Writes images as PNG files in the layout of the prompt source; replaces an older folder when all are there.

        Args:
            folder: of their own.
            images: of these prompts, uint8 [N, 3, H, W].
            facts: how they were made, for the metadata of each file.
        """
        text = {key: str(value) for key, value in facts.items()} | {"Software": f"t2ikit {t2ikit.__version__}"}
        partial = partial_of(folder)
        partial.mkdir(parents=True)
        self.source.write_images(partial, images, self.prompts, text)
        shutil.rmtree(folder, ignore_errors=True)
        publish(partial, folder)

    def publish(self, folder: Path) -> None:
        """Writes what the scores just given were made of (verdicts, answers); for the first rank."""
        folder.mkdir(parents=True, exist_ok=True)
        for metric in self.metrics:
            metric.publish(folder)
        if not any(folder.iterdir()):
            folder.rmdir()

    def _read_reference(self, data: DataModule) -> None:
        assert self.reference is not None
        if self.reference == "prompts":
            self._pictures = self.source.pictures()[: self.reference_limit]  # decoded when their size is known
        else:
            self._reference_images = data.reference_images(self.reference, self.reference_limit)

    def _score(
        self,
        images: Tensor | None,
        conditions: dict[str, Any],
        step: int | None,
        scores: list[Score],
        costs: list[Cost],
    ) -> Evaluated:
        """Scores on the first rank, while the others wait."""

        def work() -> tuple[list[Score], list[Cost]]:
            assert images is not None
            texts = [prompt.text for prompt in self.prompts]
            metadata = [prompt.metadata for prompt in self.prompts]
            if self._pictures and self._reference_images is None:
                bar = tqdm(self._pictures, desc=f"{self.name}: reference", leave=False, mininterval=1.0)
                decoded = (decode(path.read_bytes(), images.shape[-1]) for path in bar)
                self._reference_images = torch.stack([torch.from_numpy(pixels.copy()) for pixels in decoded])
            samples = Samples(images, texts, metadata, self._reference_images, self.reference or "")
            prompts = {
                "prompts": self.source.name or type(self.source).__name__,
                "prompts_sha256": prompts_hash(self.prompts),
            }
            label = f"callbacks.{self.name}"
            found = score_samples(samples, self.metrics, {**prompts, **conditions}, step, label, costs)
            for cost in costs:
                tqdm.write(f"{self.name}: {cost}")
            return [*scores, *found], costs

        return Evaluated(*ranks.from_first(work), images)

    def _loss(self, module: TextToImage, data: DataModule, sampling: Sampling, weights: str, step: int | None) -> Score:
        """Mean loss of the validation set, every record once, summed over the ranks."""
        loader = data.val_dataloader()
        # Without a Trainer the data module knows of no other rank, and its loader gives every rank all batches.
        share, mine = (ranks.count(), ranks.this()) if data.trainer is None else (1, 0)

        def work() -> tuple[float, int]:
            total, count = torch.zeros((), dtype=torch.float64, device=module.device), 0
            bar = tqdm(loader, desc=f"{self.name}: loss", leave=False, disable=ranks.this() > 0, mininterval=1.0)
            with torch.autocast(module.device.type, dtype=torch.bfloat16, enabled=sampling.bf16):
                for number, stored in enumerate(bar):
                    if number % share == mine:
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
