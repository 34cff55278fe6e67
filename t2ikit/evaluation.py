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
from t2ikit.module import TextToImage
from t2ikit.prepare.decode import decode
from t2ikit.scoring import score_samples, write_references

MODEL_FIELDS = ("seeds", "sampler", "steps", "guidance", "precision", "weights")
"""Fields of a fingerprint that describe the model's side; they are not known of pictures of another program."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave.

    Attributes:
        scores: every score, on all ranks.
        costs: of drawing, of the validation loss and of each metric, as they were on this rank.
        images: uint8 [N, 3, H, W] on the first rank, None elsewhere.
    """

    scores: list[Score]
    costs: list[Cost]
    images: Tensor | None


class Evaluation:
    """Draws images of a model and scores them, or scores pictures that are there. All ranks call the same methods.

    Image i depends on (seed, i, prompt) and the weights alone: not on the batch size, nor on the number of ranks. The
    images are drawn into a folder by all ranks; then each looks at a share of them, and the first one sums up, so that
    a score does not depend on the ranks either.

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

    def prepare(self, data: DataModule, device: torch.device | str = "cpu", draws: bool = True) -> None:
        """Reads prompts, text states and reference images; they are kept, being the same for every checkpoint.

        Args:
            data: the data module, set up.
            device: where a text encoder runs for the states of prompts that are not stored; it leaves it afterwards.
            draws: also the text states, which drawing needs.

        Raises:
            ValueError, FileNotFoundError: what is missing, and which option names it.
        """
        if not self.prompts:
            self.prompts = self.source.prompts(data)[: self.limit]
            if not self.prompts:
                raise ValueError(f"callbacks.{self.name}: {type(self.source).__name__} gives no prompt")
            if self.reference == "prompts":
                # Decoded when their size is known.
                self._pictures = ranks.from_first(self.source.pictures)[: self.reference_limit]
            elif self.reference is not None:
                split = self.reference
                self._reference_images = ranks.from_first_kept(
                    lambda: data.reference_images(split, self.reference_limit)
                )
            ranks.from_first(self._check)
        if draws and self._states is None:
            self._states = self.source.states(data, self.prompts, device)

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
        self.prepare(data, module.device)
        assert self._states is not None
        drawn, costs = DrawnImages(folder, len(self.prompts)), list[Cost]()
        scores = []
        if self.validation_loss:
            with measured("loss", costs):
                scores.append(self._loss(module, data, sampling, weights, step))
        with measured("drawing", costs):
            draw_missing(module, self._states, sampling, drawn, self.name)
        images = ranks.from_first_kept(drawn.read)
        mine = drawn.read(ranks.share(len(self.prompts))) if images is None else None
        conditions = {**sampling.conditions(), "weights": weights}
        found = self._score(images, mine, data, module.device, conditions, step, costs)
        return Evaluated([*scores, *found], costs, images)

    def evaluate_pictures(self, folder: Path, data: DataModule, device: torch.device | None = None) -> Evaluated:
        """Scores pictures of any model, one for each prompt, in the layout of the prompt source.

        Args:
            folder: where they are.
            data: the data module, set up.
            device: where the networks of the metrics run; None is the CPU.

        Raises:
            ValueError: the pictures do not fit the prompts.
            OtherRankFailed: another rank failed.
        """
        self.prepare(data, draws=False)
        read: list[Tensor] = []
        ranks.together(lambda: read.append(self.source.read_images(folder, self.prompts)))
        share, costs, first = ranks.share(len(self.prompts)), list[Cost](), ranks.this() == 0
        images, mine = (read[0], None) if first else (None, read[0][share.start : share.stop])
        scores = self._score(images, mine, data, device or torch.device("cpu"), {}, None, costs)
        return Evaluated(scores, costs, images)

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

    def _check(self) -> None:
        """Has every metric refuse what it cannot score, before anything is drawn."""
        blank = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
        reference = self._reference_images
        if self._pictures and reference is None:
            reference = blank.expand(len(self._pictures), -1, -1, -1)
        samples = self._samples(blank.expand(len(self.prompts), -1, -1, -1), range(len(self.prompts)))
        samples.reference = reference
        for metric in self.metrics:
            metric.check(samples)

    def _samples(self, images: Tensor, places: range, device: torch.device | None = None) -> Samples:
        """Images of some of the prompts with these."""
        prompts = self.prompts[places.start : places.stop]
        texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
        return Samples(
            images, texts, metadata, reference_name=self.reference or "", device=device or torch.device("cpu"),
            first=places.start,
        )  # fmt: skip

    def _score(
        self,
        images: Tensor | None,
        mine: Tensor | None,
        data: DataModule,
        device: torch.device,
        conditions: dict[str, Any],
        step: int | None,
        costs: list[Cost],
    ) -> list[Score]:
        """The metrics' scores.

        Args:
            images: all of them, on the first rank.
            mine: this rank's share of them, on the other ranks.
            data: the data module.
            device: of this rank.
            conditions: of the images, for the fingerprints.
            step: optimizer steps of the weights.
            costs: gets a cost for each metric.
        """
        share, whole = ranks.share(len(self.prompts)), None
        if images is not None:
            whole = self._samples(images, range(len(self.prompts)), device)
            whole.reference = self._references(images.shape[-1])
            mine = images[share.start : share.stop]
        assert mine is not None
        size = mine.shape[-1]

        def reference_part(number: int) -> Samples:
            return self._reference_part(data, number, size, device)

        conditions = {
            "prompts": self.source.name or type(self.source).__name__,
            "prompts_sha256": prompts_hash(self.prompts),
            **conditions,
        }
        part = self._samples(mine, share, device)
        label = f"callbacks.{self.name}"
        found = score_samples(part, whole, reference_part, self.metrics, conditions, step, label, costs)
        for cost in costs if ranks.this() == 0 else ():
            tqdm.write(f"{self.name}: {cost}")
        return found

    def write_reference(self, folder: Path, data: DataModule, device: torch.device) -> dict[Path, list[str]]:
        """Writes the statistics of the reference set, for the ``reference_statistics`` of the metrics.

        Args:
            folder: gets ``NETWORK.npz`` for each network of the metrics.
            data: the data module, set up.
            device: where the networks run.

        Returns:
            File -> the metrics that can read it.

        Raises:
            ValueError: the snapshot has no reference, or no metric without a file compares with one.
        """
        self.prepare(data, draws=False)
        if self.reference is None:
            raise ValueError(f"callbacks.{self.name} has no reference: set its reference to a split of the data (val)")
        size = data.reference_images("val", 1).shape[-1]
        whole = None
        if ranks.this() == 0:
            whole = self._samples(torch.empty(0, 3, size, size, dtype=torch.uint8), range(0))
            whole.reference = self._references(size)
        files = write_references(
            folder, whole, lambda number: self._reference_part(data, number, size, device), self.metrics
        )
        if not files:
            raise ValueError(
                f"callbacks.{self.name}: no metric compares with the reference images; DistributionMetrics, CMMD and "
                "KID do, where they have no reference_statistics"
            )
        return files

    def _references(self, size: int) -> Tensor | None:
        """All reference images, on the first rank; photos of the prompts at this size."""
        if self._pictures and self._reference_images is None:
            self._reference_images = self._photos(range(len(self._pictures)), size)
        return self._reference_images

    def _reference_part(self, data: DataModule, number: int, size: int, device: torch.device) -> Samples:
        """This rank's share of ``number`` reference images; photos of the prompts at this size."""
        places = ranks.share(number)
        if self._reference_images is not None:
            part = self._reference_images[places.start : places.stop]
        elif self._pictures:
            part = self._photos(places, size)
        else:
            assert self.reference is not None
            part = data.reference_images(self.reference, self.reference_limit, places)
        return Samples(part, device=device, first=places.start)

    def _photos(self, places: range, size: int) -> Tensor:
        """Some of the photos that the prompts describe, uint8 [M, 3, size, size]."""
        bar = tqdm(
            self._pictures[places.start : places.stop], f"{self.name}: reference", leave=False, mininterval=1.0,
            disable=ranks.this() > 0,
        )  # fmt: skip
        photos = torch.empty(len(bar), 3, size, size, dtype=torch.uint8)
        for number, path in enumerate(bar):
            photos[number] = torch.from_numpy(decode(path.read_bytes(), size).copy())
        return photos

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
